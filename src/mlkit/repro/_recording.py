"""A run that is written down while it happens: its manifest before, its results and how it ended after."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit.repro._results import kept

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from mlkit.repro._manifest import Manifest

__all__ = ["REDIRECT", "Recording"]

# What `rerun` sets for the command that it starts: where the record was, and where the new one is to go.
REDIRECT = "MLKIT_REPRO_RERUN"


@final
class Recording:
    """A run under way, from `Manifest.recording`.

    The file is written when the block begins (`status` is `"running"`), and again when it ends, so that a run that was
    killed leaves one, too. Use from one thread at a time.

    Attributes:
        path: The file.
    """

    __slots__ = ("_change", "_manifest", "_results", "_started", "path")

    path: Path

    def __init__(
        self,
        manifest: Manifest,
        path: str | os.PathLike[str],
        change: Callable[[Manifest, dict[str, Any]], Manifest],
    ) -> None:
        from pathlib import Path

        asked = Path(path).absolute()
        before, _, instead = os.environ.get(REDIRECT, "").partition("\n")
        self.path = Path(instead) if instead and Path(before) == asked else asked
        self._manifest = change(manifest, {"record": str(asked)})
        self._change = change
        self._results: dict[str, Any] = {}
        self._started = 0.0

    def result(self, name: str, value: object) -> None:
        """Keep a result, which a later `rerun` compares with its own.

        Numbers are kept exactly, arrays and tensors of up to 1 MiB whole, everything else by its `fingerprint`. The
        values of a mapping (a `state_dict()`, a dict of metrics) are results of their own: `"weights.0.bias"`.

        Args:
            name: Its name. A second result of that name takes the place of the first.
            value: Anything that `fingerprint` takes.

        Raises:
            ConfigurationError: If *name* is no text, or *value* an empty mapping.
            FingerprintError: If the value has no faithful content hash.
        """
        found = kept(name, value)
        parts = f"{name}."
        for old in [old for old in self._results if old == name or old.startswith(parts)]:
            del self._results[old]  # of a mapping that had other keys, too
        self._results.update(found)

    def __enter__(self) -> Self:
        """Write the manifest as it was captured.

        Raises:
            OSError: If the file cannot be written: now, not after hours of training.
        """
        self._started = current().monotonic()
        self._write("running", None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        """Write down how the run ended, and its results; `sys.exit(0)` completes it."""
        if isinstance(error, SystemExit) and not error.code:
            kind = None
        self._write("completed" if kind is None else "failed", kind)

    def _write(self, status: str, kind: type[BaseException] | None) -> None:
        outcome = {
            "status": status,
            "error": None if kind is None else kind.__qualname__,
            "seconds": round(current().monotonic() - self._started, 6),
        }
        facts = {"outcome": outcome, "results": self._results}
        self._change(self._manifest, facts).save(self.path)
