"""A package of a paper that does not exist, for the tests of the ledger and the command line."""

__version__ = "1.2.0"
