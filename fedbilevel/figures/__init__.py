"""Figures: curves of histories over what was spent, in the colours of the algorithms."""
