"""The command line: one file a verb; the work is imported when a verb needs it."""
