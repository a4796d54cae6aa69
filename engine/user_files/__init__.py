"""Files that the user brings with a clip: depth, masks, a clean plate. Read with suspicion, and without torch."""
