"""Minimax methods, min over x, max over y of one loss: descent in x and ascent in y along one field."""
