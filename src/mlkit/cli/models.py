"""`python -m mlkit models`: what a store of versions holds, and the changes that people make by hand."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mlkit.cli._printing import counted, print_json, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from mlkit.integrations.mlflow_models import MlflowModelStore
    from mlkit.models import Change, ModelStore, ModelVersion

    Store = ModelStore | MlflowModelStore

__all__ = ["add_arguments", "run"]

_REFUSED, _MOVED = 3, 4
_STATUS = (
    f"Exit status: 0 if the alias is where it should be now, {_REFUSED} if a check refused the version, {_MOVED} if "
    "another version than expected holds the alias, 1 on other trouble."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's words.

    Args:
        parser: The command's own parser.
    """
    parser.description = (
        "Model versions. STORE is a folder, or the tracking URI of an MLflow, such as sqlite:///mlflow.db or "
        "http://host:5000."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = {}
    for name, (_, purpose) in _ACTIONS.items():
        made[name] = actions.add_parser(
            name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}."
        )
        made[name].add_argument("store", metavar="STORE", help="a folder, or a tracking URI")
    ref = "NAME@ALIAS, NAME@7 or NAME@sha256:..."
    made["list"].add_argument("name", nargs="?", metavar="NAME", help="versions of one model")
    made["show"].add_argument("ref", metavar="REF", help=ref)
    made["show"].add_argument("--card", action="store_true", help="print the model card, Markdown")
    made["history"].add_argument("name", metavar="NAME", help="the model")
    for word in ("first", "second"):
        made["compare"].add_argument(word, metavar=word.upper(), help=ref)
    made["promote"].add_argument("ref", metavar="REF", help=ref)
    made["promote"].add_argument("--to", default="champion", metavar="ALIAS", help="(champion)")
    made["promote"].add_argument(
        "--check",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="a check, or a list of checks, that must let it pass; the module is imported",
    )
    made["rollback"].add_argument("name", metavar="NAME", help="the model")
    made["rollback"].add_argument(
        "alias", nargs="?", default="champion", metavar="ALIAS", help="(champion)"
    )
    for name in ("promote", "rollback"):
        made[name].epilog = _STATUS
        made[name].add_argument(
            "--expect",
            type=_expected,
            default=...,
            metavar="N",
            help="only if this version holds the alias now"
            + ("; none: only if nothing does" if name == "promote" else ""),
        )
        made[name].add_argument("--why", default="", help="for the history")
        made[name].add_argument("--who", help="for the history (user@host)")
    made["verify"].epilog = "Exit status: 0 if all is what was saved, 1 if something is not."
    made["verify"].add_argument("name", nargs="?", metavar="NAME", help="one model only")
    made["verify"].add_argument(
        "--signed-by",
        action="append",
        default=[],
        metavar="PEM",
        help="and one of these keys has signed each version",
    )
    made["export"].add_argument("ref", metavar="REF", help=ref)
    made["export"].add_argument("path", metavar="PATH", help="a new folder, or a new file *.tar")
    for action in made.values():
        action.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run one action.

    Args:
        options: The words, parsed.

    Returns:
        0 if all is well; 1 if what was asked about is wrong; of a promotion or rollback also 3 if a check refused it,
        4 if the alias was not where it was expected.
    """
    from mlkit.errors import AliasConflictError, ChecksFailedError

    action, _ = _ACTIONS[options.action]
    try:
        return action(_open(options.store, getattr(options, "who", None)), options)
    except (AliasConflictError, ChecksFailedError) as error:
        print(f"mlkit models: {error}", file=sys.stderr)
        return _MOVED if isinstance(error, AliasConflictError) else _REFUSED


def _open(place: str, who: str | None) -> Store:
    """Return the store at *place*, which must be there: a word that is misspelt is no empty store."""
    from pathlib import Path

    from mlkit.errors import ConfigurationError

    uri = place.removeprefix("mlflow:")
    if uri.startswith("sqlite:///"):  # MLflow would make the database
        file = uri.removeprefix("sqlite:///").partition("?")[0]
        if not Path(file).is_file():
            raise ConfigurationError("STORE", place, "a database that exists")
    if "://" in uri:
        from mlkit.integrations.mlflow_models import MlflowModelStore

        return MlflowModelStore(uri, who=who)
    if not Path(place).is_dir():
        raise ConfigurationError("STORE", place, "a folder that exists, or a tracking URI")
    from mlkit.models import ModelStore

    return ModelStore(place, who=who)


def _list(store: Store, options: argparse.Namespace) -> int:
    names = store.names() if options.name is None else [options.name]
    found = {name: (store.versions(name), _held(store.aliases(name))) for name in names}
    if options.json:
        every = [
            _facts(version, held.get(version.number, []))
            for versions, held in found.values()
            for version in versions
        ]
        print_json(every)
        return 0
    for versions, held in found.values():
        for version in versions:
            aliases = ", ".join(held.get(version.number, []))
            say(
                f"{version.ref:<24} {_day(version.time)}  {_content(version):<32} {aliases}".rstrip()
            )
    if not found:
        print(f"there are no models in {options.store}", file=sys.stderr)
    return 0


def _show(store: Store, options: argparse.Namespace) -> int:
    version = store.get(options.ref)
    if options.card:
        card = store.card(version)
        print_json({"card": card}) if options.json else print(card)
        return 0
    aliases = _held(store.aliases(version.name)).get(version.number, [])
    facts = _facts(version, aliases)
    parts = {part: getattr(version, part) for part in ("spec", "signature", "manifest")}
    if options.json:
        print_json({**facts, **parts})
        return 0
    say(version.ref)
    for key, value in facts.items():
        if key not in {"ref", "name", "number"} and value not in (None, "", [], {}):
            say(f"  {key:<10} {_shown(key, value)}")
    for part, content in parts.items():
        if content is not None:
            import json

            text = json.dumps(content, ensure_ascii=False)
            say(f"  {part:<10} {text if len(text) <= 300 else text[:297] + '...'}")
    return 0


def _history(store: Store, options: argparse.Namespace) -> int:
    changes = store.history(options.name)
    if options.json:
        print_json([_change(change) for change in changes])
        return 0
    for change in changes:
        say(_line(change))
        for check, said in change.evidence.items():
            verdict = said if isinstance(said, str) else said.get("why", "")
            say(f"       {check}: {verdict}")
    return 0


def _compare(store: Store, options: argparse.Namespace) -> int:
    found = store.compare(options.first, options.second)
    if options.json:
        print_json(found.to_dict())
        return 0
    for line in str(found).splitlines():
        say(line)
    return 0


def _promote(store: Store, options: argparse.Namespace) -> int:
    checks = [check for target in options.check for check in _checks(target)]
    version = store.get(options.ref)
    change = store.promote(
        version.name,
        version,
        to=options.to,
        expect=options.expect,
        checks=checks,
        why=options.why,
    )
    return _print_change(change, version.name, options)


def _rollback(store: Store, options: argparse.Namespace) -> int:
    from mlkit.errors import ConfigurationError

    if options.expect is None:
        raise ConfigurationError("--expect", "none", "a version: there is one to roll back")
    change = store.rollback(options.name, options.alias, expect=options.expect, why=options.why)
    return _print_change(change, options.name, options)


def _verify(store: Store, options: argparse.Namespace) -> int:
    from mlkit.models import signed_by

    require = signed_by(*options.signed_by) if options.signed_by else None
    found = store.verify(options.name, require=require)
    if options.json:
        broken = [one._asdict() for one in found.broken]
        print_json({"n_versions": found.n_versions, "n_files": found.n_files, "broken": broken})
        return int(bool(broken))
    for one in found.broken:
        say(f"{one.ref}: {one.file}: {one.problem}")
    looked_at = f"{counted(found.n_versions, 'version')}, {counted(found.n_files, 'file')}"
    if found.broken:
        print(f"{looked_at}: {len(found.broken)} not what was saved", file=sys.stderr)
        return 1
    print(f"{looked_at}: all is what was saved")
    return 0


def _export(store: Store, options: argparse.Namespace) -> int:
    version = store.get(options.ref)
    path = store.export(version, options.path)
    if options.json:
        print_json({"ref": version.ref, "digest": version.digest, "path": path})
    else:
        say(f"{version.ref} {version.digest} -> {path}")
    return 0


_ACTIONS: dict[str, tuple[Callable[[Any, argparse.Namespace], int], str]] = {
    "list": (_list, "list models and versions, and which aliases point at them"),
    "show": (_show, "say all about one version"),
    "history": (_history, "print every change of a model: who, when, why, on what evidence"),
    "compare": (_compare, "say what differs between two versions, down to their tensors"),
    "promote": (_promote, "point an alias at a version, if every check lets it pass"),
    "rollback": (_rollback, "point an alias at the version that held it before"),
    "verify": (_verify, "read every file again, and name those that are not what was saved"),
    "export": (_export, "write a version as one folder or file, which another store can import"),
}


def _checks(target: str) -> list[Any]:
    """Return the checks at `package.module:name`, from the current folder too."""
    from importlib import import_module

    from mlkit._suggest import clip
    from mlkit.errors import ConfigurationError

    name, colon, variable = target.partition(":")
    expected = "MODULE:NAME of a check, or of a list of checks"
    if not colon or not all(part.isidentifier() for part in [*name.split("."), variable]):
        raise ConfigurationError("--check", target, expected)
    try:
        found = getattr(import_module(name), variable)
    except Exception as error:
        reason = f"{type(error).__name__}: {clip(str(error), 200)}"
        raise ConfigurationError("--check", target, expected, hint=reason) from error
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _expected(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal():
        import argparse

        raise argparse.ArgumentTypeError(f"expected a version's number or none, got {text!r}")
    return int(text)


def _held(aliases: dict[str, int]) -> dict[int, list[str]]:
    held: dict[int, list[str]] = {}
    for alias, number in aliases.items():
        held.setdefault(number, []).append(alias)
    return held


def _facts(version: ModelVersion, aliases: list[str]) -> dict[str, Any]:
    return {
        "ref": version.ref,
        "name": version.name,
        "number": version.number,
        "aliases": aliases,
        "digest": version.digest,
        "format": version.format,
        "n_bytes": version.n_bytes,
        "time": version.time,
        "who": version.who,
        "run": version.run,
        "metrics": {key: _number(value) for key, value in version.metrics.items()},
        "tags": dict(version.tags),
    }


def _number(value: float) -> float | str:
    from math import isfinite

    return value if isfinite(value) else repr(value)  # JSON has no NaN


def _change(change: Change) -> dict[str, Any]:
    return change._asdict() | {"evidence": dict(change.evidence)}


def _print_change(change: Change, name: str, options: argparse.Namespace) -> int:
    if options.json:
        print_json({"name": name, **_change(change)})
    else:
        was = "" if change.previous is None else f" (was {change.previous})"
        say(f"{name}@{change.alias} points at version {change.version}{was}")
    return 0


def _line(change: Change) -> str:
    moved = "" if change.alias is None else f" {change.alias}"
    was = "" if change.previous is None else f" (was {change.previous})"
    why = f": {change.why}" if change.why else ""
    what = f"{change.kind.replace('_', ' ')}{moved} {change.version}{was}"
    return f"{change.sequence:>5}  {_day(change.time)}  {what} by {change.who}{why}"


def _shown(key: str, value: Any) -> str:
    if key == "time":
        return _day(value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def _content(version: ModelVersion) -> str:
    from mlkit._digest import short

    return f"{version.format} {version.n_bytes:,} B {short(version.digest) if version.digest else ''}".strip()


def _day(seconds: float) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%SZ}"
