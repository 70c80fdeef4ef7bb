"""What installed distributions declare as entry points. Reading it imports none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlkit.registry._entry import Entry, Record, check_name, parse_ref
from mlkit.registry._table import Table
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["scan"]


def scan(registry: str, group: str) -> Table:
    """Return a table of the entry points of *group*.

    One that is broken never hides the others: a name that cannot be one is left out with an event, and two
    distributions that claim one name are both recorded, to be reported when the name is asked for.
    """
    from importlib.metadata import (
        entry_points,
    )  # 30 ms that only a registry with plugins should pay

    table = Table()
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        source = _distribution(point)
        parsed = parse_ref(point.name)
        try:
            name, version = parsed or ("", None)
            check_name("entry point", name)
        except ValueError:
            emit("registry.plugin.skipped", registry, entry=point.name, source=source)
            continue
        target = point.value.partition("[")[0].strip()
        entry = Entry(name, version or 1, target, source)
        known = table.find(name, entry.version)
        if known is None:
            table.put(registry, Record(entry, target), replace=False)
        elif known.owner != target and known.conflict is None:
            known.conflict = entry  # the same line twice is one distribution found in two places
    return table


def _distribution(point: EntryPoint) -> str:
    dist = point.dist
    return (
        f"distribution {dist.name} {dist.version}"
        if dist is not None
        else "an installed distribution"
    )
