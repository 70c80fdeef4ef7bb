"""`mlkit.integrations.lightning` for the package `pytorch_lightning`, whose trainer has a `Logger` of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._optional import require
from mlkit.integrations._recording import late

if TYPE_CHECKING:
    from mlkit.integrations.lightning import RunLogger
else:
    from mlkit.integrations.lightning import _written

__all__ = ["RunLogger"]


def _base() -> type[Any]:
    loggers = require("pytorch_lightning.loggers", extra="lightning", feature="RunLogger")
    base: type[Any] = loggers.Logger
    return base


if not TYPE_CHECKING:
    __getattr__, __dir__ = late(__name__, _written, _base)
