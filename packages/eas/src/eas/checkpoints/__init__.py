"""Official checkpoints and this package's folders."""
