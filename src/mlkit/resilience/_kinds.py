"""What a value is, without importing what it may come from: a tensor exists only where torch was imported."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_array", "is_tensor", "of_tenacity"]


def is_tensor(value: Any) -> bool:
    """Return whether *value* is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_array(value: Any) -> bool:
    """Return whether *value* is a NumPy array or scalar."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def of_tenacity(value: Any, room: str) -> bool:
    """Return whether *value* is one of tenacity's: of its `"wait"`, its `"stop"` or its `"retry"`."""
    return any(kind.__module__ == f"tenacity.{room}" for kind in type(value).__mro__)
