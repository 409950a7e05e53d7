"""`curate import-vectors`."""
