"""Dense solves, for problems small enough: what every estimate of a hypergradient is held against."""
