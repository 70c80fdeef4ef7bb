"""The last good answers of one fallback, by the arguments they were for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit.errors import DegradedWarning, DigestError
from mlkit.resilience._kinds import is_array, is_tensor
from mlkit.resilience._leaves import is_table
from mlkit.resilience._locks import fork_safe_lock
from mlkit.resilience._rows import copied, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Store"]


@final
class Store:
    """Good answers by key, the least recently used going first. Thread-safe."""

    __slots__ = ("_kept", "_key", "_lock", "_max_age", "_maxsize", "_warned", "name")

    def __init__(
        self, max_age: float, key: Callable[..., Hashable] | None, maxsize: int, name: str
    ) -> None:
        self._max_age, self._key, self._maxsize, self.name = max_age, key, maxsize, name
        self._kept: dict[Hashable, tuple[float, Any]] = {}
        self._lock = fork_safe_lock()
        self._warned = False

    @property
    def keyed(self) -> bool:
        """Whether the user says what tells arguments apart."""
        return self._key is not None

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable | None:
        """Return what tells these arguments from others, or None if there is nothing."""
        from mlkit._digest import digest

        try:
            if self._key is not None:
                key = self._key(*args, **kwargs)
                hash(key)
                return key
            return digest([_plain(args), _plain(kwargs)] if kwargs else _plain(args))
        except Exception as error:  # noqa: BLE001 - the answer is there; only keeping it fails
            if not self._warned:
                self._warned = True
                import warnings

                hint = "; give stale(key=...)" if isinstance(error, DigestError) else ""
                warnings.warn(
                    f"tier {self.name!r} keeps nothing: {type(error).__name__}: {error}{hint}",
                    DegradedWarning,
                    stacklevel=2,
                )
            return None

    def keep(self, key: Hashable | None, answer: Any) -> None:
        """Keep a copy of *answer*, without the graph that it came from."""
        if key is None:
            return
        entry = current().monotonic(), copied(_without_graph(answer))
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = entry
            if len(self._kept) > self._maxsize:
                del self._kept[next(iter(self._kept))]

    def find(self, key: Hashable | None) -> tuple[Any] | None:
        """Return a copy of what was kept, as a tuple of one, or None."""
        if key is None:
            return None
        now = current().monotonic()
        with self._lock:
            entry = self._kept.get(key)
            if entry is None or now - entry[0] > self._max_age:
                self._kept.pop(key, None)
                return None
            self._kept[key] = self._kept.pop(key)
        return (copied(entry[1]),)

    def missing(self) -> LookupError:
        """Return the error that says that nothing was kept."""
        return LookupError(f"no answer to these arguments in the last {self._max_age:g} s")


def _without_graph(answer: Any) -> Any:
    if is_tensor(answer):
        return answer.detach()
    parts = parts_of(answer)
    if parts is None or not any(is_tensor(part) or parts_of(part) for part in parts.values()):
        return answer
    from mlkit.resilience._rows import rebuilt

    return rebuilt(answer, {key: _without_graph(part) for key, part in parts.items()})


def _plain(value: Any) -> Any:
    """Return *value* with its tensors and tables as something that has a digest."""
    from mlkit._digest import digest_bytes

    if is_tensor(value):
        if value.requires_grad or value.device.type != "cpu":
            value = value.detach().cpu()
        if value.dtype.is_floating_point and value.element_size() == 2:  # NumPy has no bfloat16
            return [str(value.dtype), value.float().numpy()]
        return value.numpy()
    if is_array(value) and value.dtype.kind in "fiub" and value.ndim:
        return [
            value.dtype.str,
            list(value.shape),
            digest_bytes(value.tobytes()),
        ]  # far faster than the general encoding for a small row
    if is_table(value):
        names = list(value.columns) if value.ndim > 1 else [value.name]
        return [names, value.to_numpy().tolist()]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    parts = parts_of(value, loose=True)
    if parts is None:
        return value
    if type(value) is tuple:
        return [_plain(item) for item in value]
    plain = {name: _plain(item) for name, item in parts.items()}
    return plain if isinstance(value, dict) else [type(value).__qualname__, plain]
