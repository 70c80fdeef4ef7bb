"""What installed distributions declare as entry points. Reading it imports none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._suggest import clip
from mlkit.registry._entry import Record, Said, check_name, is_target, parse_ref
from mlkit.registry._problem import Problem
from mlkit.registry._table import Table
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Plugins", "scan"]


class Plugins(NamedTuple):
    """What is declared for one registry.

    Attributes:
        table: What can be asked for. Where two distributions claim one name, a record has `claims`.
        problems: What cannot, because its name or its target is none.
    """

    table: Table
    problems: list[Problem]


def scan(registry: str, group: str) -> Plugins:
    """Return the entry points of *group*.

    One that is broken never hides the others. The same line found twice is one distribution found in two places (an
    editable install and a wheel), or two that name one object: no conflict.
    """
    from importlib.metadata import entry_points  # 30 ms that only a registry with plugins pays

    table, problems = Table(), []
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        record = _record(point)
        if isinstance(record, Problem):
            emit("registry.plugin.skipped", registry, entry=point.name, source=record.distribution)
            problems.append(record)
            continue
        known = table.at(record.name, record.said.version)
        if known is None:
            table.put(record, replace=False)
        elif all(claim.target != record.target for claim in (known, *known.claims)):
            known.claims = (*known.claims, record)
    return Plugins(table, problems)


def _record(point: EntryPoint) -> Record | Problem:
    distribution, source = _distribution(point)
    parsed = parse_ref(point.name)
    target, _, extras = point.value.partition("[")
    target = target.strip()
    try:
        name, version = parsed or (point.name, None)
        check_name("entry point", name)
    except ValueError as error:
        return Problem(point.name, "invalid", distribution, target, f"{source}: {error}")
    if not is_target(target):
        message = f"{source}: expected 'package.module:attribute', got {clip(point.value)!r}"
        return Problem(point.name, "invalid", distribution, target, message)
    record = Record(name, source)
    record.target, record.imported, record.distribution = target, False, distribution
    wanted = extras.partition("]")[0].replace(" ", "")
    needs = (f"{distribution}[{wanted}]",) if wanted and distribution else ()
    if version is not None or needs:
        record.said = Said(version=version or 1, requires=needs)
    return record


def _distribution(point: EntryPoint) -> tuple[str, str]:
    dist: Any = point.dist
    try:
        name, version = str(dist.name or ""), str(dist.version or "")
    except Exception:  # noqa: BLE001 - metadata that cannot be read must not hide the plugins of others
        name = version = ""
    if not name:
        return "", "an installed distribution without a name"
    return name, f"distribution {name} {version}".strip()
