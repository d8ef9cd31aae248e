"""Baselines that do not see two levels."""
