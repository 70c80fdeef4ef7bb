"""Several processes on one store at once: nothing is lost, nothing is given twice, the history is one line."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np

from mlkit.models import ModelStore

WORKER = textwrap.dedent(
    """
    import json, sys
    from mlkit.errors import AliasConflictError, ModelStoreError
    from mlkit.models import ModelStore
    root, me, turns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    store = ModelStore(root, who=f"worker-{me}")
    print("ready", flush=True)
    sys.stdin.readline()
    numbers, moves, back, gone, cleared = [], 0, 0, 0, 0
    for turn in range(turns):
        version = store.save("m", f"{me}-{turn % 5}".encode())
        numbers.append(version.number)
        while True:
            holder = store.aliases("m").get("champion")
            try:
                store.promote("m", version, expect=holder)
            except AliasConflictError:
                continue
            moves += 1
            break
        assert store.load(version).decode() == f"{me}-{turn % 5}"
        try:
            store.rollback("m", expect=version)
            back += 1
        except ModelStoreError:
            pass
        try:
            store.delete("m", version)
            gone += 1
        except ModelStoreError:
            pass
        try:
            store.remove_alias("m", "champion", expect=version)
            cleared += 1
        except ModelStoreError:
            pass
        store.collect_garbage(older_than=60)
    print(json.dumps([numbers, moves, back, gone, cleared]))
    """
)


def start(root, n, turns):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(root), str(me), str(turns)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in range(n)
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return workers


def test_eight_processes_save_promote_roll_back_delete_and_collect(tmp_path):
    workers = start(tmp_path, 8, 5)
    results = []
    for worker in workers:
        out, _ = worker.communicate(timeout=300)
        assert worker.returncode == 0
        results.append(json.loads(out))
    store = ModelStore(tmp_path)
    given = sorted(number for numbers, *_ in results for number in numbers)
    assert given == list(range(1, 41)), "each number once, and none left out"
    history = store.history("m")
    count = lambda kind: sum(change.kind == kind for change in history)
    assert [change.sequence for change in history] == list(range(1, len(history) + 1))
    said = [sum(each) for each in zip(*(rest for _, *rest in results), strict=True)]
    assert [count(kind) for kind in ("promoted", "rolled_back", "deleted", "alias_removed")] == said
    assert said[0] == 40
    holder = None
    for change in history:
        if change.kind in {"promoted", "rolled_back", "alias_removed"}:
            assert change.previous == holder
            holder = None if change.kind == "alias_removed" else change.version
    assert store.aliases("m") == ({} if holder is None else {"champion": holder})
    for version in store.versions("m"):  # deleting equal content of others took nothing away
        assert store.load(version)


def test_killed_processes_leave_a_store_that_goes_on(tmp_path):
    store = ModelStore(tmp_path)
    newest, happened = store.save("m", b"first").number, 1
    for delay in (0.01, 0.03, 0.06):
        workers = start(tmp_path, 2, 1000)
        time.sleep(delay)  # real processes, real time: where it hits is chance
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.communicate()
        for version in ModelStore(tmp_path).versions("m"):
            assert ModelStore(tmp_path).load(version)
        number = store.save("m", b"next").number
        assert number > newest
        assert len(store.history("m")) > happened
        newest, happened = number, len(store.history("m"))
        assert store.history("m") == ModelStore(tmp_path).history("m")


def test_a_digest_is_the_same_in_another_process(tmp_path):
    code = textwrap.dedent(
        """
        import sys, numpy as np
        from mlkit.models import ModelStore
        state = {name: np.arange(6.0).reshape(2, 3) for name in set("abc")}
        spec = {name: {"x": 1.5, "y": None} for name in set("defg")}
        print(ModelStore(sys.argv[1]).save("m", state, spec=spec).digest)
        """
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    state = {name: np.arange(6.0).reshape(2, 3) for name in "cab"}
    spec = {name: {"y": None, "x": 1.5} for name in "gfed"}
    digests.add(ModelStore(tmp_path / "here").save("m", state, spec=spec).digest)
    assert len(digests) == 1


def test_the_identity_is_frozen(tmp_path):
    version = ModelStore(tmp_path).save(
        "m",
        b"weights",
        spec={"type": "é", "x": [1, 1.0, True, None]},
        manifest={"nan": float("nan")},
    )
    assert (
        version.digest == "sha256:b72115a2f7a51817401ae917310543c12bef55695d4e2a33674b5d9b92fff7a3"
    ), "changing the document breaks references that people wrote down"


def test_a_forked_child_uses_the_store_of_its_parent(tmp_path):
    code = textwrap.dedent(
        """
        import os, sys
        from mlkit.models import ModelStore
        store = ModelStore(sys.argv[1])
        store.save("m", b"1")
        for _ in range(3):
            if os.fork() == 0:
                store.save("m", b"child")
                os._exit(0)
        store.save("m", b"parent")
        for _ in range(3):
            assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        assert [version.number for version in store.versions("m")] == [1, 2, 3, 4, 5]
        """
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=300)
