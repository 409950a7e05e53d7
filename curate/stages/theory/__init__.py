"""`curate theory`: the verb's function is in stage.py."""
