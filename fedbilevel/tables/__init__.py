"""Tables of results: what each algorithm spent and where it ended, and how sure a comparison is."""
