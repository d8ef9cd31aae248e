"""Where `tests/test_check.py` finds a network."""

from tests.problem_table import Softmax as Softmax
