"""How sure a comparison is: intervals over seeds, pairs of algorithms, and profiles and ranks over problems."""
