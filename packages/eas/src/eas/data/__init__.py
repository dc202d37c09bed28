"""What is read from disk: LLaVA's records, ScienceQA, and the samples that a tuning sees."""
