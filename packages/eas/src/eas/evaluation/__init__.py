"""The paper's benchmarks, from their official files, with adapters at work or without."""
