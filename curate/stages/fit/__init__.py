"""`curate fit`: the verb's function is in stage.py."""
