"""What a run takes before it runs: memory and time."""
