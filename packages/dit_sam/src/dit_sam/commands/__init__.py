"""The command `dit-sam`."""
