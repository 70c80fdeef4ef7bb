"""How torch runs a model: in which precision, compiled or not, replayed or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from mlkit._optional import require
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["PLAIN", "Modes"]


@final
class Modes:
    """The arguments, checked.

    Attributes:
        autocast: The dtype to cast to where torch deems it right; None for no casting.
        compile: What to pass to `torch.compile`; None to leave the model as it is.
        graphs: Whether calls are captured as CUDA graphs.
    """

    __slots__ = ("autocast", "compile", "graphs")

    def __init__(self, autocast: Any, options: dict[str, Any] | None, *, graphs: bool) -> None:
        self.autocast, self.compile, self.graphs = autocast, options, graphs

    @classmethod
    def chosen(cls, *, owner: str, autocast: object, compile: object, graphs: object) -> Modes:  # noqa: A002 - torch's word
        """Return what the arguments of *owner* come to, or refuse them."""
        options: dict[str, Any] | None = None
        if isinstance(compile, Mapping):
            options = {**compile}
        elif compile is True:
            options = {}
        elif compile is not False:
            raise ConfigurationError(
                f"{owner}(compile=...)",
                compile,
                "True, False or a dict of options of torch.compile",
            )
        if not isinstance(graphs, bool):
            raise ConfigurationError(f"{owner}(graphs=...)", graphs, "True or False")
        if graphs and options is not None:
            raise ConfigurationError(
                f"{owner}(graphs=...)",
                graphs,
                "False together with compile=",
                hint="compile={'mode': 'reduce-overhead'} lets torch.compile capture graphs itself",
            )
        dtype = _dtype(owner, autocast)
        plain = dtype is None and options is None and not graphs
        return PLAIN if plain else cls(dtype, options, graphs=graphs)

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on, as JSON data; empty for a model as it is."""
        found: dict[str, Any] = {}
        if self.autocast is not None:
            found["autocast"] = str(self.autocast)
        if self.compile is not None:
            found["compile"] = str(sorted(self.compile.items()))
        return found

    def casting(self, device_type: str) -> AbstractContextManager[Any]:
        """Return the context to run the model in."""
        if self.autocast is None:
            from contextlib import nullcontext

            return nullcontext()
        import torch

        dtype = None if self.autocast is True else self.autocast
        context: AbstractContextManager[Any] = torch.autocast(device_type, dtype=dtype)
        return context


PLAIN = Modes(None, None, graphs=False)


def _dtype(owner: str, autocast: object) -> Any:
    if autocast is False or autocast is None:
        return None
    torch = require("torch", extra="torch", feature=f"{owner}(autocast=...)")
    dtype = getattr(torch, autocast, None) if isinstance(autocast, str) else autocast
    if autocast is True or dtype in (torch.float16, torch.bfloat16):
        return dtype
    raise ConfigurationError(
        f"{owner}(autocast=...)",
        autocast,
        "True, False, 'bfloat16' or 'float16'",
        hint="True takes the device's default: bfloat16 on the CPU, float16 on CUDA",
    )
