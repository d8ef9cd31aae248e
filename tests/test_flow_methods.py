"""Where `tests/test_meta_memory.py` finds a network."""

from tests.problem_table import Softmax as Softmax
