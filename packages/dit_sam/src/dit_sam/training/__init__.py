"""Training by the paper's recipe."""
