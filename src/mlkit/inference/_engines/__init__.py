"""Somewhere else to run offline batches: what goes to a worker, and what comes back."""
