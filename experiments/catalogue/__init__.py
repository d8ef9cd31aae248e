"""What `fedbilevel list` prints: every name that a config can hold, and what each of them takes."""
