"""Single-loop methods with second derivatives: x, y and v = H^-1 fy move together, in one round."""
