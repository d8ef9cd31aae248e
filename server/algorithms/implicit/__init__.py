"""Implicit differentiation: hypergradients by Neumann series and linear systems, rounds shared or in a loop."""
