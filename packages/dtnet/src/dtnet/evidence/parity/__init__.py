"""Golden cases against this package."""
