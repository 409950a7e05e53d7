"""`curate probe`: the verb's function is in stage.py."""
