"""What the server does: one file per algorithm, the loop around them, and the grids that carry messages."""
