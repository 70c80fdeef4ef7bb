"""A model card: one Markdown page of what a store knows of a version. Whatever people wrote stays text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlkit.models._signature import Field
    from mlkit.models._version import Change, ModelVersion

__all__ = ["card"]

# All that means something to Markdown within a line; HTML and addresses are seen to below.
_SPECIAL = frozenset("\\`*_[]|~$")
_MAX_TEXT, _MAX_BLOCK = 2_000, 20_000


def card(version: ModelVersion, changes: Iterable[Change], aliases: Mapping[str, int]) -> str:
    """Return the card of a version: equal for equal stores, with nothing of when or where it was made.

    Args:
        version: The version.
        changes: The history of its model.
        aliases: The aliases of its model.
    """
    names = [alias for alias, number in sorted(aliases.items()) if number == version.number]
    facts = {
        "digest": version.digest,
        "stored as": f"{version.format}, {version.n_bytes:,} bytes",
        "saved": f"{_instant(version.time)} by {version.who}",
        "aliases": ", ".join(names) or "none",
        "run": version.run or "none",
    }
    tags = [(f"tag {name}", value) for name, value in sorted(version.tags.items())]
    manifest = version.manifest
    parts = [
        f"# {_text(version.ref)}",
        _table(("fact", "value"), [*facts.items(), *tags]),
        "## Metrics",
        _metrics(version.metrics),
        "## Signature",
        *_signature(version),
        "## Data",
        _data(manifest),
        "## Manifest",
        _block(manifest),
        "## Spec",
        _block(version.spec),
        "## History",
        _history(version.number, changes),
    ]
    return "\n\n".join(parts) + "\n"


def _metrics(metrics: Mapping[str, float]) -> str:
    rows = [(name, repr(value)) for name, value in sorted(metrics.items())]
    return _table(("metric", "value"), rows) if rows else "None were recorded."


def _signature(version: ModelVersion) -> list[str]:
    signature = version.signature
    if signature is None:
        return ["None was recorded."]
    try:
        parts = [("Takes", signature.inputs), ("Gives", signature.outputs)]
    except ConfigurationError:  # plain data of another form
        return [_block(signature.to_dict())]
    return [f"{verb}:\n\n{_fields(fields)}" for verb, fields in parts if fields]


def _fields(fields: Sequence[Field]) -> str:
    rows = []
    for field in fields:
        shape = ", ".join("any" if size is None else str(size) for size in field.shape)
        rows.append((field.name or "the array", field.dtype, f"({shape})"))
    return _table(("name", "dtype", "shape"), rows)


def _data(manifest: Mapping[str, Any] | None) -> str:
    """Return what a manifest says of data: under `data`, or in the identity that `mlkit.repro` writes."""
    for part in (manifest, (manifest or {}).get("identity")):
        if isinstance(part, dict) and part.get("data"):
            data = part["data"]
            if isinstance(data, dict):
                rows = [(name, _plain(value)) for name, value in sorted(data.items())]
                return _table(("data", "fingerprint"), rows)
            return _block(data)
    return "None was recorded."


def _history(number: int, changes: Iterable[Change]) -> str:
    rows = []
    for change in changes:
        if number not in {change.version, change.previous}:
            continue
        evidence = "; ".join(
            f"{name}: {_plain(said)}" for name, said in sorted(change.evidence.items())
        )
        subject = f"{change.alias} to {change.version}" if change.alias else str(change.version)
        if change.previous is not None and change.alias:
            subject += f" from {change.previous}"
        rows.append((_instant(change.time), change.kind, subject, change.who, change.why, evidence))
    return _table(("when", "what", "version", "who", "why", "evidence"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(map(_text, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _block(value: object) -> str:
    """Return plain data as a block of JSON: ASCII, and no line of it can be a fence, since each line ends in JSON."""
    if value is None:
        return "None was recorded."
    content = json.dumps(value, indent=2, sort_keys=True)
    if len(content) > _MAX_BLOCK:
        content = content[:_MAX_BLOCK] + "\n... (cut)"
    return f"````json\n{content}\n````"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _text(text: str) -> str:
    """Return text that shows as it is, in one line, whatever is in it; what does not print is shown by its number."""
    shown = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "... (cut)"
    return "".join(map(_character, shown)).replace("www.", "www\\.").replace("://", "\\://") or " "


def _character(character: str) -> str:
    if character in "<>&":
        return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}[character]
    if character in _SPECIAL:
        return "\\" + character
    if character in "\n\r\t":
        return " "
    if not character.isprintable():  # controls, and what turns the direction of writing
        return f"\\\\u{ord(character):04x}"
    return character


def _instant(seconds: float) -> str:
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return repr(seconds)
