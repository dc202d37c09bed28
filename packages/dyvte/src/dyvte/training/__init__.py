"""Training the gates of a frozen host."""
