"""Other values in some places of plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._suggest import did_you_mean
from mlkit.errors import ConfigurationError
from mlkit.registry._plain import copy_plain, problem, shown, steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlkit.registry._plain import Found, Path

__all__ = ["changed"]


def changed(
    data: dict[str, Any], changes: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a copy of *data* with *changes* made in the order in which they are given.

    Raises:
        SpecError: If a path leads nowhere; every such path at once.
        ConfigurationError: If *changes* is not a mapping of paths.
    """
    from collections.abc import Mapping

    if not isinstance(changes, Mapping):
        raise ConfigurationError("Spec.with_(changes)", changes, "a mapping of dotted paths")
    made: dict[str, Any] = copy_plain(data)
    problems: list[Found] = []
    for path, value in [(_parse(path), value) for path, value in changes.items()]:
        problems += _put(made, path, value)
    made.update(arguments)
    if problems:
        from mlkit.registry._text import spec_error

        raise spec_error(None, problems)
    return made


def _parse(path: object) -> Path:
    found = steps(path) if isinstance(path, str) else ()
    if not found:
        raise ConfigurationError(
            "Spec.with_(changes)", path, "a path like 'encoder.layers[0].width'"
        )
    return found


def _put(data: Any, path: Path, value: Any) -> list[Found]:
    """Set one value; return what is wrong with its path."""
    for depth, step in enumerate(path):
        last = depth == len(path) - 1
        here = path[: depth + 1]
        if isinstance(step, int):
            if not isinstance(data, list) or step >= len(data):
                n = f"{len(data)} items" if isinstance(data, list) else shown(data)
                return [problem(here, "value", f"there is no item {step}, but {n}")]
        elif not isinstance(data, dict):
            hint = f"; give {{'type': {data!r}, ...}} first" if isinstance(data, str) else ""
            message = f"expected a mapping to change {step!r} in, got {shown(data)}{hint}"
            return [problem(path[:depth], "value", message)]
        elif not last and step not in data:
            return [problem(here, "value", f"there is no {step!r}{did_you_mean(step, data)}")]
        if last:
            data[step] = value
        else:
            data = data[step]
    return []
