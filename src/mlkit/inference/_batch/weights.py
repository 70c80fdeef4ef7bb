"""Which weights a module has, told apart at little cost."""

from __future__ import annotations

from typing import Any

from mlkit._digest import digest, short

__all__ = ["weights_digest"]

_N_SAMPLES = 64


def weights_digest(module: Any) -> str | None:
    """Return a short digest over names, dtypes, shapes and 64 evenly spaced values of each tensor of *module*.

    Training moves all of them; a change of single values may go unnoticed. None for what is no module.
    """
    if module is None:
        return None
    return short(digest([[name, *_sample(value)] for name, value in module.state_dict().items()]))


def _sample(value: Any) -> list[Any]:
    import torch

    if not isinstance(value, torch.Tensor):
        return [type(value).__name__]  # extra state of any kind
    described: list[Any] = [str(value.dtype), list(value.shape)]
    if value.layout != torch.strided or value.is_quantized or value.is_meta or not value.numel():
        return described
    flat = value.detach().reshape(-1)
    places = torch.linspace(0, len(flat) - 1, min(len(flat), _N_SAMPLES), dtype=torch.float64)
    values = flat[places.long().to(flat.device)].cpu()
    return [
        *described,
        values.to(torch.complex128 if values.is_complex() else torch.float64).tolist(),
    ]
