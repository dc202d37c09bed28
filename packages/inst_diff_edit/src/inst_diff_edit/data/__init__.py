"""What is read from disk, and the mini world in official formats."""
