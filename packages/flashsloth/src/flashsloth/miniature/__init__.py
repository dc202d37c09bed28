"""The small model that this package trains by itself."""
