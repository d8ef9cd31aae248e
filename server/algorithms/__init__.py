"""The algorithms, one file each, in the symbols of their papers, by family."""
