"""What stands behind the claims."""
