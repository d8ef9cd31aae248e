"""How good a state is: a row of history, F and its gradient at the true lower solution, directions at one point."""
