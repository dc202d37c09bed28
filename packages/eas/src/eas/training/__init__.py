"""The search for what can go, and the tuning without it."""
