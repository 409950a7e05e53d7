"""`curate forget`: samples leave the catalog, its exports, and if wanted the shards."""
