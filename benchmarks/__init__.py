"""Speed comparisons: each module times one operation and its rivals and returns rows for `recapture bench`."""
