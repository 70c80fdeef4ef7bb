"""All that is wrong with a file, each with its line: what a load finds, and what it has no time to look for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlkit._suggest import clip
from mlkit.flags._check import Facts
from mlkit.flags._document import Problem
from mlkit.flags._lint import lint
from mlkit.flags._locate import MAX_SCANNED, scan

if TYPE_CHECKING:
    from mlkit.flags._document import Document

__all__ = ["report"]

_MAX_WARNINGS = 1_000


def report(document: Document, data: bytes) -> tuple[Problem, ...]:
    """Return all problems of a file in the order of their places.

    Args:
        document: What the file says.
        data: The file.
    """
    problems = [*document.problems, *_warnings(document)]
    if len(data) > MAX_SCANNED:
        return tuple(problems)
    found = scan(data, {problem.pointer for problem in problems})
    places = {**found.places, **found.twice}
    for pointer in found.twice:
        steps = pointer.split("/")
        flag = steps[2].replace("~1", "/").replace("~0", "~") if steps[1:2] == ["flags"] else None
        message = "this key is there twice in one object; the last one counts"
        problems.append(Problem(flag, pointer, message, kept=False, severity="warning"))
    located = [
        problem._replace(line=places[problem.pointer][0], column=places[problem.pointer][1])
        for problem in problems
    ]
    return tuple(sorted(located, key=lambda problem: (problem.line, problem.column)))


def _warnings(document: Document) -> list[Problem]:
    made: list[Problem] = []
    for name, rule in document.shared.evaluators.items():
        known = document.shared.known.get(name)
        if not isinstance(known, Facts) and not _usable(rule, document):
            continue
        for pointer, message in lint(rule, f"/$evaluators/{_step(name)}"):
            made.append(Problem(None, pointer, message, kept=False, severity="warning"))
    for key, definition in document.definitions.items():
        if key in document.refused or not definition.body.rule:
            continue
        for pointer, message in lint(definition.rule, f"/flags/{_step(key)}/targeting"):
            made.append(Problem(key, pointer, message, kept=False, severity="warning"))
            if len(made) >= _MAX_WARNINGS:
                return made
    return made


def _usable(rule: object, document: Document) -> bool:
    """Return whether a rule that no flag in force refers to is one."""
    from mlkit.flags._check import RuleError, check_rule

    try:
        check_rule(rule, document.shared.evaluators, document.shared.known)
    except (RuleError, RecursionError):
        return False
    return True


def _step(name: str) -> str:
    return clip(name, 60).replace("~", "~0").replace("/", "~1")
