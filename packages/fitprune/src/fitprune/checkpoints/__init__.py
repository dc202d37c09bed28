"""Official weights, their names and ours; conversion and loading."""
