"""E3-FaceNet."""

__version__ = "0.1.0"
