"""Running out of memory: knowing it when it happens, and letting go of what failed."""

from __future__ import annotations

import sys

__all__ = ["is_out_of_memory", "release"]

_SIGNS = (
    "out of memory",  # CUDA, HIP, MPS, XPU, in several capitalisations
    "_alloc_failed",  # cuBLAS, cuDNN, cuFFT, cuSOLVER, cuSPARSE
    "can't allocate memory",  # torch's allocator on the CPU
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether *error*, or an error it was raised from, says that memory ran out."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, MemoryError):
            return True
        if isinstance(current, RuntimeError):  # torch.OutOfMemoryError is one
            torch = sys.modules.get("torch")
            if torch is not None and isinstance(current, torch.OutOfMemoryError):
                return True
            try:
                text = str(current).lower()
            except Exception:  # noqa: BLE001 - an error that cannot be shown says nothing about memory
                text = ""
            if any(sign in text for sign in _SIGNS):
                return True
        current = current.__cause__
    return False


def release(error: BaseException) -> None:
    """Drop every local variable that the traceback of *error* keeps alive, then empty the device's cache.

    Inside the `except` block this would do nothing: the exception being handled still holds its frames.
    """
    from traceback import clear_frames

    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if current.__traceback__ is not None:
            clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__
    torch = sys.modules.get("torch")
    if torch is None:
        return
    for backend in (torch.cuda, getattr(torch, "xpu", None)):
        if backend is not None and backend.is_initialized():
            import gc

            gc.collect()  # what failed may be part of a cycle
            backend.empty_cache()
