"""Each block beside its peers: `python -m benchmarks [BLOCK ...] [--quick]`."""
