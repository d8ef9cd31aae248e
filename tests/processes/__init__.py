"""Processes, ports and folders of the tests: what starts them, looks into them, and ends what is left of them."""
