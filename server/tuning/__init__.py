"""Tuning: which options each algorithm of a config does best with, found on seeds that its runs do not use."""
