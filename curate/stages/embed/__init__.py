"""`curate embed`: the verb's function is in stage.py."""
