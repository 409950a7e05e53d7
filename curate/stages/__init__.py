"""One folder or module is one verb: a public function that reads, computes, and commits."""
