"""A head that works."""

from __future__ import annotations

__all__ = ["Linear"]


class Linear:
    """A weighted sum.

    Args:
        width: Number of inputs.
        bias: What is added to the sum.
    """

    def __init__(self, width: int, bias: float = 0.0) -> None:
        self.weights, self.bias = [1.0] * width, bias

    def __call__(self, row: list[float]) -> float:
        """Return the weighted sum of *row*."""
        return self.bias + sum(w * x for w, x in zip(self.weights, row, strict=True))
