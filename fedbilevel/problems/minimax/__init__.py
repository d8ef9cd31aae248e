"""Minimax problems: one loss, which x descends and y ascends."""
