"""Networks as functions of one flat vector of parameters, and the products of their heads."""
