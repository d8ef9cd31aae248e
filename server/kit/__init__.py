"""What algorithms are made of: their state and table, options, shared steps, and measures."""
