"""`curate dedup`: the verb's function is in stage.py."""
