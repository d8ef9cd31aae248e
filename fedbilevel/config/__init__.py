"""From the text of a config to checked tables, a problem that is built of them, and what a worker has to know."""
