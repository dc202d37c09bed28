"""What backs the claims: parity, counted costs, experiments, speed, figures."""
