"""The package measured side by side with its peers, on loopback: ``python -m benchmarks``."""
