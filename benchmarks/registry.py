"""Look up, create, build nested, register: a registry against a bare dictionary and direct calls."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Annotated, Any

from benchmarks import registry_names
from mlkit.registry import Registry, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Bench

PEERS = (
    "catalogue",
    "confection",
    "fvcore",
    "gymnasium",
    "hydra-core",
    "hydra-zen",
    "jsonargparse",
    "mmengine-lite",
    "phx-class-registry",
)

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


class Plain(Block):
    """A block as jsonargparse takes classes: annotated with itself, in place of a registry."""

    def __init__(
        self,
        width: int = 8,
        act: str = "relu",
        rate: float = 0.0,
        inner: Plain | None = None,
        other: Plain | None = None,
    ) -> None:
        super().__init__(width, act, rate, inner, other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Block) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


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
    bench.clock = time.thread_time  # what the work costs, whoever else is on the machine
    registry_names.run(bench)
    nested(bench)


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
        "mlkit, compiled, checked once": spec.compile(parts),
    }
    names_only = "looks one name up, and nests nothing"
    bench.skipped(work, "catalogue", "looks one name up; confection builds with it")
    bench.skipped(work, "class-registry", names_only)
    bench.skipped(work, "fvcore", names_only)
    bench.skipped(work, "gymnasium", names_only)
    _turns(bench, work, contenders, calls)
    slow: dict[str, Callable[[], object]] = {"direct calls": direct}
    more = {
        "confection, checked": _confection,
        "mmengine": _mmengine,
        "hydra instantiate": _hydra,
        "hydra-zen instantiate": _hydra_zen,
        "jsonargparse, checked": _jsonargparse,
    }
    work = "build 6 nested objects from data, slower peers"
    _add(bench, work, slow, more)
    _turns(bench, work, slow, 5)
    bench.note(
        "The nested build of mlkit, confection and jsonargparse checks names and types of all arguments; mlkit reports "
        "every problem at once, and notes what each object was built from, which is part of its figures. A compiled spec "
        "was checked before. Built are 100 at a time; where thousands stay alive, what is noted of them outgrows the "
        "processor's cache, and the ratio of a compiled spec rises to about 3. hydra, hydra-zen (which checks names when its config is made, before it is timed) and "
        "mmengine check no types while they build."
    )


def _add(
    bench: Bench,
    work: str,
    contenders: dict[str, Callable[[], object]],
    peers: dict[str, Callable[[], Callable[[], object]]],
) -> None:
    for name, prepare in peers.items():
        try:
            contenders[name] = prepare()
        except ImportError as error:
            bench.skipped(work, name, str(error))


def _turns(
    bench: Bench, work: str, contenders: dict[str, Callable[[], object]], calls: int
) -> None:
    many = {name: _repeated(one, calls) for name, one in contenders.items()}
    rounds = 5 if bench.quick else 41
    bench.compare(work, many, baseline="direct calls", calls=calls, rounds=rounds)


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


def _hydra_zen() -> Callable[[], object]:
    from hydra_zen import builds, instantiate

    def config(node: dict[str, Any]) -> Any:
        given = {
            key: config(value) if isinstance(value, dict) else value
            for key, value in node.items()
            if key != "type"
        }
        return builds(Block, **given)

    made = config(tree("type", "block"))
    return lambda: instantiate(made)


def _jsonargparse() -> Callable[[], object]:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--root", type=Plain)
    data = {"root": _init_args(tree("type", "block"))}
    return lambda: parser.instantiate_classes(parser.parse_object(data)).root


def _init_args(node: dict[str, Any]) -> dict[str, Any]:
    given = {
        key: _init_args(value) if isinstance(value, dict) else value
        for key, value in node.items()
        if key != "type"
    }
    return {"class_path": "benchmarks.registry.Plain", "init_args": given}


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
