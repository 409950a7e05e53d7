"""`curate export`: the verb's function is in stage.py."""
