"""Weights from elsewhere: the authors' releases, SAM's and BERT's, and back."""
