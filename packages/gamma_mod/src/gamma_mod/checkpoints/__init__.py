"""Official releases and this package's own files."""
