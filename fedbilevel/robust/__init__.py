"""Robust aggregation: one vector of many, some of which may be anything."""
