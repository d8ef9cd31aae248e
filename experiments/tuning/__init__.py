"""Tuning as a person sees it: the command, what is shown while it goes on, and what it writes and says."""
