"""Where files are: paths and URLs, atomic writes, locks, checksums."""
