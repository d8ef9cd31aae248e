"""From a command line to runs: on which engine, whose code, what is shown meanwhile, and what is said at the end."""
