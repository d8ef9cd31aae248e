"""Sampling: the lower solution is a distribution, drawn from by Langevin chains."""
