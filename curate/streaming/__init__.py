"""A selection as a data set: its samples' byte ranges, read from the original shards."""
