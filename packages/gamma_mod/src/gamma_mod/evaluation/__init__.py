"""Evaluation: settings, answers, benchmarks, the demonstration."""
