"""`python -m mlkit repro`: what threatens a result, what a run was made of, what changed, and the run again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mlkit.cli._printing import print_json, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from mlkit.repro import Difference, Manifest

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's words.

    Args:
        parser: The command's own parser.
    """
    parser.description = "Manifests: what a run was made of, as mlkit.repro.Manifest writes it."
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = {
        name: actions.add_parser(
            name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}."
        )
        for name, (_, purpose) in _ACTIONS.items()
    }
    made["audit"].add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import it first, e.g. torch, whose switches are looked at once it is loaded",
    )
    _add_capture(made["capture"])
    made[
        "diff"
    ].epilog = "Exit status, as of diff(1): 0 if they are equal, 1 if they differ, 2 on trouble."
    for word, what in (("before", "the first manifest"), ("after", "the second")):
        made["diff"].add_argument(word, metavar=word.upper(), help=what)
    made[
        "verify"
    ].epilog = "Exit status: 0 if the run could be repeated here, 1 if something differs."
    made[
        "rerun"
    ].epilog = "Exit status: 0 unless the results differ by more than is allowed, then 1."
    for name in ("verify", "rerun"):
        made[name].add_argument("file", metavar="FILE", help="the manifest")
    _add_data(made["verify"])
    made["verify"].add_argument("--code", metavar="FOLDER", help="a folder in the working tree")
    made["rerun"].add_argument(
        "--timeout", type=float, metavar="SECONDS", help="kill it after that"
    )
    made["rerun"].add_argument(
        "--max-ulps", type=int, default=16, metavar="N", help="what counts as nearly the same (16)"
    )
    made["rerun"].add_argument("--directory", metavar="FOLDER", help="run there instead")
    for name in ("audit", "diff", "verify", "rerun"):
        made[name].add_argument("--json", action="store_true", help="print JSON")


def _add_capture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="write it there, not to the output")
    parser.add_argument("--seed", type=int, metavar="N", help="the root of the seeds")
    parser.add_argument("--code", metavar="FOLDER", help="a folder in the working tree")
    _add_data(parser)
    parser.add_argument(
        "--lock",
        choices=("requirements", "conda", "pylock"),
        help="only the installed packages, as a file that installers read",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        type=_named_path,
        metavar="NAME=PATH",
        help="data by name: a file or folder",
    )


def run(options: argparse.Namespace) -> int:
    """Run one action.

    Args:
        options: The words, parsed.

    Returns:
        0 if all is well, 1 if something differs or threatens results, 2 where `diff` has trouble.
    """
    action, _ = _ACTIONS[options.action]
    return action(options)


def _audit(options: argparse.Namespace) -> int:
    from importlib import import_module

    from mlkit.errors import ConfigurationError
    from mlkit.repro import audit

    for name in options.modules:
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigurationError("--import", name, "a module that can be imported") from error
    findings = audit()
    if options.json:
        print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            say(str(finding))
    return int(bool(findings))


def _capture(options: argparse.Namespace) -> int:
    from pathlib import Path

    from mlkit.errors import ConfigurationError
    from mlkit.repro import Manifest

    captured = Manifest.capture(seeds=options.seed, data=_data(options), code=options.code)
    for finding in captured.findings:
        say(str(finding), file=sys.stderr)
    text = captured.lock(options.lock) if options.lock else None
    try:
        if text is None and options.output:
            captured.save(options.output)
        elif text is None:
            print_json(captured.to_dict())
        elif options.output:
            Path(options.output).write_text(text, encoding="utf-8")
        else:
            print(text, end="")
    except OSError as error:
        if not options.output:
            raise  # of the standard output, such as a reader who is gone
        raise ConfigurationError(
            "--output", options.output, "a file that can be written", hint=error.strerror or ""
        ) from error
    return 0


def _diff(options: argparse.Namespace) -> int:
    from mlkit.errors import MlkitError

    try:
        changes = _load(options.before).diff(_load(options.after))
    except MlkitError as error:
        print(f"mlkit repro: {error}", file=sys.stderr)
        return 2
    return _report(changes, options)


def _verify(options: argparse.Namespace) -> int:
    return _report(_load(options.file).verify(data=_data(options), code=options.code), options)


def _rerun(options: argparse.Namespace) -> int:
    verdict = _load(options.file).rerun(
        directory=options.directory, timeout=options.timeout, max_ulps=options.max_ulps
    )
    if options.json:
        print_json(
            {
                "level": verdict.level,
                "total": verdict.total,
                "max_ulps": verdict.max_ulps,
                "results": [result._asdict() for result in verdict.results],
                "because": [change._asdict() for change in verdict.because],
            }
        )
    else:
        say(str(verdict))
    return int(verdict.level == "differs")


_ACTIONS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "audit": (_audit, "say what here can make two runs differ, and what to do about it"),
    "capture": (_capture, "write down code, data, packages and environment as they are now"),
    "diff": (_diff, "say what differs between two manifests"),
    "verify": (_verify, "say what is different here and now from what a manifest records"),
    "rerun": (_rerun, "run a recorded command again and compare its results"),
}


def _report(changes: tuple[Difference, ...], options: argparse.Namespace) -> int:
    if options.json:
        print_json([change._asdict() for change in changes])
    else:
        for change in changes:
            say(str(change))
    return int(bool(changes))


def _load(path: str) -> Manifest:
    from mlkit.errors import ConfigurationError
    from mlkit.repro import Manifest

    try:
        return Manifest.load(path)
    except OSError as error:
        raise ConfigurationError(
            "FILE", path, "a manifest that can be read", hint=error.strerror or ""
        ) from error


def _named_path(word: str) -> tuple[str, str]:
    import argparse

    name, equals, path = word.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {word!r}")
    return name, path


def _data(options: argparse.Namespace) -> dict[str, Any]:
    from pathlib import Path

    return {name: Path(path) for name, path in options.data}
