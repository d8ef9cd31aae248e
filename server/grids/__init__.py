"""What carries the messages: Flower grids."""
