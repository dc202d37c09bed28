"""The mini model of this paper."""
