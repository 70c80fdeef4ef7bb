"""Saying early what of a model cannot be sent to a worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip
from mlkit.errors import ConfigurationError
from mlkit.inference._engines.packing import unpacked

if TYPE_CHECKING:
    from mlkit.inference._engines.engine import Engine
    from mlkit.inference._engines.wire import Task

__all__ = ["pickled"]

_DEEPEST = 6
_WIDEST = 200


def pickled(engine: Engine, value: Any, options: dict[str, Any] | None = None) -> bytes:
    """Return *value*, a task or a function with its *options*, as bytes for a worker.

    Raises:
        ConfigurationError: If it cannot be pickled: what of it, and what to do.
    """
    try:
        return bytes(engine.dumps(tuple(value) if options is None else (value, options)))
    except Exception as error:
        raise _refused(engine, value, options, error) from error


def _refused(
    engine: Engine, value: Any, options: dict[str, Any] | None, error: Exception
) -> ConfigurationError:
    why = f"{type(error).__name__}: {clip(str(error), 120)}"
    if options is None:
        task: Task = value
        rows = unpacked(task.rows)
        place = next((i for i, row in enumerate(rows) if not _pickles(engine, row)), 0)
        path, leaf = _culprit(engine, f"row {task.n_before + place}", rows[place])
        return ConfigurationError(
            "map_batches(rows)",
            leaf,
            "rows that can be pickled for a worker",
            hint=f"{path} cannot: {why}",
        )
    if _pickles(engine, value):
        path, leaf = _culprit(engine, "", options)
        hint = f"{path.strip('.')} cannot: {why}"
    else:
        path, leaf = _culprit(engine, "fn", value)
        hint = f"{path} cannot ({why}); pass Loaded(make) with a function that makes the model in the worker"
    return ConfigurationError(
        "map_batches(fn)", leaf, "a function that can be pickled for a worker", hint=hint
    )


def _culprit(engine: Engine, path: str, value: Any) -> tuple[str, Any]:
    """Return the innermost part of *value* that cannot be pickled, and where it is."""
    for _ in range(_DEEPEST):
        for step, part in islice(_parts(value), _WIDEST):
            if not _pickles(engine, part):
                path, value = f"{path}{step}", part
                break
        else:
            break
    return clip(path, 160), value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a pickle of *value* would hold."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"[{key!r}]", part
    elif isinstance(value, (list, tuple, set, frozenset)):
        for place, part in enumerate(value):
            yield f"[{place}]", part
    code = getattr(value, "__code__", None)
    if code is not None:
        cells = zip(code.co_freevars, getattr(value, "__closure__", None) or (), strict=False)
        for name, cell in cells:
            try:
                yield f" -> {name}", cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        for name in _names(code):
            if name in value.__globals__:
                yield f" -> {name}", value.__globals__[name]
    for name in ("__self__", "func", "args", "keywords", "__wrapped__", "_make"):
        if (part := getattr(value, name, None)) is not None:
            yield "" if name in {"_make", "__self__"} else f".{name}", part
    for name, part in (getattr(value, "__dict__", None) or {}).items():
        yield f".{name}", part


def _names(code: Any) -> Iterator[str]:
    """Yield the global names that *code* and the functions inside it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            yield from _names(constant)


def _pickles(engine: Engine, value: Any) -> bool:
    try:
        engine.dumps(value)
    except Exception:  # noqa: BLE001 - whatever it is, it does not
        return False
    return True
