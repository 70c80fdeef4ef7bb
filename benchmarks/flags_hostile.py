"""What a hostile flag file costs, and how long a reader waits while a file is reloaded.

`python -m benchmarks.flags_hostile` writes `benchmarks/results/flags_hostile.json`: for each kind of file the CPU time of
`Flags.from_file`, the peak of the memory that it takes (by tracemalloc; less the bytes of the file itself, which are kept), and
what came of it. Then the longest pause between two evaluations of one thread, while another reloads 10,000 flags of which one
changed; the floor is the same pause beside a thread that only computes, for Python lets that run for up to 5 ms, and beside one
that sleeps, which shows what the machine does by itself.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.flags import _flag_of_many
from mlkit.errors import FlagFileError
from mlkit.flags import Flags

if TYPE_CHECKING:
    from collections.abc import Callable

RESULT = Path(__file__).parent / "results" / "flags_hostile.json"
GOOD = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "on"}
MIB = 2**20
MAX_MS, MAX_MIB = 50.0, 5.0


def _file(flags: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({**more, "flags": {"good": GOOD, **flags}}).encode()


def _with(raw: bytes) -> bytes:
    return b'{"flags":{"good":' + json.dumps(GOOD).encode() + b',"bad":' + raw + b"}}"


def _rule(targeting: Any) -> dict[str, Any]:
    return {**GOOD, "targeting": targeting}


def _bomb(flags: int) -> bytes:
    rules: dict[str, Any] = {f"e{n}": {"and": [{"$ref": f"e{n - 1}"}] * 10} for n in range(1, 30)}
    rules["e0"] = {"and": [True] * 10}
    return _file({f"f{i}": _rule({"$ref": "e29"}) for i in range(flags)}, **{"$evaluators": rules})


def _started(raw: bytes) -> bytes:
    return b'{"state":"ENABLED","variants":{"a":1},"targeting":' + raw + b"}"


def _wide(n: int) -> bytes:
    return _with(_started(b'{"or":[' + b",".join([b'{"==":[{"var":"a"},1]}'] * n) + b"]}"))


KINDS: dict[str, Callable[[], bytes]] = {
    "200,000 levels of lists": lambda: _with(b"[" * 200_000 + b"]" * 200_000),
    "a rule of 900 levels": lambda: _with(_started(b'{"or":' + b"[" * 900 + b"]" * 900 + b"}")),
    "a reference bomb of 10**30 nodes": lambda: _bomb(1),
    "a reference bomb in 1,000 flags": lambda: _bomb(1_000),
    "a circle of references": lambda: _file(
        {"bad": _rule({"$ref": "a"})}, **{"$evaluators": {"a": {"!": {"$ref": "a"}}}}
    ),
    "100 MiB": lambda: bytes(100 * MIB),
    "one flag of 5.9 MiB": lambda: _with(b'"' + b"x" * (59 * MIB // 10) + b'"'),
    "one rule of 30,000 conditions": lambda: _wide(30_000),
    "one rule of 260,000 conditions": lambda: _wide(260_000),
    "5.9 MiB of spaces": lambda: _file({}) + b" " * (59 * MIB // 10),
    "one flag 30,000 times": lambda: _with(b',"bad":'.join([json.dumps(GOOD).encode()] * 30_000)),
    "one variant 30,000 times": lambda: _with(
        b'{"state":"ENABLED","variants":{' + b",".join([b'"a":1'] * 30_000) + b"}}"
    ),
    "not UTF-8 after 5.9 MiB": lambda: _with(b'"' + b"x" * (59 * MIB // 10) + b'\xff"'),
    "NaN before 5.9 MiB": lambda: _with(b'[NaN,"' + b"x" * (59 * MIB // 10) + b'"]'),
    "a number of 5.9 MiB": lambda: _with(_started(b"9" * (59 * MIB // 10))),
    "half a surrogate pair in each of 40,000 flags": lambda: (
        b'{"flags":{'
        + b",".join(b'"f%d":{"state":"ENABLED","variants":{"a":"\\ud800"}}' % i for i in range(40_000))
        + b"}}"
    ),
    "10,000 flags, each with another unknown operator": lambda: _file(
        {f"f{i}": _rule({f"op{i}": [i]}) for i in range(10_000)}
    ),
    "1,000 flags, each with another unknown operator": lambda: _file(
        {f"f{i}": _rule({f"op{i}": [i]}) for i in range(1_000)}
    ),
    "1,500 flags with variants of two types": lambda: _file(
        {f"f{i}": {**GOOD, "variants": {f"{j}": j if j % 2 else "x" for j in range(60)}} for i in range(1_500)}
    ),
    "30,000 flags that are numbers": lambda: _file({f"f{i}": 1 for i in range(30_000)}),
    "30,000 flags with one member": lambda: _file({f"f{i}": {"a": 1} for i in range(30_000)}),
    "600,000 flags that are numbers": lambda: _with(b'1,"f":' * 600_000 + b"1"),
    "100,000 evaluators": lambda: _file({}, **{"$evaluators": {f"e{i}": i for i in range(100_000)}}),
    "100,000 metadata": lambda: _file({}, metadata={f"m{i}": i for i in range(100_000)}),
    "ends in the middle": lambda: _file({f"f{i}": _flag_of_many(i) for i in range(10_000)})[:-9],
}  # fmt: skip


def _cost(path: Path) -> dict[str, Any]:
    """Return what reading a file costs, and what came of it."""
    times, outcome = [], ""
    for _ in range(15):  # the least is what it costs without other processes
        gc.collect()
        start = time.process_time()
        outcome = _outcome(path)
        times.append((time.process_time() - start) * 1e3)
    size = path.stat().st_size
    tracemalloc.start()
    try:
        flags = _read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    del flags
    kept = size if size <= 6 * MIB else 0
    return {
        "mib": size / MIB,
        "ms": min(times),
        "median_ms": statistics.median(times),
        "peak_mib": max(0, peak - kept) / MIB,
        "outcome": outcome,
    }


def _read(path: Path) -> Flags | FlagFileError:
    try:
        return Flags.from_file(path)
    except FlagFileError as error:
        return error


def _outcome(path: Path) -> str:
    read = _read(path)
    if isinstance(read, FlagFileError):
        return f"refused: {str(read).partition(': ')[2][:100]}"
    good = read.bool("good", default=False).details()
    with read.snapshot() as snapshot:
        return f"{len(snapshot)} flags in force, good answers {good.reason}"


def _longest_pause(flag: Any, seconds: float, beside: Callable[[], None] | None) -> float:
    """Return the longest time in ms between two evaluations, while another thread does something again and again."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            if beside is None:
                time.sleep(0.001)  # noqa: TID251 - the thread shall be idle on the real clock
            else:
                beside()

    other = threading.Thread(target=work)
    other.start()
    longest, last = 0.0, time.perf_counter()
    end = last + seconds
    while last < end:
        flag("u")
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    done.set()
    other.join()
    return longest * 1e3


def _stalls(rounds: int) -> dict[str, Any]:
    flags = {f"flag-{i}": _flag_of_many(i) for i in range(10_000)}
    texts = [json.dumps({"flags": flags})]
    texts.append(json.dumps({"flags": {**flags, "flag-0": {**GOOD, "defaultVariant": "off"}}}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flags.json"
        path.write_text(texts[0])
        watched = Flags.from_file(path)
        n = [0]

        def reload() -> None:
            n[0] += 1
            path.write_text(texts[n[0] % 2])
            watched.reload()

        def compute() -> None:
            sum(range(1000))

        flag = watched.bool("flag-1", default=False)
        besides: dict[str, Any] = {"sleeps": None, "computes": compute, "reloads": reload}
        found: dict[str, list[float]] = {name: [] for name in besides}
        for _ in range(rounds):
            for name, beside in besides.items():
                found[name].append(_longest_pause(flag, 1.0, beside))
    medians = {name: statistics.median(each) for name, each in found.items()}
    return {
        "ms": found,
        "median_ms": medians,
        "reloads": n[0],
        "ratio": medians["reloads"] / medians["computes"],
    }


def main() -> int:
    """Measure, print and write the result; fail if a file costs more than it may."""
    quick = "--quick" in sys.argv
    Flags.from_dict({"flags": {"a": GOOD, "b": {"state": "ON"}}})  # what is imported once
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flags.json"
        for kind, make in KINDS.items():
            path.write_bytes(make())
            rows[kind] = row = _cost(path)
            print(
                f"{kind:50} {row['mib']:6.2f} MiB {row['ms']:7.1f} ms {row['peak_mib']:6.1f} MiB  {row['outcome']}",
                flush=True,
            )
    stalls = _stalls(3 if quick else 7)
    print(json.dumps(stalls, indent=1))
    if not quick:
        content = {"max_ms": MAX_MS, "max_mib": MAX_MIB, "files": rows, "stalls": stalls}
        RESULT.write_text(json.dumps(content, indent=1) + "\n")
    over = [kind for kind, row in rows.items() if row["ms"] > MAX_MS or row["peak_mib"] > MAX_MIB]
    print("over the bound:", ", ".join(over) or "none")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
