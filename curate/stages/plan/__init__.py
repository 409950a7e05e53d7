"""`curate plan`: the verb's function is in stage.py."""
