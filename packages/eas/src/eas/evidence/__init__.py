"""What backs the claims: golden data, measurements, the miniature's experiments."""
