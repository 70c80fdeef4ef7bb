"""A registry against a plain model of it, over random histories."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlkit.errors import DuplicateNameError, UnknownNameError
from mlkit.registry import Registry

NAMES = ["a", "b", "c"]
ALIASES = ["x", "y", "b"]


def definition(owner: str) -> Any:
    class Made:
        pass

    Made.__module__, Made.__qualname__ = "somewhere", owner
    return Made


class Life(RuleBasedStateMachine):
    @initialize()
    def start(self):
        self.reg: Registry[Any] = Registry("life")
        self.model: dict[tuple[str, int], tuple[str, Any, tuple[str, ...], bool]] = {}
        self.stack: list[tuple[Any, str, Any]] = []

    def aliases(self):
        return {
            alias: name for (name, _), (_, _, aliases, _) in self.model.items() for alias in aliases
        }

    @rule(
        name=st.sampled_from(NAMES),
        version=st.integers(1, 3),
        owner=st.sampled_from(["P", "Q"]),
        aliases=st.lists(st.sampled_from(ALIASES), max_size=2, unique=True),
        deprecated=st.booleans(),
    )
    def register(self, name, version, owner, aliases, deprecated):
        made = definition(owner)
        names, meant = {n for n, _ in self.model}, self.aliases()
        old = self.model.get((name, version))
        clash = (old is not None and old[0] != owner) or name in meant
        clash = clash or any(
            (a in names and a != name) or meant.get(a, name) != name for a in aliases
        )
        options = {
            "version": version,
            "aliases": aliases,
            "deprecated": "old" if deprecated else None,
        }
        try:
            self.reg.register(name, **options)(made)
        except DuplicateNameError:
            assert clash
        else:
            assert not clash
            # a name among its own aliases says nothing new
            self.model[name, version] = (
                owner,
                made,
                tuple(a for a in aliases if a != name),
                deprecated,
            )

    @rule(name=st.sampled_from(NAMES))
    def override(self, name):
        if name not in {n for n, _ in self.model} or len(self.stack) > 3:
            return
        fake = definition("Fake")
        block = self.reg.override({name: fake})
        block.__enter__()
        self.stack.append((block, name, fake))

    @rule(index=st.integers(0, 3))
    def end(self, index):
        if index < len(self.stack):
            self.stack.pop(index)[0].__exit__(None, None, None)

    def expected(self, ref):
        name, _, version = ref.partition("@")
        name = name if name in {n for n, _ in self.model} else self.aliases().get(name, name)
        versions = {v: value for (n, v), value in self.model.items() if n == name}
        if version:
            chosen = int(version) if int(version) in versions else None
        else:
            chosen = max(
                (v for v in versions if not versions[v][3]), default=max(versions, default=None)
            )
        if chosen is None:
            return None
        for _, overridden, fake in reversed(self.stack):
            if overridden == name:
                return fake
        return versions[chosen][1]

    @invariant()
    def agrees(self):
        if not hasattr(self, "reg"):
            return
        import warnings

        assert list(self.reg) == sorted({name for name, _ in self.model})
        assert self.reg.list(versions=True, deprecated=True) == [
            f"{n}@{v}" for n, v in sorted(self.model)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            for ref in [
                *NAMES,
                *ALIASES,
                *(f"{name}@{v}" for name in [*NAMES, "x"] for v in (1, 2, 3)),
            ]:
                expected = self.expected(ref)
                assert (ref in self.reg) is (expected is not None), ref
                try:
                    assert type(self.reg.create(ref)) is expected is self.reg[ref], ref
                except UnknownNameError:
                    assert expected is None, ref

    def teardown(self):
        for block, _, _ in reversed(getattr(self, "stack", [])):
            block.__exit__(None, None, None)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
