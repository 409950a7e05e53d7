"""Where work runs: map and reduce, on this machine or on a Ray cluster. It knows no stage."""
