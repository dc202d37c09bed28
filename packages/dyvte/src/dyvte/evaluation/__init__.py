"""The paper's evaluation: benchmarks with and without exit, the three-stage study, a demonstration."""
