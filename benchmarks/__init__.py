"""What is fast, against what: each module times one operation and its rivals and gives rows for `recapture bench`."""
