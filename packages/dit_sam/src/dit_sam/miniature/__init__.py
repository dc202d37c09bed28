"""The mini model: a promptable segmenter of 48 pixels that plays SAM, and what it is trained from."""
