"""Problems with a local lower level: every client adapts to tasks of its own."""
