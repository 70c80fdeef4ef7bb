"""`python -m mlkit doctor`: what is installed, what is missing, what threatens results."""

from __future__ import annotations

import os
import platform
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from mlkit._optional import DISTRIBUTION
from mlkit.cli._printing import print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

__all__ = ["Check", "add_arguments", "examine", "run"]

_MARKS = {"ok": "ok", "note": "--", "warning": "!!", "trouble": "XX"}


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        topic: `"mlkit"`, `"python"`, `"core"`, `"extra"`, `"name"`, `"device"`, `"threads"` or `"determinism"`.
        name: What was looked at.
        status: `"ok"`, `"note"` (absent, and that is fine), `"warning"` or `"trouble"`.
        detail: What was found.
        fix: What to do about it; empty if nothing.
    """

    topic: str
    name: str
    status: str
    detail: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's words.

    Args:
        parser: The command's own parser.
    """
    parser.description = (
        "Look at this environment and say what is wrong with it. Exit status 1 on trouble."
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the findings.

    Args:
        options: The words, parsed.

    Returns:
        1 if anything is in trouble, else 0.
    """
    checks = examine()
    trouble = any(check.status == "trouble" for check in checks)
    if options.json:
        print_json({"ok": not trouble, "checks": [check._asdict() for check in checks]})
        return int(trouble)
    topic = ""
    for check in checks:
        if check.topic != topic:
            topic = check.topic
            print(f"\n{topic}")
        print(f"  {_MARKS[check.status]} {check.name:<22} {check.detail}")
        if check.fix:
            print(f"     {'':<22} {check.fix}")
    print(f"\n{'trouble found' if trouble else 'no trouble found'}")
    return int(trouble)


def examine() -> list[Check]:
    """Look at everything. A look that fails is a finding, never an error.

    Returns:
        What was found, grouped by topic.
    """
    looks: tuple[Callable[[], Iterator[Check]], ...] = (
        _mlkit,
        _python,
        _name,
        _requirements,
        _device,
        _threads,
        _determinism,
    )
    checks: list[Check] = []
    for look in looks:
        try:
            checks.extend(look())
        except Exception as error:  # noqa: BLE001 - an environment may be broken in any way
            topic = look.__name__.removeprefix("_")
            checks.append(Check(topic, topic, "warning", f"{type(error).__name__}: {error}"))
    return checks


def _mlkit() -> Iterator[Check]:
    import mlkit

    yield Check("mlkit", DISTRIBUTION, "ok", f"{mlkit.__version__} in {mlkit.__path__[0]}")


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} ({platform.python_implementation()})"
    yield Check("python", "version", "ok", found)
    yield Check("python", "platform", "ok", platform.platform())


def _name() -> Iterator[Check]:
    """Find out whether another distribution also installs a top-level `mlkit`."""
    from importlib.metadata import packages_distributions
    from pathlib import Path

    import mlkit

    others = sorted(set(packages_distributions().get("mlkit", ())) - {DISTRIBUTION})
    # The folder may be mixed although the metadata of the other one is gone.
    strangers = sorted(
        name
        for name in (
            "base",
            "cluster",
            "datasets",
            "linear_model",
            "metrics",
            "neighbors",
            "preprocessing",
        )
        if any(
            (Path(folder) / name).exists() or (Path(folder) / f"{name}.py").exists()
            for folder in mlkit.__path__
        )
    )
    if others or strangers:
        found = ", ".join(others) or f"files that are not ours: {', '.join(strangers)}"
        fix = (
            f"uninstall the other one, then reinstall: pip install --force-reinstall {DISTRIBUTION}"
        )
        yield Check(
            "name", "import mlkit", "trouble", f"shared with another distribution: {found}", fix
        )
    else:
        yield Check("name", "import mlkit", "ok", f"owned by {DISTRIBUTION} alone")


def _requirements() -> Iterator[Check]:
    """Find out what is there of what the distribution declares."""
    from importlib.metadata import PackageNotFoundError, requires, version

    try:
        declared = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        fix = f"pip install {DISTRIBUTION}, or pip install -e . in a checkout"
        yield Check(
            "core", DISTRIBUTION, "warning", "runs from a source tree that is not installed", fix
        )
        return
    extras: dict[str, str] = {}
    least: dict[str, str] = {}
    for line in sorted(declared, key=str.lower):
        name = re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if name == DISTRIBUTION or (extra and extra[1] == "all"):
            continue
        least[name] = _least(line)
        if extra:
            if extra[1] == name or name not in extras:  # its own extra brings least
                extras[name] = extra[1]
            continue
        fix = f"pip install --force-reinstall {DISTRIBUTION}"
        try:
            yield _unless_recent(Check("core", name, "trouble", version(name), fix), least[name])
        except PackageNotFoundError:
            yield Check("core", name, "trouble", "missing", fix)
    for name, extra_name in sorted(extras.items(), key=lambda item: (item[1], item[0])):
        shown, fix = f"{extra_name}: {name}", f"pip install '{DISTRIBUTION}[{extra_name}]'"
        try:
            yield _unless_recent(Check("extra", shown, "warning", version(name), fix), least[name])
        except PackageNotFoundError:
            yield Check("extra", shown, "note", "absent", fix)


def _least(requirement: str) -> str:
    """Return the least version that a requirement such as `numpy>=1.26; extra == 'x'` takes, or nothing."""
    found = re.search(r">=\s*([0-9.]+)", requirement.partition(";")[0])
    return found[1] if found else ""


def _unless_recent(check: Check, least: str) -> Check:
    """Return *check*, whose detail is a version, as it is if that is older than *least*, and else as good."""
    if _release(check.detail) < _release(least):
        return check._replace(detail=f"{check.detail}, which is older than {least}")
    return check._replace(status="ok", fix="")


def _release(version: str) -> list[int]:
    """Return the numbers of a version, without zeros at the end: `2.10.0rc1` is `[2, 10]`."""
    numbers = [int(part) for part in re.findall(r"[0-9]+", re.split(r"[^0-9.]", version)[0])]
    while numbers and not numbers[-1]:
        del numbers[-1]
    return numbers


def _device() -> Iterator[Check]:
    from mlkit._optional import installed

    if not installed("torch"):
        yield Check("device", "torch", "note", "absent: models run on NumPy alone")
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Check(
                "device",
                f"cuda:{index}",
                "ok",
                f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB",
            )
    elif torch.backends.mps.is_available():
        yield Check("device", "mps", "ok", "Apple GPU")
    else:
        build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
        yield Check("device", "cpu", "ok", f"no GPU in sight (torch {torch.__version__}, {build})")


def _threads() -> Iterator[Check]:
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    yield Check("threads", "usable cores", "ok", str(usable))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        if value := os.environ.get(name):
            too_many = value.isdigit() and int(value) > usable
            fix = (
                f"set it to at most {usable}: threads that share a core spin against each other"
                if too_many
                else ""
            )
            yield Check("threads", name, "warning" if too_many else "ok", value, fix)
    torch = sys.modules.get("torch")
    if torch is not None:
        count = torch.get_num_threads()
        fix = f"torch.set_num_threads({usable})" if count > usable else ""
        yield Check("threads", "torch", "warning" if fix else "ok", str(count), fix)


def _determinism() -> Iterator[Check]:
    from mlkit.repro import audit

    # Of this very process, which draws nothing, a generator without a seed is no finding.
    findings = [finding for finding in audit() if finding.code != "torch-unseeded"]
    for finding in findings:
        yield Check("determinism", finding.code, "note", finding.what, finding.fix)
    if not findings:
        yield Check(
            "determinism", "settings", "ok", "nothing here is known to change results between runs"
        )
