"""The miniature: a new task for the mini host that it was not trained on."""
