"""A rule looked at before it is believed: unknown operators, references, size and depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._suggest import clip, did_you_mean, listing
from mlkit.flags._logic import ITERATORS, OPERATORS
from mlkit.flags._rule import arguments, literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_DEPTH", "MAX_NODES", "Facts", "RuleError", "check_rule"]

MAX_DEPTH = 64
MAX_NODES = 20_000


class RuleError(Exception):
    """A rule cannot be used.

    Args:
        pointer: Where, as a JSON pointer below the rule.
        reason: What is there, and what should be.
    """

    def __init__(self, pointer: str, reason: str) -> None:
        self.pointer, self.reason = pointer, reason
        super().__init__(f"{pointer}: {reason}")


class Facts(NamedTuple):
    """What a rule needs.

    Attributes:
        nodes: Operators and lists in it, references written out.
        depth: Levels of nesting, references written out.
        references: Names of the shared rules it reaches.
        flagd: Whether it may read `$flagd`.
        iterates: Whether it may loop.
    """

    nodes: int
    depth: int
    references: frozenset[str]
    flagd: bool
    iterates: bool


class _Walk:
    """One pass over a rule. The size of a shared rule is counted once and added at each reference."""

    def __init__(self, evaluators: Mapping[str, Any], known: dict[str, Facts]) -> None:
        self._evaluators = evaluators
        self._known = known
        self._open: list[str] = []

    def facts(self, node: Any, pointer: str, level: int) -> Facts:
        if level > MAX_DEPTH:
            raise RuleError(clip(pointer, 120), f"nested deeper than {MAX_DEPTH} levels")
        if type(node) is list:
            return _joined(
                [
                    self.facts(item, f"{pointer}/{index}", level + 1)
                    for index, item in enumerate(node)
                    if type(item) in {list, dict}
                ]
            )
        if type(node) is not dict or not node:
            return Facts(0, 0, frozenset(), flagd=False, iterates=False)
        if len(node) != 1:
            raise RuleError(
                pointer, f"a rule has one operator, this object has {len(node)}: {listing(node)}"
            )
        name, given = arguments(node)
        if name == "$ref":
            return self._reference(given, pointer, level)
        if name not in OPERATORS:
            near = did_you_mean(name, OPERATORS)
            raise RuleError(
                f"{pointer}/{_escape(name)}", f"unknown operator {clip(name, 40)!r}{near}"
            )
        inner = self.facts(given, f"{pointer}/{_escape(name)}", level + 1)
        reads = name in {"var", "missing", "missing_some"} and _may_read_flagd(given)
        return inner._replace(
            flagd=inner.flagd or reads,
            iterates=inner.iterates or name in ITERATORS,
        )

    def _reference(self, given: list[Any], pointer: str, level: int) -> Facts:
        name = given[0] if len(given) == 1 else None
        if type(name) is not str or name not in self._evaluators:
            near = did_you_mean(name, self._evaluators) if type(name) is str else ""
            raise RuleError(f"{pointer}/$ref", f"no evaluator {clip(name, 40)}{near}")
        if name in self._open:
            raise RuleError(
                f"{pointer}/$ref",
                f"evaluators refer to each other in a circle: {listing(self._open)}",
            )
        facts = self._known.get(name)
        if facts is None:
            self._open.append(name)
            try:
                facts = self.facts(self._evaluators[name], f"/$evaluators/{_escape(name)}", 0)
            finally:
                self._open.pop()
            facts = self._known[name] = facts._replace(references=facts.references | {name})
        if level + facts.depth > MAX_DEPTH:
            raise RuleError(
                f"{pointer}/$ref", f"nested deeper than {MAX_DEPTH} levels with its references"
            )
        return facts


def check_rule(
    rule: Any, pointer: str, evaluators: Mapping[str, Any], known: dict[str, Facts]
) -> Facts:
    """Return what a rule needs.

    Args:
        rule: The rule.
        pointer: Where it stands in the file.
        evaluators: Shared rules by name.
        known: Facts of evaluators already looked at; added to.

    Raises:
        RuleError: If it cannot be used.
    """
    return _Walk(evaluators, known).facts(rule, pointer, 0)


def _joined(parts: list[Facts]) -> Facts:
    nodes = 1 + sum(part.nodes for part in parts)
    if nodes > MAX_NODES:
        raise RuleError("", f"more than {MAX_NODES} operators and lists, references written out")
    return Facts(
        nodes,
        1 + max((part.depth for part in parts), default=0),
        frozenset().union(*(part.references for part in parts)),
        any(part.flagd for part in parts),
        any(part.iterates for part in parts),
    )


def _may_read_flagd(given: list[Any]) -> bool:
    """Return whether a path may be or lead into `$flagd`: written so, empty (everything), or computed."""
    return (
        not literal(given)
        or not given
        or any(
            path is None or path == "" or str(path).startswith("$flagd") for path in _flat(given)
        )
    )


def _flat(items: list[Any]) -> list[Any]:
    return [leaf for item in items for leaf in (_flat(item) if type(item) is list else [item])]


def _escape(step: str) -> str:
    return clip(step, 60).replace("~", "~0").replace("/", "~1")
