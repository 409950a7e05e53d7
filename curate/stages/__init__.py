"""One module is one verb: one public function that reads, computes, commits, and returns the set's name."""
