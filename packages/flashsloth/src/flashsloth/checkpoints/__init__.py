"""Official releases and this package's folders."""
