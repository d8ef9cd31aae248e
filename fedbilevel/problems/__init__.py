"""The problems by name, and a user's own problem by `path/to/file.py:factory`."""

from fedbilevel.problems.build import PROBLEMS, build, convert, needs_data
from fedbilevel.problems.hyper_representation import HyperRepresentation
from fedbilevel.problems.quadratic import Quadratic

__all__ = ["PROBLEMS", "HyperRepresentation", "Quadratic", "build", "convert", "needs_data"]
