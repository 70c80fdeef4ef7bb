"""Deciding, assigning and reloading flags, beside flagd, OpenFeature, Unleash, GrowthBook, ConfigCat, datalogic and a dict."""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.flags_peers import PEERS, SAME_HASH, STATIC, THREE, close, flagd_document
from mlkit.flags import Flags

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from benchmarks.harness import Bench

VISITOR = {"plan": "pro", "age": 30, "country": "DE"}
N_CALLS = 1000
SPLIT_WORK = "10/90 split for a pro user"


def run(bench: Bench) -> None:
    """Run all comparisons."""
    logging.disable(logging.CRITICAL)
    bench.clock = time.thread_time  # what the work costs, whoever else is on the machine
    try:
        flags = Flags.from_dict(flagd_document(1))
        recorded = Flags.from_dict(flagd_document(1))
        with recorded.record_exposures():
            for work in (_static, _three, _split):
                work(bench, flags, recorded)
                close()
        _provider(bench, flags)
        _many(bench)
        close()
        _assign(bench, flags, 5_000 if bench.quick else 100_000)
        _load(bench, 300 if bench.quick else 10_000)
        _rollback(bench, 300 if bench.quick else 10_000)
    finally:
        logging.disable(logging.NOTSET)
    bench.note(
        "Times are CPU time of the calling thread. Ours give details with the digest of the flags and count each evaluation; with exposures, they also see to it that "
        "each unit's variant is told once. The bare contenders hash with mmh3 and know neither rules nor trouble. GrowthBook, "
        "Unleash and ConfigCat hash in their own way, so that their split is of other users: only the number of answers is "
        "compared there. ConfigCat looks at its file before each answer. datalogic-py is a rule engine: it has no flags."
    )


def _rounds(bench: Bench) -> int:
    """Return more rounds than usual: a short one may go by without another process in between."""
    return 3 if bench.quick else 20


def _static(bench: Bench, flags: Flags, recorded: Flags) -> None:
    flag, table = flags.bool("static", default=False), {"static": True}
    said = recorded.bool("static", default=False)
    contenders: dict[str, Callable[[], object]] = {
        "dict lookup": lambda: [table["static"] for _ in range(N_CALLS)],
        "mlkit": lambda: [flag("u") for _ in range(N_CALLS)],
        "mlkit details": lambda: [flag.details("u").value for _ in range(N_CALLS)],
        "mlkit details, exposures": lambda: [said.details("u").value for _ in range(N_CALLS)],
    }
    work = "static flag"
    _peers(bench, work, contenders, [("static", "u", {})] * N_CALLS, but={"datalogic-py"})
    bench.skipped(work, "datalogic-py", "a rule engine: it has no flags")
    _add(bench, work, contenders, "openfeature in-memory", _openfeature)
    bench.compare(work, contenders, baseline="dict lookup", calls=N_CALLS, rounds=_rounds(bench))


def _provider(bench: Bench, flags: Flags) -> None:
    """What a provider adds to the SDK's own cost of hooks and contexts."""
    work, contenders = "static flag, asked through OpenFeature's SDK", {}
    _add(bench, work, contenders, "its in-memory provider", _openfeature)
    _add(bench, work, contenders, "mlkit's provider", lambda: _our_provider(flags))
    if "its in-memory provider" in contenders:
        bench.compare(work, contenders, baseline="its in-memory provider", calls=N_CALLS)


def _three(bench: Bench, flags: Flags, recorded: Flags) -> None:
    flag, said = flags.bool("rule-0", default=False), recorded.bool("rule-0", default=False)

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
        "mlkit": lambda: [flag("u", plan="pro", age=30, country="DE") for _ in range(N_CALLS)],
        "mlkit details": lambda: [
            flag.details("u", plan="pro", age=30, country="DE").value for _ in range(N_CALLS)
        ],
        "mlkit details, exposures": lambda: [
            said.details("u", plan="pro", age=30, country="DE").value for _ in range(N_CALLS)
        ],
    }
    work = "rule of three conditions"
    _peers(bench, work, contenders, [("rule-0", "u", VISITOR)] * N_CALLS)
    bench.compare(work, contenders, baseline="by hand", calls=N_CALLS, rounds=_rounds(bench))


def _many(bench: Bench) -> None:
    """Time a thousand flags with a rule each for one user, as a client's bulk evaluation does."""
    flags = Flags.from_dict(flagd_document(N_CALLS))
    recorded = Flags.from_dict(flagd_document(N_CALLS))
    keys = [f"rule-{number}" for number in range(N_CALLS)]
    handles = [flags.bool(key, default=False) for key in keys]
    said = [recorded.bool(key, default=False) for key in keys]
    contenders: dict[str, Callable[[], object]] = {
        "mlkit details": lambda: [
            flag.details("u", plan="pro", age=30, country="DE").value for flag in handles
        ],
        "mlkit details, exposures": lambda: [
            flag.details("u", plan="pro", age=30, country="DE").value for flag in said
        ],
    }
    work, base = f"{N_CALLS} rules of three conditions", "mlkit details"
    with recorded.record_exposures():
        # As a service asks them; below, seven libraries take turns, and each finds the others' data in the cache.
        bench.compare(f"{work}, no peer between", contenders, baseline=base, unit="ms", rounds=60)
        _peers(bench, work, contenders, [(key, "u", VISITOR) for key in keys], n_rules=N_CALLS)
        bench.compare(work, contenders, baseline=base, unit="ms", rounds=_rounds(bench))


def _split(bench: Bench, flags: Flags, recorded: Flags) -> None:
    from mmh3 import mmh3_32_uintdigest

    flag, said = flags.bool("rollout", default=False), recorded.bool("rollout", default=False)
    units, prefix = [f"user-{i}" for i in range(N_CALLS)], b"\x82\x67rollout"

    def bare() -> list[bool]:
        plan, answers = "pro", []
        for unit in units:
            body = unit.encode()
            hashed = mmh3_32_uintdigest(prefix + bytes([0x60 + len(body)]) + body)
            answers.append(plan == "pro" and (hashed * 100) >> 32 < 10)
        return answers

    questions = [("rollout", unit, {"plan": "pro"}) for unit in units]
    contenders: dict[str, Callable[[], object]] = {
        "by hand": bare,
        "mlkit": lambda: [flag(unit, plan="pro") for unit in units],
        "mlkit details": lambda: [flag.details(unit, plan="pro").value for unit in units],
        "mlkit details, exposures": lambda: [
            said.details(unit, plan="pro").value for unit in units
        ],
    }
    others = PEERS.keys() - SAME_HASH
    _peers(bench, SPLIT_WORK, contenders, questions, but=others)
    bench.skipped(SPLIT_WORK, "datalogic-py", "it has no fractional, nor another hash")
    bench.compare(SPLIT_WORK, contenders, baseline="by hand", calls=N_CALLS, rounds=_rounds(bench))
    counted: dict[str, Callable[[], object]] = {}
    work = f"{SPLIT_WORK}, own hash"
    _peers(bench, work, counted, questions, but=SAME_HASH | {"datalogic-py"})
    counts = {name: lambda ask=ask: len(ask()) for name, ask in counted.items()}
    counts = {"by hand": lambda: len(bare()), **counts}
    counts["mlkit details, exposures"] = lambda: len(contenders["mlkit details, exposures"]())
    bench.compare(work, counts, baseline="by hand", calls=N_CALLS, rounds=_rounds(bench))


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
        "mlkit assign": lambda: flag.assign(units, plan=plans).counts()["on"],
        "mlkit assign, values as a list": lambda: sum(flag.assign(units, plan=plans).values),
        "mlkit in a loop": lambda: sum([flag(unit, plan="pro") for unit in units]),
    }
    work = f"assign {n} ids"
    questions = [("rollout", unit, {"plan": "pro"}) for unit in units]
    loops: dict[str, Callable[[], object]] = {}
    _peers(bench, work, loops, questions, but=PEERS.keys() - {"flagd-core"})
    for name, loop in loops.items():
        contenders[f"{name} in a loop"] = lambda loop=loop: sum(loop())
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
        work, contenders, baseline="json.loads", unit="ms", rounds=3 if bench.quick else 15
    )
    work = f"reload, one of {n} changed"
    again: dict[str, Callable[[], object]] = {
        "json.loads": lambda: max(len(json.loads(text)["flags"]) for _ in range(2)),
        "mlkit": reload,
    }
    _add(bench, work, again, "flagd-core", lambda: _flagd_reload(text, changed, n))
    bench.compare(
        work, again, baseline="json.loads", unit="ms", calls=2, rounds=3 if bench.quick else 15
    )


def _rollback(bench: Bench, n: int) -> None:
    """Time the end of a rollout: a fresh one for each round, as it can be taken back only once."""
    from benchmarks.harness import Row

    document = {f"flag-{i}": _flag_of_many(i) for i in range(n)}
    ranker = {"state": "ENABLED", "variants": {"v1": "m:/1", "v2": "m:/2"}, "defaultVariant": "v1"}
    times: dict[str, list[float]] = {"a dict of all flags, copied": [], "mlkit rollback": []}
    for _ in range(_rounds(bench)):
        model = Flags.from_dict({"flags": {**document, "ranker": ranker}}).model(
            "ranker", default="v1"
        )
        rollout = model.rollout("v2", steps=[0.5, 1.0])
        rollout.advance()
        if set(model.assign(range(100)).counts()) != {"v1", "v2"}:
            raise RuntimeError("the candidate has no share")
        for name, work in zip(
            times, (document.copy, partial(rollout.rollback, "slow")), strict=True
        ):
            begin = bench.clock()
            work()
            times[name].append(bench.clock() - begin)
        if model.assign(range(100)).counts() != {"v1": 100}:
            raise RuntimeError("it was not taken back")
    baseline, work_name = "a dict of all flags, copied", f"take a rollout back among {n} flags"
    for name, seconds in times.items():
        low, middle, high = (each(seconds) * 1e3 for each in (min, statistics.median, max))
        ratio = middle / (statistics.median(times[baseline]) * 1e3)
        bench.rows.append(Row(work_name, name, "ms", low, middle, high, baseline, ratio))


def _entered(flags: Flags) -> Any:
    with flags.snapshot() as snapshot:
        return snapshot


def _peers(
    bench: Bench,
    work: str,
    contenders: dict[str, Callable[[], object]],
    questions: list[Any],
    *,
    but: Collection[str] = (),
    n_rules: int = 1,
) -> None:
    """Let the other libraries answer the same questions."""
    for name, make in PEERS.items():
        if name not in but:
            _add(bench, work, contenders, name, lambda make=make: partial(make(n_rules), questions))


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
