"""Deciding, assigning and reloading flags, beside flagd's evaluator, OpenFeature, GrowthBook, Unleash and a dict."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlkit.flags import Flags

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Bench

PEERS = (
    "openfeature-flagd-core",
    "openfeature-sdk",
    "growthbook",
    "UnleashClient",
    "yggdrasil-engine",
)
SPLIT = "10/90 split for a pro user"
RULE = {"if": [{"==": [{"var": "plan"}, "pro"]}, {"fractional": [["on", 10], ["off", 90]]}, "off"]}
STATIC = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "on"}
THREE = {
    "and": [
        {"==": [{"var": "plan"}, "pro"]},
        {">=": [{"var": "age"}, 18]},
        {"in": [{"var": "country"}, ["DE", "FR"]]},
    ]
}
FLAGS = {
    "static": STATIC,
    "rollout": {**STATIC, "defaultVariant": "off", "targeting": RULE},
    "three": {**STATIC, "targeting": {"if": [THREE, "on", "off"]}},
}
VISITOR = {"plan": "pro", "age": 30, "country": "DE"}
N_CALLS = 1000


def run(bench: Bench) -> None:
    """Run all comparisons."""
    logging.disable(logging.CRITICAL)
    try:
        flags = Flags.from_dict({"flags": FLAGS})
        _static(bench, flags)
        _provider(bench, flags)
        _three(bench, flags)
        _many(bench)
        _split(bench, flags)
        _assign(bench, flags, 5_000 if bench.quick else 100_000)
        _load(bench, 300 if bench.quick else 10_000)
    finally:
        logging.disable(logging.NOTSET)
    bench.note(
        "Ours give details with the digest of the flags and count each evaluation. The bare contenders hash with mmh3 and "
        "know neither rules nor trouble. GrowthBook and Unleash hash in their own way, so that their answers to the split "
        "are other users than ours: only the number of calls is compared there. Unleash is timed at its engine, "
        "yggdrasil; the client around it costs more."
    )


def _static(bench: Bench, flags: Flags) -> None:
    flag, table = flags.bool("static", default=False), {"static": True}
    contenders: dict[str, Callable[[], object]] = {
        "dict lookup": lambda: [table["static"] for _ in range(N_CALLS)],
        "mlkit": lambda: [flag("u") for _ in range(N_CALLS)],
        "mlkit details": lambda: [flag.details("u").value for _ in range(N_CALLS)],
    }
    work = "static flag"
    _add(bench, work, contenders, "flagd-core", lambda: _flagd("static", {}))
    _add(bench, work, contenders, "openfeature in-memory", _openfeature)
    _add(bench, work, contenders, "growthbook", lambda: _growthbook("static"))
    bench.compare(work, contenders, baseline="dict lookup", calls=N_CALLS)


def _provider(bench: Bench, flags: Flags) -> None:
    """What a provider adds to the SDK's own cost of hooks and contexts."""
    work, contenders = "static flag, asked through OpenFeature's SDK", {}
    _add(bench, work, contenders, "its in-memory provider", _openfeature)
    _add(bench, work, contenders, "mlkit's provider", lambda: _our_provider(flags))
    _add(bench, work, contenders, "flagd's provider, file", _flagd_provider)
    if "its in-memory provider" in contenders:
        bench.compare(work, contenders, baseline="its in-memory provider", calls=N_CALLS)


def _three(bench: Bench, flags: Flags) -> None:
    flag = flags.bool("three", default=False)

    def bare() -> list[bool]:
        answers = []
        for _ in range(N_CALLS):
            data = VISITOR
            answers.append(
                data["plan"] == "pro" and data["age"] >= 18 and data["country"] in {"DE", "FR"}
            )
        return answers

    contenders: dict[str, Callable[[], object]] = {
        "by hand": bare,
        "mlkit": lambda: [flag("u", **VISITOR) for _ in range(N_CALLS)],
        "mlkit details": lambda: [flag.details("u", **VISITOR).value for _ in range(N_CALLS)],
    }
    work = "rule of three conditions"
    _add(bench, work, contenders, "flagd-core", lambda: _flagd("three", VISITOR))
    bench.compare(work, contenders, baseline="by hand", calls=N_CALLS)


def _many(bench: Bench) -> None:
    """Time a thousand flags with a rule each for one user, as a client's bulk evaluation does."""
    document = {"flags": {f"rule-{i}": FLAGS["three"] for i in range(N_CALLS)}}
    flags = Flags.from_dict(document)
    handles = [flags.bool(key, default=False) for key in document["flags"]]
    contenders: dict[str, Callable[[], object]] = {
        "mlkit details": lambda: [flag.details("u", **VISITOR).value for flag in handles],
    }

    def flagd() -> Callable[[], object]:
        from openfeature.contrib.tools.flagd.core import FlagdCore
        from openfeature.evaluation_context import EvaluationContext

        core, context = FlagdCore(), EvaluationContext("u", VISITOR)
        core.set_flags(json.dumps(document))
        keys = list(document["flags"])
        return lambda: [core.resolve_boolean_value(key, False, context).value for key in keys]  # noqa: FBT003

    work = f"{N_CALLS} rules of three conditions"
    _add(bench, work, contenders, "flagd-core", flagd)
    bench.compare(work, contenders, baseline="mlkit details", unit="ms")


def _split(bench: Bench, flags: Flags) -> None:
    from mmh3 import mmh3_32_uintdigest

    flag, units = flags.bool("rollout", default=False), [f"user-{i}" for i in range(N_CALLS)]
    prefix = b"\x82\x67rollout"

    def bare() -> list[bool]:
        plan, answers = "pro", []
        for unit in units:
            body = unit.encode()
            hashed = mmh3_32_uintdigest(prefix + bytes([0x60 + len(body)]) + body)
            answers.append(plan == "pro" and (hashed * 100) >> 32 < 10)
        return answers

    contenders: dict[str, Callable[[], object]] = {
        "by hand": bare,
        "mlkit": lambda: [flag(unit, plan="pro") for unit in units],
        "mlkit details": lambda: [flag.details(unit, plan="pro").value for unit in units],
    }
    _add(bench, SPLIT, contenders, "flagd-core", lambda: _flagd("rollout", {"plan": "pro"}, units))
    bench.compare(SPLIT, contenders, baseline="by hand", calls=N_CALLS)
    others: dict[str, Callable[[], object]] = {"by hand": lambda: len(bare())}
    others["mlkit"] = lambda: len([flag(unit, plan="pro") for unit in units])
    work = f"{SPLIT}, own hash"
    _add(bench, work, others, "growthbook", lambda: _growthbook("rollout", units))
    _add(bench, work, others, "unleash (yggdrasil)", lambda: _unleash(units))
    bench.compare(work, others, baseline="by hand", calls=N_CALLS)


def _assign(bench: Bench, flags: Flags, n: int) -> None:
    from mmh3 import mmh3_32_uintdigest

    flag, units = flags.bool("rollout", default=False), [f"user-{i:08d}" for i in range(n)]
    plans = ["pro"] * n

    def bare() -> int:
        total, prefix = 0, b"\x82\x67rollout\x6d"
        for unit in units:
            total += (mmh3_32_uintdigest(prefix + unit.encode()) * 100) >> 32 < 10
        return total

    contenders: dict[str, Callable[[], object]] = {
        "mmh3 in a loop, by hand": bare,
        "mlkit assign": lambda: sum(flag.assign(units, plan=plans).values),
        "mlkit in a loop": lambda: sum([flag(unit, plan="pro") for unit in units]),
    }
    work = f"assign {n} ids"
    loop = _flagd_or_none("rollout", {"plan": "pro"}, units)
    if loop is None:
        bench.skipped(work, "flagd-core in a loop", "not installed")
    else:
        contenders["flagd-core in a loop"] = lambda: sum(loop())
    bench.compare(
        work,
        contenders,
        baseline="mmh3 in a loop, by hand",
        calls=n,
        unit="ns",
        rounds=3 if bench.quick else 5,
    )


def _flag_of_many(index: int) -> dict[str, Any]:
    """Return one of many flags: six in ten static, three with a rule of their own, one with a split."""
    if index % 10 < 6:
        return STATIC
    if index % 10 == 9:
        weight = index % 100
        return {**STATIC, "targeting": {"fractional": [["on", weight], ["off", 100 - weight]]}}
    own = {"and": [{"==": [{"var": "plan"}, f"pro-{index}"]}, *THREE["and"][1:]]}
    return {**STATIC, "targeting": {"if": [own, "on", "off"]}}


def _load(bench: Bench, n: int) -> None:
    flags = {f"flag-{i}": _flag_of_many(i) for i in range(n)}
    text = json.dumps({"flags": flags})
    changed = json.dumps({"flags": {**flags, "flag-0": {**STATIC, "defaultVariant": "off"}}})
    path = Path(tempfile.mkdtemp()) / "flags.json"
    path.write_text(text)
    watched = Flags.from_file(path)

    def reload() -> int:
        for version in (changed, text):
            path.write_text(version)
            if watched.reload() is None:
                raise RuntimeError("the change was not seen")
        return n

    work = f"load {n} flags"
    contenders: dict[str, Callable[[], object]] = {
        "json.loads": lambda: len(json.loads(text)["flags"]),
        "mlkit": lambda: len(_entered(Flags.from_file(path))),
    }
    _add(bench, work, contenders, "flagd-core", lambda: _flagd_load(text, n))
    bench.compare(
        work, contenders, baseline="json.loads", unit="ms", rounds=3 if bench.quick else 9
    )
    work = f"reload, one of {n} changed"
    again: dict[str, Callable[[], object]] = {
        "json.loads": lambda: max(len(json.loads(text)["flags"]) for _ in range(2)),
        "mlkit": reload,
    }
    _add(bench, work, again, "flagd-core", lambda: _flagd_reload(text, changed, n))
    bench.compare(
        work, again, baseline="json.loads", unit="ms", calls=2, rounds=3 if bench.quick else 9
    )


def _entered(flags: Flags) -> Any:
    with flags.snapshot() as snapshot:
        return snapshot


def _add(
    bench: Bench,
    work: str,
    contenders: dict[str, Callable[[], object]],
    name: str,
    make: Callable[[], Callable[[], object]],
) -> None:
    try:
        contenders[name] = make()
    except ImportError as error:
        bench.skipped(work, name, f"not installed: {error.name}")


def _flagd_or_none(
    key: str, attributes: dict[str, Any], units: list[str]
) -> Callable[[], list[bool]] | None:
    try:
        return _flagd(key, attributes, units)
    except ImportError:
        return None


def _flagd(
    key: str, attributes: dict[str, Any], units: list[str] | None = None
) -> Callable[[], list[bool]]:
    from openfeature.contrib.tools.flagd.core import FlagdCore
    from openfeature.evaluation_context import EvaluationContext

    core = FlagdCore()
    core.set_flags(json.dumps({"flags": FLAGS}))
    names = units or ["u"] * N_CALLS
    return lambda: [
        core.resolve_boolean_value(key, False, EvaluationContext(name, attributes)).value  # noqa: FBT003
        for name in names
    ]


def _flagd_load(text: str, n: int) -> Callable[[], int]:
    from openfeature.contrib.tools.flagd.core import FlagdCore

    def load() -> int:
        FlagdCore().set_flags(text)
        return n

    return load


def _flagd_reload(text: str, changed: str, n: int) -> Callable[[], int]:
    from openfeature.contrib.tools.flagd.core import FlagdCore

    core = FlagdCore()

    def reload() -> int:
        core.set_flags_and_get_changed_keys(changed)
        core.set_flags_and_get_changed_keys(text)
        return n

    return reload


def _openfeature() -> Callable[[], list[bool]]:
    from openfeature import api
    from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

    api.set_provider(InMemoryProvider({"static": InMemoryFlag("on", {"on": True, "off": False})}))
    client = api.get_client()
    return lambda: [client.get_boolean_value("static", False) for _ in range(N_CALLS)]  # noqa: FBT003


def _our_provider(flags: Flags) -> Callable[[], list[bool]]:
    from openfeature import api

    from mlkit.integrations.openfeature import Provider

    api.set_provider_and_wait(Provider(flags), domain="mlkit")
    client = api.get_client("mlkit")
    return lambda: [client.get_boolean_value("static", False) for _ in range(N_CALLS)]  # noqa: FBT003


def _flagd_provider() -> Callable[[], list[bool]]:
    from openfeature import api
    from openfeature.contrib.provider.flagd import FlagdProvider
    from openfeature.contrib.provider.flagd.config import ResolverType

    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"flags": FLAGS}, file)
        file.flush()
        provider = FlagdProvider(
            resolver_type=ResolverType.FILE,
            offline_flag_source_path=file.name,
        )
        api.set_provider_and_wait(provider, domain="flagd")
    client = api.get_client("flagd")
    return lambda: [client.get_boolean_value("static", False) for _ in range(N_CALLS)]  # noqa: FBT003


def _growthbook(key: str, units: list[str] | None = None) -> Callable[[], object]:
    from growthbook import GrowthBook

    rule = {"condition": {"plan": "pro"}, "force": True, "coverage": 0.1, "hashAttribute": "id"}
    client = GrowthBook(
        features={
            "static": {"defaultValue": True},
            "rollout": {"defaultValue": False, "rules": [rule]},
        }
    )
    if units is None:
        return lambda: [client.is_on(key) for _ in range(N_CALLS)]

    def decide() -> int:
        answers = []
        for unit in units:
            client.set_attributes({"id": unit, "plan": "pro"})
            answers.append(client.is_on(key))
        return len(answers)

    return decide


def _unleash(units: list[str]) -> Callable[[], int]:
    from yggdrasil_engine.engine import UnleashEngine

    parameters = {"rollout": "10", "stickiness": "userId", "groupId": "rollout"}
    constraint = {"contextName": "plan", "operator": "IN", "values": ["pro"]}
    strategy = {
        "name": "flexibleRollout",
        "parameters": parameters,
        "constraints": [constraint],
    }
    toggle = {"name": "rollout", "type": "release", "enabled": True, "strategies": [strategy]}
    engine = UnleashEngine()
    engine.take_state(json.dumps({"version": 2, "features": [toggle]}))
    return lambda: len(
        [
            engine.is_enabled("rollout", {"userId": unit, "properties": {"plan": "pro"}})
            for unit in units
        ]
    )
