"""Where the problem of the meta-gradients was: for `tests/test_check.py`."""

from tests.clients.methods.test_unrolled import Softmax as Softmax
