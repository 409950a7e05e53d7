"""`curate validate`: the verb's function is in stage.py."""
