"""`curate report`: the verb's function is in stage.py."""
