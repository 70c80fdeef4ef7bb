"""All that is wrong with a file, each with its line: what a load finds, and what it has no time to look for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlkit._suggest import clip
from mlkit.flags._check import Facts, RuleError, check_rule
from mlkit.flags._document import Problem
from mlkit.flags._lint import lint
from mlkit.flags._locate import MAX_SCANNED, scan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlkit.flags._definition import Definition
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
    made = [_warning(None, *found) for found in _of_the_set(document)]
    for key, definition in document.definitions.items():
        if key in document.refused:
            continue
        made += [_warning(key, *found) for found in _of_a_flag(key, definition)]
        if len(made) >= _MAX_WARNINGS:
            break
    return made[:_MAX_WARNINGS]


def _warning(flag: str | None, pointer: str, message: str) -> Problem:
    return Problem(flag, pointer, message, kept=False, severity="warning")


def _of_the_set(document: Document) -> Iterator[tuple[str, str]]:
    shared = document.shared
    for name in ("flagSetId", "version"):
        value = shared.metadata.get(name, "")
        if type(value) is not str:
            yield f"/metadata/{name}", f"expected a text, got {clip(value, 40)}"
    for name, rule in shared.evaluators.items():
        pointer, known = f"/$evaluators/{_step(name)}", shared.known.get(name)
        if not name or type(rule) is not dict:
            yield pointer, f"expected a rule with a name, got {clip(rule, 40)}"
            continue
        if known is None:
            known = _looked_at(rule, document)
            if isinstance(known, RuleError):
                yield known.pointer if known.whole else pointer + known.pointer, known.reason
        if isinstance(known, Facts):
            yield from lint(rule, pointer)


def _looked_at(rule: object, document: Document) -> Facts | RuleError:
    """Return what a rule needs that no flag in force refers to, or why it cannot be used."""
    try:
        return check_rule(rule, document.shared.evaluators, document.shared.known)
    except RuleError as error:
        return error.again()
    except RecursionError:
        return RuleError("", "nested too deeply")


def _of_a_flag(key: str, definition: Definition) -> Iterator[tuple[str, str]]:
    pointer, body = f"/flags/{_step(key)}", definition.body
    if body.kind == "object":
        for name, value in body.variants.items():
            if type(value) is tuple:
                yield f"{pointer}/variants/{_step(name)}", "flagd has no lists as variants"
    # Few texts hold these; only those are taken apart.
    if b'"defaultVariant":true' in body.text or b'"defaultVariant":false' in body.text:
        given = body.document.get("defaultVariant")
        if type(given) is bool:
            yield f"{pointer}/defaultVariant", f"expected a text, got {clip(given, 40)}"
    if b'":null' in body.text:
        for name in ("targeting", "metadata"):
            if body.document.get(name, "") is None:
                yield f"{pointer}/{name}", "expected an object, or nothing at all, got null"
    if body.rule:
        yield from lint(definition.rule, f"{pointer}/targeting")


def _step(name: str) -> str:
    return clip(name, 60).replace("~", "~0").replace("/", "~1")
