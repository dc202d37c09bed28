"""What the tests of ten packages share: plain functions, imported by name.

For tests only; the extra `tenfold[testing]` brings what it imports.
"""
