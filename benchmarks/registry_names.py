"""The naming side of the registry: create by name, register, miss, and 50 plugins nobody asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlkit.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Bench

N_PLUGINS = 50
GROUP = "mlkit_bench_plugins"


@dataclasses.dataclass
class Thing:
    """What `create` makes."""

    width: int = 1
    act: str = "relu"


def thing(width: int = 1, act: str = "relu") -> Thing:
    """Make one through a function."""
    return Thing(width, act)


def run(bench: Bench) -> None:
    """Measure the naming side."""
    for n in (1, 1_000) if bench.quick else (1, 100, 10_000, 100_000):
        create(bench, n)
    for n in (1_000,) if bench.quick else (1_000, 10_000, 100_000):
        registering(bench, n)
    missing(bench, 1_000 if bench.quick else 10_000)
    selecting(bench)
    plugins(bench)


# --- peers: from names to a table that is filled, and how one is looked up -------------------------------------------


def _catalogue(names: list[str]) -> Callable[[str], Any]:
    import catalogue

    # One table for all registries, so that each needs a name of its own.
    peer = catalogue.create(f"bench_{next(_serial)}", "things")
    for name in names:
        peer.register(name, func=Thing)
    return peer.get  # type: ignore[no-any-return]


def _fvcore(names: list[str]) -> Callable[[str], Any]:
    from fvcore.common.registry import Registry as Peer

    peer: Any = Peer("things")
    for name in names:
        peer._do_register(name, Thing)  # its public way takes the name of the object
    return peer.get  # type: ignore[no-any-return]


def _class_registry(names: list[str]) -> Callable[[str], Any]:
    from class_registry import ClassRegistry

    peer: Any = ClassRegistry()
    for name in names:
        peer.register(name)(Thing)
    return peer.get_class  # type: ignore[no-any-return]


def _mmengine(names: list[str]) -> Callable[[str], Any]:
    from mmengine.registry import Registry as Peer

    peer: Any = Peer(f"bench_{next(_serial)}")
    for name in names:
        peer.register_module(name=name, module=Thing)
    return peer.get  # type: ignore[no-any-return]


def _gymnasium(names: list[str]) -> Callable[[str], Any]:
    from gymnasium.envs import registration

    known: Any = {}
    before, registration.registry = registration.registry, known
    try:
        for name in names:
            registration.register(name, entry_point=Thing)
    finally:
        registration.registry = before
    return lambda name: known[f"{name}"].entry_point


def _gymnasium_make(names: list[str], wanted: str, calls: int) -> Callable[[], object]:
    import gymnasium
    from gymnasium.envs import registration

    class Env(gymnasium.Env[Any, Any]):
        """A thing as gymnasium makes them."""

        def __init__(self, width: int = 1, act: str = "relu") -> None:
            self.thing = Thing(width, act)

        def __eq__(self, other: object) -> bool:
            return self.thing == other

        __hash__ = None  # type: ignore[assignment]

    known: Any = {}

    def work() -> object:
        before, registration.registry = registration.registry, known
        try:
            return [gymnasium.make(wanted, width=3, act="x") for _ in range(calls)][-1]
        finally:
            registration.registry = before

    before, registration.registry = registration.registry, known
    try:
        for name in names:
            registration.register(
                name, entry_point=Env, order_enforce=False, disable_env_checker=True
            )
    finally:
        registration.registry = before
    return work


_PATHS = "has no names: its data holds import paths; see the nested build"
NAMELESS = {
    "confection": "looks names up in catalogue's table; see the nested build",
    "hydra": _PATHS,
    "hydra-zen": _PATHS,
    "jsonargparse": _PATHS,
}
PEERS: dict[str, Callable[[list[str]], Callable[[str], Any]]] = {
    "catalogue": _catalogue,
    "class-registry": _class_registry,
    "fvcore": _fvcore,
    "mmengine": _mmengine,
}
_serial = iter(range(1_000_000))


def create(bench: Bench, n: int) -> None:
    """Compare looking one of *n* names up and calling it."""
    work = f"create by name, one of {n:,}"
    names = [f"thing_{index}" for index in range(n)]
    wanted, calls = names[n // 2], 1_000
    table = dict.fromkeys(names, Thing)
    ours: Registry[Thing] = Registry("things", Thing)
    for name in names:
        ours.register(name)(Thing)

    def through(get: Callable[[str], Any]) -> Callable[[], object]:
        return lambda: [get(wanted)(width=3, act="x") for _ in range(calls)][-1]

    contenders: dict[str, Callable[[], object]] = {
        "dict, then call": lambda: [table[wanted](width=3, act="x") for _ in range(calls)][-1],
        "mlkit": lambda: [ours.create(wanted, width=3, act="x") for _ in range(calls)][-1],
    }
    for peer, fill in PEERS.items():
        if n > 10_000:
            bench.skipped(work, peer, "10,000 names tell enough")
            continue
        try:
            contenders[peer] = through(fill(names))
        except ImportError as error:
            bench.skipped(work, peer, str(error))
    if n > 1_000:
        bench.skipped(work, "gymnasium", "it fills a table in quadratic time; see `register`")
    else:
        try:
            contenders["gymnasium"] = _gymnasium_make(names, wanted, calls)
        except ImportError as error:
            bench.skipped(work, "gymnasium", str(error))
    if n == 1:
        _skip(bench, work, NAMELESS)
    bench.compare(work, contenders, baseline="dict, then call", calls=calls)


def _skip(bench: Bench, work: str, reasons: dict[str, str]) -> None:
    for peer, reason in reasons.items():
        bench.skipped(work, peer, reason)


def registering(bench: Bench, n: int) -> None:
    """Compare filling a table with *n* names, by the decorator where there is one."""
    work = f"register {n:,} names"
    names = [f"thing_{index}" for index in range(n)]

    def bare() -> bool:
        table = {}
        for name in names:
            table[name] = Thing
        return table[names[-1]] is Thing

    def ours() -> bool:
        registry: Registry[Any] = Registry("things")
        for name in names:
            registry.register(name)(Thing)
        return registry[names[-1]] is Thing

    contenders: dict[str, Callable[[], object]] = {"dict": bare, "mlkit": ours}
    for peer, fill in {**PEERS, "gymnasium": _gymnasium}.items():
        limit = 1_000 if peer == "gymnasium" else 10_000
        if n > limit:
            bench.skipped(work, peer, f"{limit:,} names tell enough")
            continue
        try:
            fill(names[:1])
        except ImportError as error:
            bench.skipped(work, peer, str(error))
            continue
        contenders[peer] = _filled(fill, names)
    if n == 1_000:
        _skip(bench, work, NAMELESS)
    bench.compare(work, contenders, baseline="dict", calls=n, rounds=3 if n > 10_000 else 5)


def _filled(
    fill: Callable[[list[str]], Callable[[str], Any]], names: list[str]
) -> Callable[[], object]:
    return lambda: fill(names)(names[-1]) is Thing


def _words(n: int) -> list[str]:
    """Return names of five words each, which have most of their letters in common."""
    words = ["res", "net", "vit", "conv", "bert", "base", "large", "tiny", "patch", "16", "224", "in1k", "swin"]  # fmt: skip
    choose = random.Random(1)
    return [f"{'-'.join(choose.choices(words, k=5))}{index}" for index in range(n)]


def _digests(n: int) -> list[str]:
    """Return names of the same sixteen letters, in any order."""
    return [hashlib.blake2b(b"%d" % index, digest_size=10).hexdigest() for index in range(n)]


def missing(bench: Bench, n: int) -> None:
    """Compare a miss with the closest names against what difflib alone takes."""
    from difflib import get_close_matches

    for names, wanted in (
        ([f"thing_{index}" for index in range(n)], "thing_12345x"),
        ([f"resnet{index}-a{index % 7}-in1k" for index in range(n)], "resnest50-a1-in1k"),
        (_words(n), "resnet-base-patch16-224-in1k"),
        (_digests(n), _digests(n)[n // 2][:-1] + "x"),
    ):
        registry: Registry[Any] = Registry("things")
        for name in names:
            registry.register(name)(thing)

        def ours(registry: Registry[Any] = registry, wanted: str = wanted) -> list[str]:
            try:
                registry.create(wanted)
            except KeyError as error:
                return [one.replace("_", "-") for one in error.suggestions]  # type: ignore[attr-defined]
            return []

        folded = [name.replace("_", "-") for name in names]
        near = wanted.replace("_", "-")
        bench.compare(
            f"a miss among {n:,}, {wanted!r}",
            {
                "difflib": lambda folded=folded, near=near: get_close_matches(near, folded),  # type: ignore[misc]
                "mlkit": ours,
            },
            baseline="difflib",
            unit="ms",
            equal=lambda first, second: first[:1] == second[:1],  # type: ignore[index]
            rounds=5,
        )
    silent = "names no near one"
    unequal = {
        "catalogue": "writes all names out",
        "class-registry": silent,
        "fvcore": silent,
        "mmengine": silent,
        "gymnasium": "names at most one, of those with the same namespace",
        **NAMELESS,
    }
    _skip(bench, f"a miss among {n:,}", unequal)
    bench.note(
        "The first suggestion of a miss is that of difflib, case and `-` or `_` set aside; so are the others while no "
        "more than 500 names have the letters for it."
    )


# --- strategies --------------------------------------------------------------------------------------------------------


def selecting(bench: Bench) -> None:
    """Compare deciding between five strategies with the same decision written by hand."""
    registry: Registry[Any] = Registry("strategies")
    limits = (1, 10, 100, 1_000)
    conditions: list[tuple[Callable[[int], bool], Callable[..., Any]]] = []
    for limit in limits:
        made = dataclasses.make_dataclass(f"Upto{limit}", [])
        conditions.append((lambda rows, limit=limit: rows <= limit, made))  # type: ignore[misc]
        registry.register(f"upto_{limit}", priority=-limit, when=conditions[-1][0])(made)
    registry.register("any", priority=-10_000)(Thing)
    strategies = [made for _, made in conditions]
    calls = 1_000

    def by_hand(rows: int) -> Any:
        for limit, strategy in zip(limits, strategies, strict=True):
            if rows <= limit:
                return strategy
        return Thing

    def predicates(rows: int) -> Any:
        return next((strategy for accepts, strategy in conditions if accepts(rows)), Thing)

    for rows, which in ((1, "first"), (5_000, "last")):
        bench.compare(
            f"decide for the {which} of 5 strategies",
            {
                "a loop of comparisons": lambda rows=rows: [by_hand(rows) for _ in range(calls)][-1],  # type: ignore[misc]
                "a list of predicates": lambda rows=rows: [predicates(rows) for _ in range(calls)][-1],  # type: ignore[misc]
                "mlkit, with every reason": lambda rows=rows: [registry.select(rows).factory for _ in range(calls)][-1],  # type: ignore[misc]
            },
            baseline="a loop of comparisons",
            calls=calls,
        )  # fmt: skip


# --- plugins -----------------------------------------------------------------------------------------------------------


def plugins(bench: Bench) -> None:
    """Compare what looking into a group of installed plugins takes, and count what it imports."""
    with tempfile.TemporaryDirectory() as folder:
        for index in range(N_PLUGINS):
            info = Path(folder, f"bench_plugin_{index}-1.0.dist-info")
            info.mkdir()
            metadata = f"Metadata-Version: 2.1\nName: bench-plugin-{index}\nVersion: 1.0\n"
            (info / "METADATA").write_text(metadata)
            target = f"p{index} = bench_plugin_module_{index}:make\n"
            (info / "entry_points.txt").write_text(f"[{GROUP}]\n{target}")
            module = Path(folder, f"bench_plugin_module_{index}.py")
            module.write_text(f"def make():\n    return {index}\n")
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            _look(bench)
        finally:
            sys.path.remove(folder)
            _forget()


def _look(bench: Bench) -> None:
    def ours() -> Any:
        return Registry("plugins", entry_points=GROUP)

    openers: dict[str, tuple[Callable[[], Any], Callable[[Any], list[str]], str]] = {
        "mlkit": (ours, lambda registry: sorted(registry.list()), "__getitem__")
    }
    try:
        import catalogue
    except ImportError as error:
        bench.skipped("plugins", "catalogue", str(error))
    else:

        def theirs() -> Any:
            # It reads all entry points when it is imported, and here that was before there were any.
            catalogue.AVAILABLE_ENTRY_POINTS = catalogue.importlib_metadata.entry_points()
            return catalogue.create("mlkit_bench", "plugins", entry_points=True)

        openers["catalogue"] = (
            theirs,
            lambda registry: sorted(registry.get_all()),
            "get",
        )
    try:
        from class_registry.entry_points import EntryPointClassRegistry
    except ImportError as error:
        bench.skipped("plugins", "class-registry", str(error))
    else:
        openers["class-registry"] = (
            lambda: EntryPointClassRegistry(GROUP),
            lambda registry: sorted(registry.keys()),
            "get_class",
        )
    listing: dict[str, Callable[[], object]] = {}
    for name, (start, names, get) in openers.items():
        counts = []
        for act in (names, lambda registry, get=get: getattr(registry, get)("p7")):
            _forget()
            registry = start()
            act(registry)
            counts.append(_forget())
        bench.note(
            f"{name}: listing {N_PLUGINS} plugins imports {counts[0]} of them, getting one imports {counts[1]}."
        )
        listing[name] = _listed(start, names)
    bench.compare(
        f"open and list {N_PLUGINS} plugins", listing, baseline="mlkit", unit="ms", rounds=5
    )


def _listed(start: Callable[[], Any], names: Callable[[Any], list[str]]) -> Callable[[], object]:
    def work() -> list[str]:
        _forget()
        return names(start())

    return work


def _forget() -> int:
    """Drop the plugins' modules; return how many there were."""
    found = [name for name in sys.modules if name.startswith("bench_plugin_module_")]
    for name in found:
        del sys.modules[name]
    return len(found)
