"""Host models that a method attaches to or answers with: structure, ragged batches, loading, prompts, answers.

Its modules use torch and are imported by name.
"""
