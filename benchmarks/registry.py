"""Look up, create, build nested, register: a registry against a bare dictionary and direct calls."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from mlkit.registry import Registry, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Bench

PEERS = ("catalogue", "confection", "hydra-core", "mmengine-lite")

parts: Registry[Any] = Registry("parts")


@parts.register("block")
@dataclasses.dataclass(slots=False)
class Block:
    """One of six objects of a nested build."""

    width: int = 8
    act: str = "relu"
    rate: float = 0.0
    inner: Annotated[Any, parts] | None = None
    other: Annotated[Any, parts] | None = None


@dataclasses.dataclass
class Thing:
    """What `create` makes."""

    width: int = 1
    act: str = "relu"


def thing(width: int = 1, act: str = "relu") -> Thing:
    """Make one through a function."""
    return Thing(width, act)


def direct() -> Block:
    """Make six objects, nested four deep, by hand."""
    deepest = Block(width=4, act="gelu", rate=0.5)
    left = Block(width=3, inner=deepest, rate=0.1)
    right = Block(width=5, act="tanh")
    middle = Block(width=2, inner=left, other=right)
    return Block(width=1, inner=middle, other=Block(width=6, rate=0.25))


def tree(key: str, name: str) -> dict[str, Any]:
    """Return the same six objects as nested data, with *key* naming *name*."""
    deepest = {key: name, "width": 4, "act": "gelu", "rate": 0.5}
    left = {key: name, "width": 3, "inner": deepest, "rate": 0.1}
    right = {key: name, "width": 5, "act": "tanh"}
    middle = {key: name, "width": 2, "inner": left, "other": right}
    return {key: name, "width": 1, "inner": middle, "other": {key: name, "width": 6, "rate": 0.25}}


def run(bench: Bench) -> None:
    """Measure the block."""
    for n in (1, 1_000) if bench.quick else (1, 10_000, 100_000):
        create(bench, n)
    nested(bench)
    registering(bench, 1_000 if bench.quick else 10_000)
    missing(bench, 1_000 if bench.quick else 10_000)


def create(bench: Bench, n: int) -> None:
    """Compare looking one of *n* names up and calling it."""
    work = f"create by name, one of {n:,}"
    names = [f"thing_{index}" for index in range(n)]
    wanted, calls = names[n // 2], 1_000
    table = dict.fromkeys(names, Thing)
    ours: Registry[Thing] = Registry("things", Thing)
    for name in names:
        ours.register(name)(Thing)
    contenders: dict[str, Callable[[], object]] = {
        "dict, then call": lambda: [table[wanted](width=3, act="x") for _ in range(calls)][-1],
        "mlkit": lambda: [ours.create(wanted, width=3, act="x") for _ in range(calls)][-1],
    }
    try:
        import catalogue
    except ImportError as error:
        bench.skipped(work, "catalogue", str(error))
    else:
        if n <= 10_000:
            theirs = catalogue.create(f"bench_{n}", "things")
            for name in names:
                theirs.register(name, func=Thing)
            contenders["catalogue"] = lambda: [
                theirs.get(wanted)(width=3, act="x") for _ in range(calls)
            ][-1]
        else:
            bench.skipped(
                work, "catalogue", "its table is one for all registries; 10,000 tell enough"
            )
    bench.compare(work, contenders, baseline="dict, then call", calls=calls)


def nested(bench: Bench) -> None:
    """Compare building six nested objects from data."""
    work = "build 6 nested objects from data"
    calls = 20 if bench.quick else 100
    data, spec = tree("type", "block"), Spec(tree("type", "block"))

    def recursion(node: dict[str, Any]) -> Block:
        made = {
            key: recursion(value) if isinstance(value, dict) else value
            for key, value in node.items()
            if key != "type"
        }
        return table[node["type"]](**made)

    table = {"block": Block}
    contenders: dict[str, Callable[[], object]] = {
        "direct calls": direct,
        "dict and recursion, unchecked": lambda: recursion(data),
        "mlkit, checked": lambda: parts.build(data),
        "mlkit, checked, from a Spec": lambda: parts.build(spec),
    }
    for name, prepare in {
        "confection, checked": _confection,
        "hydra instantiate": _hydra,
        "mmengine": _mmengine,
    }.items():
        try:
            contenders[name] = prepare()
        except ImportError as error:
            bench.skipped(work, name, str(error))
    many = {name: _repeated(one, calls) for name, one in contenders.items()}
    bench.compare(work, many, baseline="direct calls", calls=calls, rounds=5 if bench.quick else 9)
    bench.note(
        "The nested build of mlkit and confection checks names and types of all arguments and reports every problem at "
        "once; those of hydra and mmengine check neither. mlkit also keeps the resolved spec of each object."
    )


def _repeated(one: Callable[[], object], calls: int) -> Callable[[], object]:
    return lambda: [one() for _ in range(calls)][-1]


def _confection() -> Callable[[], object]:
    import catalogue
    from confection import registry as base

    class Peer(base):
        blocks = catalogue.create("bench_confection", "blocks")

    def block(
        width: int = 8, act: str = "relu", rate: float = 0.0, inner: Any = None, other: Any = None
    ) -> Block:
        return Block(width, act, rate, inner, other)

    Peer.blocks.register("block", func=block)
    data = {"root": tree("@blocks", "block")}
    return lambda: Peer.resolve(data)["root"]


def _hydra() -> Callable[[], object]:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.create(tree("_target_", "benchmarks.registry.Block"))
    return lambda: instantiate(config)


def _mmengine() -> Callable[[], object]:
    from mmengine.registry import Registry as Peer

    peer = Peer("bench_blocks")

    def block(inner: Any = None, other: Any = None, **rest: Any) -> Block:
        # A factory of mmengine builds its own parts.
        inner = inner and peer.build(dict(inner))
        other = other and peer.build(dict(other))
        return Block(inner=inner, other=other, **rest)

    peer.register_module(name="block", module=block)
    data = tree("type", "block")
    return lambda: peer.build(dict(data))


def registering(bench: Bench, n: int) -> None:
    """Compare filling a table with *n* names."""
    work = f"register {n:,} names"
    names = [f"thing_{index}" for index in range(n)]

    def bare() -> int:
        table = {}
        for name in names:
            table[name] = thing
        return len(table)

    def ours() -> int:
        registry: Registry[Any] = Registry("things")
        for name in names:
            registry.register(name)(thing)
        return len(registry)

    contenders: dict[str, Callable[[], object]] = {"dict": bare, "mlkit": ours}
    try:
        import catalogue
    except ImportError as error:
        bench.skipped(work, "catalogue", str(error))
    else:

        def theirs() -> int:
            registry = catalogue.create("bench_registering", "things")
            for name in names:
                registry.register(name, func=thing)
            return n

        contenders["catalogue"] = theirs
    bench.compare(work, contenders, baseline="dict", calls=n, rounds=5)


def missing(bench: Bench, n: int) -> None:
    """Compare a miss with the closest names against what difflib alone takes."""
    from difflib import get_close_matches

    names = [f"thing_{index}" for index in range(n)]
    registry: Registry[Any] = Registry("things")
    for name in names:
        registry.register(name)(thing)

    def ours() -> bool:
        try:
            registry.create("thing_12345x")
        except KeyError as error:
            return bool(error.suggestions)  # type: ignore[attr-defined]
        return False

    bench.compare(
        f"a miss with suggestions among {n:,}",
        {"difflib": lambda: bool(get_close_matches("thing_12345x", names)), "mlkit": ours},
        baseline="difflib",
        unit="ms",
        rounds=5,
    )
