"""The command `dyvte`."""
