"""`curate view`: the verb's function is in stage.py."""
