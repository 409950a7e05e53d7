"""`curate audit`: the verb's function is in stage.py."""
