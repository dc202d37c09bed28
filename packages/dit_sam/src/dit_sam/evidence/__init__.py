"""What stands behind each claim: parity, closed formulas, the miniature, speed."""
