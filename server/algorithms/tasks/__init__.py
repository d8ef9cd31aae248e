"""Methods of a local lower level: each client adapts to tasks of its own."""
