"""What backs the claims."""
