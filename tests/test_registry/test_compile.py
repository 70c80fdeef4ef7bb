"""Compiled specs: checked once, built afresh each time, the same as `build` builds."""

import datetime as dt
import pathlib
import threading
import warnings
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, EntryError, SpecError
from mlkit.registry import Registry, Spec, spec_of


class Part:
    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and vars(self) == vars(other)

    __hash__ = object.__hash__


class Wide(Part):
    pass


parts: Registry[Part] = Registry("parts", Part)


@parts.register("leaf")
def leaf(n: int = 0, rate: float = 0.5, names: list[str] = []) -> Part:
    return Part(n=n, rate=rate, names=names)


@parts.register("tree")
def tree(  # noqa: PLR0917 - one of each kind
    left: Annotated[Part, parts] | None = None,
    many: list[Annotated[Part, parts] | int] = [],
    named: dict[str, Annotated[Part, parts]] = {},
    pair: tuple[Annotated[Part, parts], set[int]] | None = None,
    path: pathlib.Path = pathlib.Path("x"),
    day: dt.date = dt.date(2026, 1, 2),
    table: dict[str, list[int]] = {},
    kinds: frozenset[str] = frozenset(),
    *rest: Annotated[Part, parts],
) -> Part:
    return Part(**locals())


leaves = st.fixed_dictionaries(
    {"type": st.sampled_from(["leaf", "leaf@1"])},
    optional={
        "n": st.integers(),
        "rate": st.integers(0, 3) | st.floats(0, 1),
        "names": st.lists(st.text(max_size=2), max_size=2),
    },
)
trees = st.recursive(
    leaves,
    lambda inner: st.fixed_dictionaries(
        {"type": st.just("tree")},
        optional={
            "left": inner | st.none() | st.just("leaf"),
            "many": st.lists(inner | st.integers(), max_size=2),
            "named": st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
            "pair": st.tuples(inner, st.lists(st.integers(), max_size=2)),
            "path": st.sampled_from(["a", "b/c"]),
            "day": st.just("2027-03-04"),
            "table": st.dictionaries(st.sampled_from("ab"), st.lists(st.integers(), max_size=2)),
            "kinds": st.lists(st.sampled_from("ab")),
            "rest": st.lists(inner, max_size=2),
        },
    ),
    max_leaves=5,
).map(Spec)


@given(trees)
def test_it_builds_what_build_builds_again_and_again(spec):
    make = spec.compile(parts)
    first, second, built = make(), make(), parts.build(spec)
    assert first == second == built
    assert first is not second
    assert spec_of(first) == spec_of(second) == spec_of(built) == spec.resolved(parts)


def changeable(value: Any) -> list[Any]:
    """Return the objects inside of *value* that somebody could change."""
    if isinstance(value, Part):
        return [value, *changeable(vars(value))]
    if isinstance(value, dict):
        return [value, *(found for item in value.values() for found in changeable(item))]
    if isinstance(value, list | tuple | set | frozenset):
        inner = [found for item in value for found in changeable(item)]
        return inner if isinstance(value, tuple | frozenset) else [value, *inner]
    return []


def test_nothing_that_can_be_changed_is_shared():
    spec = Spec(
        {
            "type": "tree",
            "left": {"type": "leaf", "names": ["a"]},
            "many": [{"type": "leaf", "names": []}, 3],
            "named": {"a": {"type": "leaf", "names": []}},
            "pair": [{"type": "leaf", "names": []}, [1]],
            "table": {"a": [1]},
        }
    )
    make = spec.compile(parts)
    first, second = make(), make()
    defaults = set(map(id, [*(tree.__defaults__ or ()), *(leaf.__defaults__ or ())]))
    ids = [set(map(id, changeable(made))) - defaults for made in (first, second, spec.to_dict())]
    assert not ids[0] & ids[1]
    assert not ids[0] & ids[2]
    first.table["a"].append(2)
    first.left.names.append("b")
    first.pair[1].add(2)
    assert make() == second == parts.build(spec)


def test_it_is_checked_when_it_is_compiled():
    with pytest.raises(SpecError) as caught:
        Spec.load("type: tree\nleft: {type: leaf, n: x, rat: 1}\n").compile(parts)
    assert [str(problem) for problem in caught.value.problems] == [
        "<text>:2:23 left.n: expected int, got 'x'",
        "<text>:2:26 left.rat: leaf@1 has no argument 'rat'; did you mean 'rate'?",
    ]
    for wrong in ("parts", None):
        with pytest.raises(ConfigurationError, match=r"Spec\.compile\(registry\)"):
            Spec({"type": "leaf"}).compile(wrong)  # type: ignore[arg-type]


def test_it_keeps_the_factories_of_the_moment():
    registry: Registry[Any] = Registry("moment")
    registry.register("a")(lambda: Part(v=1))
    make = Spec({"type": "a"}).compile(registry)
    with registry.override(a=lambda: Part(v=0)):
        inside = Spec({"type": "a"}).compile(registry)
        assert make().v == 1
    assert inside().v == 0
    registry.register("a", version=2)(lambda: Part(v=2))
    assert make().v == 1
    assert Spec({"type": "a"}).compile(registry)().v == 2


def test_it_warns_once_where_it_was_compiled():
    registry: Registry[Any] = Registry("old")
    registry.register("a", deprecated="b")(Part)
    with pytest.warns(FutureWarning, match="deprecated") as caught:
        make = Spec({"type": "a"}).compile(registry)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()


def test_a_failure_says_where_it_is():
    registry: Registry[Any] = Registry("failing")

    @registry.register("f")
    def f(part: Annotated[Any, registry] = None, ok: bool = True) -> Any:
        if not ok:
            raise OSError("disk")
        return Part()

    make = Spec({"type": "f", "part": {"type": "f", "ok": False}}).compile(registry)
    with pytest.raises(OSError, match="disk") as caught:
        make()
    assert caught.value.__notes__ == ["raised while building f@1 of 'failing' at part"]


def test_what_a_function_returns_is_held_against_the_annotation():
    registry: Registry[Any] = Registry("narrow")

    @registry.register("net")
    def net(part: Annotated[Wide, parts]) -> Any:
        return part

    parts.register("sometimes")(lambda wide=False: Wide() if wide else Part())
    good, bad = (
        Spec({"type": "net", "part": {"type": "sometimes", "wide": w}}) for w in (True, False)
    )
    assert isinstance(registry.build(good), Wide)
    assert isinstance(good.compile(registry)(), Wide)
    for build in (lambda: registry.build(bad), bad.compile(registry)):
        with pytest.raises(EntryError, match=r"returned a .*Part, not a .*Wide for part"):
            build()


def test_it_counts_as_builds_and_may_be_called_by_threads():
    from mlkit.telemetry import collect

    registry: Registry[Any] = Registry("threads_of_compiled")
    registry.register("a")(Part)
    make = Spec({"type": "a"}).compile(registry)
    start, made = threading.Barrier(8), []

    def work() -> None:
        start.wait()
        made.extend(make() for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in made}) == 400
    assert all(spec_of(one).type == "a@1" for one in made)
    counts = [s for s in collect() if s.name == "registry_builds_total" and ("registry", registry.name) in s.labels]  # fmt: skip
    assert sum(sample.value for sample in counts) == 400
