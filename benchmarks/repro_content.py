"""Fingerprints and manifests, beside the hashes they are made of and the libraries they replace."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlkit.repro import Manifest, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Bench

    Peer = Callable[[Bench, str, str, Callable[[], Any]], Any]


def contents(bench: Bench, peer: Peer) -> None:
    """Measure arrays, small values, folders and manifests."""
    _arrays(bench, peer)
    _small_values(bench, peer)
    _folders(bench, peer)
    _manifests(bench)


def _arrays(bench: Bench, peer: Peer) -> None:
    array = np.arange((2 if bench.quick else 256) * 2**17, dtype=np.float64)
    view = memoryview(array).cast("B")
    work = f"fingerprint an array of {array.nbytes / 2**20:.0f} MiB"
    floor = "floor: hashlib.sha256"
    contenders: dict[str, Any] = {
        floor: lambda: len(hashlib.sha256(view).hexdigest()) == 64,
        "mlkit fingerprint": _same(array),
    }
    blake3 = peer(bench, work, "floor: blake3", lambda: __import__("blake3").blake3)
    if blake3 is not None:
        contenders["floor: blake3"] = lambda: len(blake3(view).hexdigest()) == 64
        contenders['mlkit fingerprint(algorithm="blake3")'] = _same(array, algorithm="blake3")
        whole = array.view(np.int64)
        contenders['mlkit fingerprint(algorithm="blake3") of whole numbers'] = _same(
            whole, algorithm="blake3"
        )
    xxh3 = peer(bench, work, "floor: xxh3_128", lambda: __import__("xxhash").xxh3_128)
    if xxh3 is not None:
        contenders["floor: xxh3_128 (not cryptographic)"] = lambda: len(xxh3(view).digest()) == 16
    joblib = peer(bench, work, "joblib.hash", lambda: __import__("joblib"))
    if joblib is not None:
        expected = joblib.hash(array.copy())
        contenders["joblib.hash (md5)"] = lambda: joblib.hash(array) == expected
    bench.compare(work, contenders, baseline=floor, unit="ms", rounds=None if bench.quick else 5)
    best = {row.contender: row.min for row in bench.rows if row.work == work and row.min}
    for name, least in best.items():
        if "mlkit" in name:
            under = best.get("floor: blake3" if "blake3" in name else floor, least)
            bench.note(
                f"{name}: {array.nbytes / 1e6 / least:.1f} GB for each CPU second at best, {under / least:.2f} of the bare "
                f"hash's. Floats are looked through for NaN, too."
            )


def _same(value: Any, **options: Any) -> Callable[[], bool]:
    expected = fingerprint(value.copy(), **options)
    return lambda: fingerprint(value, **options) == expected


def _small_values(bench: Bench, peer: Peer) -> None:
    value = {"lr": 0.1, "layers": [64, 64, 10], "name": "digits", "nested": {"a": None, "b": True}}
    copy = dict(reversed(list(value.items())))
    work, calls = "fingerprint a small config", 50
    ours: dict[str, Any] = {
        "floor: json.dumps + sha256": lambda: all(_json_digest(value) for _ in range(calls)),
        "mlkit fingerprint": lambda: all(
            fingerprint(value) == fingerprint(copy) for _ in range(calls // 2)
        ),
    }
    joblib = peer(bench, work, "joblib.hash", lambda: __import__("joblib"))
    if joblib is not None:
        ours["joblib.hash"] = lambda: all(
            joblib.hash(value) == joblib.hash(copy) for _ in range(calls // 2)
        )
    deepdiff = peer(bench, work, "deepdiff", lambda: __import__("deepdiff"))
    if deepdiff is not None:
        hashed = deepdiff.DeepHash
        ours["deepdiff.DeepHash"] = lambda: all(
            hashed(value)[value] == hashed(copy)[copy] for _ in range(calls // 2)
        )
    bench.compare(work, ours, baseline="floor: json.dumps + sha256", calls=calls)


def _json_digest(value: object) -> str:
    import json

    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _folders(bench: Bench, peer: Peer) -> None:
    """A folder of small files: read it all, read it with an empty cache, ask again."""
    count = 500 if bench.quick else 20_000
    with tempfile.TemporaryDirectory() as scratch:
        top, folder = Path(scratch), Path(scratch) / "data"
        for number in range(count):
            place = folder / f"{number % 100:02}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:05}.bin").write_bytes(number.to_bytes(4, "little") * 512)
        expected = fingerprint(folder)

        def floor() -> bool:
            total = hashlib.sha256()
            for path in sorted(folder.rglob("*.bin")):
                total.update(path.read_bytes())
            return len(total.hexdigest()) == 64

        def first() -> bool:
            cache = top / f"{os.urandom(4).hex()}.db"
            return fingerprint(folder, cache=cache) == expected

        reading = "floor: read and sha256"
        time.sleep(2.5)  # noqa: TID251 - a cache does not trust the stat of younger files
        rounds = None if bench.quick else 3
        contenders: dict[str, Any] = {
            reading: floor,
            "mlkit fingerprint": lambda: fingerprint(folder) == expected,
            "mlkit fingerprint(cache=), empty": first,
        }
        again = {reading: floor}
        cache = top / "kept.db"
        again["mlkit fingerprint(cache=)"] = lambda: fingerprint(folder, cache=cache) == expected
        work = f"fingerprint a folder of {count} files"
        dvc = peer(bench, work, "DVC", _dvc)
        if dvc is not None:
            build = dvc(folder, None)
            hashed = build()
            contenders["DVC (md5)"] = lambda: build() == hashed
            with_state = dvc(folder, top / "dvc")
            again["DVC with its state database"] = lambda: with_state() == hashed
        bench.compare(work, contenders, baseline=reading, unit="ms", rounds=rounds)
        work = f"the same {count} files again, unchanged"
        bench.compare(work, again, baseline=reading, unit="ms", rounds=rounds)


def _dvc() -> Any:
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB
    from dvc_data.hashfile.state import State
    from dvc_objects.fs.local import LocalFileSystem

    def at(folder: Path, state: Path | None) -> Callable[[], str]:
        files = LocalFileSystem()
        kept = None if state is None else State(root_dir=str(folder), tmp_dir=str(state))
        options = {} if kept is None else {"state": kept}
        store = HashFileDB(files, str(folder.parent / "odb"), **options)
        return lambda: str(build(store, str(folder), files, "md5", dry_run=True)[2].hash_info)

    return at


def _manifests(bench: Bench) -> None:
    """Capture a process that sees 300 packages, in a repository of 2,000 files with uncommitted ones."""
    files = 200 if bench.quick else 2000
    with tempfile.TemporaryDirectory() as scratch:
        _repository(Path(scratch) / "repo", files)
        here = len({item.metadata["Name"] for item in importlib.metadata.distributions()})
        more = Path(scratch) / "site"
        for number in range(max(0, 300 - here)):
            info = more / f"made_up_{number}-1.0.dist-info"
            info.mkdir(parents=True)
            text = f"Metadata-Version: 2.1\nName: made-up-{number}\nVersion: 1.0\n"
            (info / "METADATA").write_text(text)
        sys.path.append(str(more))
        try:
            with chdir(Path(scratch) / "repo"):
                _captured(bench, files)
        finally:
            sys.path.remove(str(more))


def _repository(folder: Path, files: int) -> None:
    for number in range(files):
        place = folder / f"p{number % 40}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"m{number}.py").write_text(f"x = {number}\n" * 20)
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (folder / "p0" / "m0.py").write_text("x = 1\n")
    (folder / "p1" / "new.py").write_text("y = 1\n")


def _captured(bench: Bench, files: int) -> None:
    def listed() -> bool:
        return len({item.metadata["Name"] for item in importlib.metadata.distributions()}) >= 300

    def states() -> bool:
        commands = (["rev-parse", "HEAD"], ["status", "--porcelain"], ["diff", "HEAD"])
        done = [subprocess.run(["git", *one], capture_output=True, check=True) for one in commands]
        return b"new.py" in done[1].stdout

    def ours() -> bool:
        found = Manifest.capture(seeds=7, params={"lr": 0.1})
        return len(found.to_dict()["identity"]["packages"]) >= 300

    def frozen() -> bool:
        command = [sys.executable, "-m", "pip", "freeze"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    contenders = {
        "packages alone, by importlib.metadata": listed,
        "git alone: rev-parse, status, diff": states,
        "mlkit Manifest.capture": ours,
    }
    work = f"capture 300 packages and {files} files"
    if frozen():
        contenders["packages alone, by pip freeze"] = frozen
    else:
        bench.skipped(work, "pip freeze", "no pip in this environment")
    baseline = "packages alone, by importlib.metadata"
    bench.compare(work, contenders, baseline=baseline, unit="ms", rounds=5)
    bench.note("capture: ours has the git tree of every file, packages, machine and seeds besides.")
