"""What a stage is, what it is given, and who runs it."""
