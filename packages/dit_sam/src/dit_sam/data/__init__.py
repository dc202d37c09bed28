"""What is read from disk: REFER's releases, their converted form, gRefCOCO, and own sentences with masks."""
