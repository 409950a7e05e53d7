"""`curate pack`."""
