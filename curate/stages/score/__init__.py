"""`curate score`: the verb's function is in stage.py."""
