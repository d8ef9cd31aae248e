"""Shares: what one party of a deployment holds of a problem, in a file of its own; no code is in it."""
