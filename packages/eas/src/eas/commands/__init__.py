"""The command `eas`."""
