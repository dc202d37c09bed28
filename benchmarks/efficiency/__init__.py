"""The pieces of `benchmarks/efficiency.py`: arms, questions, costs, pages."""
