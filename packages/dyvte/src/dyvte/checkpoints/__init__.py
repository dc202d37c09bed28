"""Official checkpoints: names of their weights, conversion both ways, gates on disk."""
