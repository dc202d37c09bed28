"""Evaluation by the paper's protocol, and a predictor's demonstration."""
