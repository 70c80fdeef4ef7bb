"""`python -m mlkit flags`: whether a flag file is right, what a new one changes, why a flag answers so, what may go."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mlkit.cli._printing import annotate, counted, print_json, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from mlkit.flags import FlagDiff, Flags, Problem, StaleFlag

__all__ = ["add_arguments", "run"]

_GRAIN = 1e-8  # a few of 2**32 hashes, by which the edges of two splits can miss each other


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's words.

    Args:
        parser: The command's own parser.
    """
    parser.description = "Look into flag files: flagd's flags.json; `-` is the standard input."
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = {
        name: actions.add_parser(
            name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}."
        )
        for name, (_, purpose) in _ACTIONS.items()
    }
    _add_check(made["check"])
    _add_diff(made["diff"])
    _add_explain(made["explain"])
    _add_stale(made["stale"])


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit status: 0 if there is no error, 1 if there is one."
    parser.add_argument("files", nargs="+", metavar="FILE", help="flag files")
    parser.add_argument("--strict", action="store_true", help="a warning is an error")
    _add_format(parser, "github")


def _add_diff(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit status, as of diff(1): 0 if they decide alike, 1 if they differ, 2 on trouble."
    )
    parser.add_argument("old", metavar="OLD", help="the flag file before")
    parser.add_argument("new", metavar="NEW", help="the flag file after")
    parser.add_argument(
        "--context",
        action="append",
        default=[],
        metavar="JSON",
        help="attributes of the units, an object, or @FILE with one or a list of them; with several, shares are their mean",
    )
    parser.add_argument(
        "--units",
        type=int,
        default=10_000,
        metavar="N",
        help="how many made-up units to ask where arithmetic does not tell (default: 10000)",
    )
    parser.add_argument(
        "--ids", metavar="FILE", help="the units to ask of every flag instead, one a line"
    )
    _add_format(parser)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit status: 0, or 1 if the flag cannot be read."
    parser.add_argument("file", metavar="FILE", help="a flag file")
    parser.add_argument("flag", metavar="FLAG", help="the key of a flag")
    parser.add_argument("--key", metavar="UNIT", help="the unit, flagd's targetingKey")
    parser.add_argument(
        "--context", default="{}", metavar="JSON", help="its attributes, or @FILE with them"
    )
    _add_format(parser)


def _add_stale(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit status: 0 if nothing is found, 1 if something is."
    parser.add_argument("file", metavar="FILE", help="a flag file")
    parser.add_argument(
        "--code",
        nargs="+",
        default=[],
        metavar="PATH",
        help="Python files and folders that use the flags",
    )
    parser.add_argument("--today", metavar="DATE", help="the day to count from, e.g. 2026-03-01")
    _add_format(parser, "github")


def _add_format(parser: argparse.ArgumentParser, *more: str) -> None:
    parser.add_argument(
        "--format", choices=("text", "json", *more), default="text", help="how to print it"
    )


def run(options: argparse.Namespace) -> int:
    """Run one action.

    Args:
        options: The words, parsed.

    Returns:
        0 if all is well, 1 if something was found, 2 if `diff` cannot tell.
    """
    action, _ = _ACTIONS[options.action]
    return action(options)


# --- check -------------------------------------------------------------------------------------------------------


def _check(options: argparse.Namespace) -> int:
    from mlkit.errors import FlagFileError

    found: list[tuple[str, Problem]] = []
    for file in options.files:
        try:
            found += ((file, problem) for problem in _load(file).problems)
        except FlagFileError as error:
            found.append((file, _of_whole(file, error)))
    n_errors = sum(problem.severity == "error" for _, problem in found)
    if options.format == "json":
        keys = ("flag", "pointer", "line", "column", "severity", "message")
        print_json(
            [{"file": file} | {key: getattr(one, key) for key in keys} for file, one in found]
        )
    elif options.format == "github":
        for file, one in found:
            annotate(one.severity, one.message, (file, one.line, one.column), title=one.pointer)
    else:
        for file, one in found:
            place = f":{one.line}:{one.column}" if one.line else ""
            say(f"{file}{place}: {one.severity}: {one.pointer or '/'}: {one.message}")
        n_warnings = len(found) - n_errors
        say(f"{counted(n_errors, 'error')}, {counted(n_warnings, 'warning')}")
    return int(n_errors > 0 or (options.strict and bool(found)))


def _of_whole(file: str, error: Exception) -> Problem:
    """Return why a file cannot be used as a whole, with the place that its message begins with."""
    import re

    from mlkit.flags import Problem

    message = str(error).removeprefix(f"{file}: ")
    at = re.match(r"line (\d+), column (\d+): ", message)
    line, column = (int(at[1]), int(at[2])) if at else (0, 0)
    message = message[at.end() :] if at else message
    pointed = re.match(r"(/[^\s:]*): ", message)
    pointer = pointed[1] if pointed else ""
    message = message[pointed.end() :] if pointed else message
    return Problem(None, pointer, message, kept=False, line=line, column=column)


# --- diff --------------------------------------------------------------------------------------------------------


def _diff(options: argparse.Namespace) -> int:
    from mlkit.errors import MlkitError
    from mlkit.flags import diff

    try:
        old, new = _load(options.old), _load(options.new)
        contexts = [one for given in options.context for one in _contexts(given)]
        units = options.units if options.ids is None else _ids(options.ids)
        found = diff(old, new, contexts=contexts, units=units)
        trouble = [
            f"{file}: {problem}"
            for file, flags in ((options.old, old), (options.new, new))
            for problem in flags.problems
            if problem.severity == "error"
        ]
    except MlkitError as error:
        print(f"mlkit flags diff: {error}", file=sys.stderr)
        return 2
    for line in trouble:
        say(f"mlkit flags diff: {line}", file=sys.stderr)
    if options.format == "json":
        print_json([_facts(one) for one in found])
    else:
        for one in found:
            _tell(one)
    return int(bool(found))


def _tell(one: FlagDiff) -> None:
    about = (
        "exactly" if one.exact else f"of {one.n_units:,} units asked, give or take {_margin(one)}"
    )
    say(f"{one.key}: {one.change}, {_percent(one.moved)} of units change variant ({about})")
    for (before, after), share in one.flows.items():
        if before != after and share >= _GRAIN:
            say(f"  {_name(before)} -> {_name(after)}: {_percent(share)}")
    if one.revalued:
        say(f"  {_percent(one.revalued)} keep their variant and get another value")
    if one.exact and one.change == "changed" and one.moved > one.least + 1e-6:
        say(f"  {_percent(one.least)} would do for the same shares: keep the order of the split")
    for note in one.notes:
        say(f"  {note}")
    if one.unknown:
        say(f"  rules also read {', '.join(one.unknown)}: tell with --context")


def _facts(one: FlagDiff) -> dict[str, Any]:
    flows = [
        {"before": before, "after": after, "share": share}
        for (before, after), share in one.flows.items()
    ]
    return {**one._asdict(), "flows": flows}


def _margin(one: FlagDiff) -> str:
    """Return what a sample of independent units may be off by, in 19 of 20 cases."""
    return _percent(max(1.96 * (one.moved * (1 - one.moved) / one.n_units) ** 0.5, 1 / one.n_units))


def _name(variant: str | None) -> str:
    return "the code's default" if variant is None else variant


def _percent(share: float) -> str:
    shown = f"{100 * share:.4g}"
    if share < _GRAIN:
        return "0 %"
    if float(shown) < 0.001:
        return "less than 0.001 %"
    return f"{'almost ' if shown == '100' and share < 1 - _GRAIN else ''}{shown} %"


def _ids(file: str) -> list[str]:
    found = [line.rstrip("\r") for line in _read(file).split("\n")]
    return [line for line in found if line]


# --- explain -----------------------------------------------------------------------------------------------------


def _explain(options: argparse.Namespace) -> int:
    from mlkit.errors import ConfigurationError

    flags = _load(options.file)
    contexts = _contexts(options.context)
    if len(contexts) != 1:
        raise ConfigurationError("--context", options.context, "one object of attributes")
    attributes = dict(contexts[0])
    unit = attributes.pop("targetingKey", None)
    unit = options.key if options.key is not None else unit
    made = flags.explain(options.flag, unit, **attributes)
    if options.format == "json":
        details = made.details
        print_json(
            {
                "key": made.key,
                "value": details.value,
                "variant": details.variant,
                "reason": details.reason,
                "error": details.error,
                "message": details.message,
                "digest": details.digest,
                "lines": list(made.lines),
            }
        )
    else:
        for line in str(made).split("\n"):
            say(line)
    return 0


# --- stale -------------------------------------------------------------------------------------------------------


def _stale(options: argparse.Namespace) -> int:
    from datetime import date

    from mlkit.errors import ConfigurationError
    from mlkit.flags import find_stale

    try:
        today = date.fromisoformat(options.today) if options.today else None
    except ValueError:
        raise ConfigurationError("--today", options.today, "a date such as 2026-03-01") from None
    found = find_stale(_load(options.file), code=options.code, today=today)
    if options.format == "json":
        print_json([one._asdict() for one in found])
    elif options.format == "github":
        for one in found:
            message = f"{one.key}: {one.kind}: {one.message}"
            annotate("warning", message, (_file(one, options.file), one.line, 0), title=one.kind)
    else:
        for one in found:
            owner = f" (owner: {one.owner})" if one.owner else ""
            line = f":{one.line}" if one.line else ""
            name = f"{one.key}: " if one.key else ""
            say(f"{_file(one, options.file)}{line}: {name}{one.kind}: {one.message}{owner}")
        say(f"{counted(len(found), 'finding')}")
    return int(bool(found))


def _file(one: StaleFlag, flags: str) -> str:
    """Return the file that a finding is in: code for what code has, else that of the flags."""
    return one.place if one.kind == "missing" or not one.key else flags


# --- in and out --------------------------------------------------------------------------------------------------


def _load(file: str) -> Flags:
    """Return the flags of a file, of the standard input, or of a pipe such as a shell's `<(...)`.

    Raises:
        FlagFileError: If it cannot be read or used as a whole.
    """
    from pathlib import Path

    from mlkit.errors import FlagFileError
    from mlkit.flags import Flags
    from mlkit.flags._document import MAX_BYTES
    from mlkit.flags._store import Store

    if file == "-":
        return Flags(Store(sys.stdin.buffer.read(MAX_BYTES + 1), file))
    path = Path(file)
    if path.is_fifo():
        try:
            with path.open("rb") as pipe:
                return Flags(Store(pipe.read(MAX_BYTES + 1), file))
        except OSError as error:
            raise FlagFileError(file, f"cannot be read: {error.strerror}") from error
    return Flags.from_file(path)


def _contexts(given: str) -> list[dict[str, Any]]:
    """Return the attributes that an option gives: as JSON, or in a file after `@`, one or a list of them."""
    import json

    from mlkit._suggest import clip
    from mlkit.errors import ConfigurationError

    text = _read(given[1:]) if given.startswith("@") else given
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = f"it is not JSON: {error}"
        raise ConfigurationError(
            "--context", clip(given, 60), 'JSON such as \'{"plan": "pro"}\'', hint=hint
        ) from None
    made = found if isinstance(found, list) and given.startswith("@") else [found]
    if not all(isinstance(one, dict) for one in made):
        raise ConfigurationError("--context", clip(given, 60), "a JSON object of attributes")
    return made


def _read(file: str) -> str:
    from pathlib import Path

    from mlkit.errors import ConfigurationError

    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigurationError(
            "file", file, "a text file that can be read", hint=reason
        ) from error


_ACTIONS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "check": (_check, "name each problem of flag files by pointer, line and column"),
    "diff": (_diff, "say which share of the units a new flag file moves to another variant"),
    "explain": (_explain, "show why a flag answers as it does, node by node"),
    "stale": (_stale, "find flags that may go: expired, constant, disabled, in no code"),
}
