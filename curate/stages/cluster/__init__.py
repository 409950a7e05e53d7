"""`curate cluster`: the verb's function is in stage.py."""
