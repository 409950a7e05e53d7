"""`curate select`: the verb's function is in stage.py."""
