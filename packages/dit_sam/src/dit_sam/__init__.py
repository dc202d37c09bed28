"""DIT: deep instruction tuning of SAM for referring segmentation (Huang et al., ACM Multimedia 2024)."""

__version__ = "0.1.0"
