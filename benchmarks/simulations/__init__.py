"""What the policies do over time, in virtual time: `python -m benchmarks.simulations [--quick] [--docs]`.

Every simulation runs the library's own `Policy`, `Retry`, `Budget`, `Hedge` and `fallback` against a small model of a
server, under `mlkit.testing.virtual_time`. Nothing is measured in real seconds: the same seed gives the same figures.
"""
