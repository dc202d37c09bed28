"""Data: the mini world, the official file formats, and the mini host model."""
