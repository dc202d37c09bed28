"""What is read from disk: LLaVA's instruction data, and prompts made of it."""
