"""A rule looked at before it is believed: unknown operators, references, size and depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._suggest import clip, did_you_mean, listing
from mlkit.flags._logic import ITERATORS, OPERATORS
from mlkit.flags._rule import literal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    # What an evaluator needs, or why it cannot be used.
    Known = dict[str, "Facts | RuleError"]

__all__ = ["MAX_DEPTH", "MAX_NODES", "Facts", "RuleError", "check_rule"]

MAX_DEPTH = 64
MAX_NODES = 20_000
_READERS = frozenset({"var", "missing", "missing_some"})


class RuleError(Exception):
    """A rule cannot be used.

    Args:
        pointer: Where, as a JSON pointer; it grows on the way out, so that a good rule pays for none.
        brief: What is there, and what should be.
        near: The name that is there and those that may be meant.
    """

    def __init__(
        self, pointer: str, brief: str, near: tuple[str, Collection[str]] | None = None
    ) -> None:
        self.pointer, self.brief, self.near = pointer, brief, near
        self.whole = False  # whether the pointer begins at the root of the file and does not grow
        super().__init__(pointer, brief)

    @property
    def reason(self) -> str:
        """What is there, what should be, and what was probably meant; that is dear, so it is sought when asked for."""
        return self.brief if self.near is None else f"{self.brief}{did_you_mean(*self.near)}"

    def again(self) -> RuleError:
        """Return the same, not raised yet."""
        made = RuleError(self.pointer, self.brief, self.near)
        made.whole = self.whole
        return made

    def under(self, step: str | int) -> None:
        """Note that the place is below *step*."""
        if not self.whole:
            name = clip(str(step), 60).replace("~", "~0").replace("/", "~1")
            self.pointer = f"/{name}{self.pointer}"


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
    """One pass over a rule. A shared rule is looked at once and its size added at each reference."""

    def __init__(
        self, evaluators: Mapping[str, Any], known: Known, opened: tuple[str, ...]
    ) -> None:
        self._evaluators, self._known, self._open = evaluators, known, opened
        self._nodes = self._depth = 0
        self._references: set[str] = set()
        self._flagd = self._iterates = False

    def facts(self, rule: Any) -> Facts:
        if type(rule) is dict or type(rule) is list:
            self._visit(rule, 1)
        return Facts(
            self._nodes, self._depth, frozenset(self._references), self._flagd, self._iterates
        )

    def _visit(self, node: Any, level: int) -> None:
        self._grow(1, level)
        if type(node) is list:
            for index, item in enumerate(node):
                if type(item) is dict or type(item) is list:
                    try:
                        self._visit(item, level + 1)
                    except RuleError as error:
                        error.under(index)
                        raise
            return
        if len(node) != 1:
            if node:
                reason = f"a rule has one operator, this object has {len(node)}: {listing(node)}"
                raise RuleError("", reason)
            return
        ((name, given),) = node.items()
        try:
            self._operator(name, given, level)
        except RuleError as error:
            error.under(name)
            raise

    def _operator(self, name: str, given: Any, level: int) -> None:
        if name == "$ref":
            self._reference(given[0] if type(given) is list and len(given) == 1 else given, level)
            return
        if name not in OPERATORS:
            raise RuleError("", f"unknown operator {clip(name, 40)!r}", (name, OPERATORS))
        if type(given) is dict or type(given) is list:
            self._visit(given, level + 1)
        if name == "rollout" or (name in _READERS and _may_read_flagd(given)):
            self._flagd = True
        if name in ITERATORS:
            self._iterates = True

    def _reference(self, name: Any, level: int) -> None:
        if type(name) is not str or name not in self._evaluators:
            near = (name, self._evaluators) if type(name) is str else None
            raise RuleError("", f"no evaluator {clip(name, 40)}", near)
        if name in self._open:
            raise RuleError(
                "", f"evaluators refer to each other in a circle: {listing(self._open)}"
            )
        facts = self._known.get(name)
        if isinstance(facts, RuleError):
            raise facts.again()
        if facts is None:
            inner = _Walk(self._evaluators, self._known, (*self._open, name))
            try:
                facts = self._known[name] = inner.facts(self._evaluators[name])
            except RuleError as error:
                error.under(name)
                error.under("$evaluators")
                error.whole = True
                self._known[name] = error.again()  # without the frames that this one holds
                raise
        self._grow(facts.nodes, level + facts.depth)
        self._references |= {name, *facts.references}
        self._flagd |= facts.flagd
        self._iterates |= facts.iterates

    def _grow(self, nodes: int, level: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            reason = f"more than {MAX_NODES} operators and lists, references written out"
            raise RuleError("", reason)
        if level > MAX_DEPTH:
            raise RuleError("", f"nested deeper than {MAX_DEPTH} levels, references written out")
        self._depth = max(self._depth, level)


def check_rule(rule: Any, evaluators: Mapping[str, Any], known: Known) -> Facts:
    """Return what a rule needs.

    Args:
        rule: The rule.
        evaluators: Shared rules by name.
        known: What is known of evaluators already looked at; added to.

    Raises:
        RuleError: If it cannot be used.
    """
    return _Walk(evaluators, known, ()).facts(rule)


def _may_read_flagd(given: Any) -> bool:
    """Return whether a path may be or lead into `$flagd`: written so, empty (everything), or computed."""
    if type(given) is str:
        return not given or given.startswith("$flagd")
    paths = given if type(given) is list else [given]
    return (
        not literal(paths)
        or not paths
        or any(
            path is None or path == "" or str(path).startswith("$flagd") for path in _flat(paths)
        )
    )


def _flat(items: list[Any]) -> list[Any]:
    return [leaf for item in items for leaf in (_flat(item) if type(item) is list else [item])]
