"""What is read from disk: conversations for training, questions, prompts."""
