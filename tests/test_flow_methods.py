"""Where the problem of the flow methods was: for `tests/test_meta_memory.py`."""

from tests.clients.methods.test_adjoint import Softmax as Softmax
