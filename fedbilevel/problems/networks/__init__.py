"""Networks as functions of one flat vector of parameters, by name, and the products of their heads."""

from fedbilevel.problems.networks.named import find

__all__ = ["find"]
