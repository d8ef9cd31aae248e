"""How sure finished runs are of what they say of unseen tasks: posteriors, ensembles, temperatures, and measures."""
