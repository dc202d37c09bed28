"""Exits on the mini host that ships with Tenfold: every answer under every exit as a table, and gates trained on it."""
