"""DyVTE: dynamic visual-token exit for vision-language models (Wu et al., NeurIPS 2025)."""

__version__ = "0.1.0"
