"""The page of a run: `report.html`, one file with the curves to look into, the tables, the config and the machine."""
