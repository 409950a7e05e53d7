"""`curate compare`: the verb's function is in stage.py."""
