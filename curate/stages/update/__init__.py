"""`curate update`: the verb's function is in stage.py."""
