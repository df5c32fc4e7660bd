"""Worker processes and threads: pools, signals, and exit with the parent."""
