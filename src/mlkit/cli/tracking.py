"""`python -m mlkit tracking`: where recorded runs stand, the delivery of what is left of them, and what one says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mlkit.cli._printing import counted, print_json, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from mlkit.tracking import Delivery, RunData, RunStatus

__all__ = ["add_arguments", "run"]

_PASSWORD = re.compile(r"(://[^/@:\s]*):[^/@\s]+@")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's words.

    Args:
        parser: The command's own parser.
    """
    parser.description = (
        "Recorded runs. DIR is a run's folder or a folder of runs, here or copied from elsewhere."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = {}
    for name, (_, purpose) in _ACTIONS.items():
        text = f"{purpose[0].upper()}{purpose[1:]}."
        made[name] = actions.add_parser(name, help=purpose, description=text)
        made[name].add_argument("folder", metavar="DIR", help="a run's folder, or one of runs")
        made[name].add_argument("--json", action="store_true", help="print JSON")
    made[
        "status"
    ].epilog = (
        "Exit status: 0 if every record is with every sink and no journal is damaged, 1 otherwise."
    )
    made[
        "sync"
    ].epilog = "Exit status: 0 if nothing is left, 1 otherwise. A run that its own shipper is still at work on is left to it."
    made["sync"].add_argument(
        "--sink",
        dest="sinks",
        action="append",
        metavar="ADDRESS",
        help="deliver there, e.g. mlflow:http://host:5000, instead of to the sinks the run was started with",
    )
    made["sync"].add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="for each run (60)"
    )


def run(options: argparse.Namespace) -> int:
    """Run one action.

    Args:
        options: The words, parsed.

    Returns:
        0 if all is well, 1 if something is left or damaged.
    """
    from mlkit.errors import JournalError

    action, _ = _ACTIONS[options.action]
    try:
        return action(options)
    except OSError as error:
        if error.filename is None:  # of the output, which is not ours to explain
            raise
        raise JournalError(
            str(error.filename), f"{type(error).__name__}: {error.strerror}"
        ) from error


def _status(options: argparse.Namespace) -> int:
    from mlkit.tracking import find_runs, status

    found = [one for folder in find_runs(options.folder) for one in status(folder)]
    if options.json:
        print_json([_as_json(one) for one in found])
    else:
        for one in found:
            _say_status(one)
    return int(not all(one.complete for one in found))


def _sync(options: argparse.Namespace) -> int:
    from mlkit.tracking import find_runs, status, sync

    reports, left = [], False
    for folder in find_runs(options.folder):
        if _is_at_work(status(folder)) and not options.sinks:
            reports.append({"dir": str(folder), "at_work": True})
            if not options.json:
                say(f"{folder}: its own shipper is at work")
            continue
        delivery = sync(folder, sinks=options.sinks, timeout=options.timeout)
        left = left or not delivery.complete
        reports.append({"dir": str(folder), "at_work": False, **_counts(delivery)})
        if not options.json:
            say(f"{folder}: {_summary(delivery)}")
            for uri, one in delivery.sinks.items():
                say(f"  {_masked(uri)}: {_summary(one)}")
    if options.json:
        print_json(reports)
    return int(left)


def _prune(options: argparse.Namespace) -> int:
    from mlkit.tracking import find_runs, prune

    removed = {str(folder): prune(folder) for folder in find_runs(options.folder)}
    if options.json:
        print_json(removed)
    else:
        for folder, points in removed.items():
            say(f"{folder}: {counted(points, 'point')} removed")
    return 0


def _is_at_work(found: list[RunStatus]) -> bool:
    """Return whether a run is still recorded and each of its sinks is delivered to."""
    return any(one.writers for one in found) and all(
        one.shipping and set(one.shipping) == set(one.delivery.sinks) for one in found
    )


def _show(options: argparse.Namespace) -> int:
    from mlkit.tracking import find_runs, read

    found = [read(folder) for folder in find_runs(options.folder)]
    if options.json:
        print_json([_contents(data) for data in found])
    else:
        for data in found:
            _say_run(data)
    return int(any(data.torn_bytes for data in found))


_ACTIONS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "status": (_status, "say what each sink has of each run, and which processes are alive"),
    "sync": (_sync, "deliver what a dead process or an outage has left"),
    "prune": (_prune, "remove the points that every sink has, but for the last of each metric"),
    "show": (_show, "print params, last metrics, tags and artifacts of each run"),
}


def _say_status(one: RunStatus) -> None:
    inside = f" in run {one.parent}" if one.parent else ""
    say(f"{one.id} {one.experiment}/{one.name}{inside}: {one.status}, {one.dir}")
    if one.writers:
        say(f"  written to by {', '.join(f'process {pid}' for pid in one.writers)}")
    if one.torn_bytes:
        say(f"  damaged: {counted(one.torn_bytes, 'byte')} of the journal cannot be read")
    if not one.delivery.sinks:
        say(f"  {_summary(one.delivery)}")
    for uri, part in one.delivery.sinks.items():
        work = "; somebody delivers" if uri in one.shipping and part.pending else ""
        say(f"  {_masked(uri)}: {_summary(part)}{work}")


def _summary(delivery: Delivery) -> str:
    if not delivery.sinks and not delivery.delivered + delivery.pending + delivery.dead_lettered:
        return f"{counted(delivery.acked, 'record')} in the journal, no sinks"
    words = [f"{delivery.delivered} of {counted(delivery.acked, 'record')} delivered"]
    if delivery.pending:
        words.append(f"{delivery.pending} pending")
    if delivery.dead_lettered:
        words.append(f"{delivery.dead_lettered} refused")
    return ", ".join(words) + (f" ({_masked(delivery.reason)})" if delivery.reason else "")


def _counts(delivery: Delivery) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "acked": delivery.acked,
        "delivered": delivery.delivered,
        "pending": delivery.pending,
        "dead_lettered": delivery.dead_lettered,
        "reason": _masked(delivery.reason),
    }
    if delivery.sinks:
        counts["sinks"] = {_masked(uri): _counts(one) for uri, one in delivery.sinks.items()}
    return counts


def _as_json(one: RunStatus) -> dict[str, Any]:
    return {
        **one._asdict(),
        "shipping": [_masked(uri) for uri in one.shipping],
        "delivery": _counts(one.delivery),
        "complete": one.complete,
    }


def _say_run(data: RunData) -> None:
    say(f"{data.id} {data.experiment}/{data.name}: {data.status}, {data.dir}")
    if data.torn_bytes:
        say(f"  damaged: {counted(data.torn_bytes, 'byte')} of the journal cannot be read")
    for key, value in sorted(data.params.items()):
        say(f"  param {key} = {value!r}")
    for key, points in sorted(data.metrics.items()):
        last = points[-1]
        say(
            f"  metric {key} = {last.value!r} at step {last.step} ({counted(len(points), 'point')})"
        )
    if data.pruned_points:
        say(f"  {counted(data.pruned_points, 'earlier point')} removed by prune")
    for key, text in sorted(data.tags.items()):
        say(f"  tag {key} = {text}")
    for key, digest in sorted(data.artifacts.items()):
        say(f"  artifact {key}: {digest}")


def _contents(data: RunData) -> dict[str, Any]:
    last = {
        key: {"points": len(points), "step": points[-1].step, "value": _number(points[-1].value)}
        for key, points in data.metrics.items()
    }
    params = {key: _number(value) for key, value in data.params.items()}
    return {**data._asdict(), "params": params, "metrics": last}


def _number(value: Any) -> Any:
    """Return *value* as JSON can say it: a number that it cannot is a text."""
    from math import isfinite, isnan

    if isinstance(value, (list, tuple)):
        return [_number(item) for item in value]
    if not isinstance(value, float) or isfinite(value):
        return value
    return "NaN" if isnan(value) else f"{'-' if value < 0 else ''}Infinity"


def _masked(text: str) -> str:
    """Return *text* without the passwords of the addresses in it."""
    return _PASSWORD.sub(r"\1:***@", text)
