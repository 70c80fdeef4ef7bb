"""A process that dies, or a disk that fails, at any call to the operating system leaves the old state or the new one."""

import json
import subprocess
import sys
import textwrap

import pytest

# One process without threads that forks a child per point of failure: the child does one thing to its own copy of a
# store and, at its n-th call, is killed (before it, which is after the one before; or in the middle of a write) or sees
# the call fail.
SCRIPT = textwrap.dedent(
    """
    import errno, json, os, shutil, signal, sys
    from mlkit.models import ModelStore

    root, how, what = sys.argv[1:4]
    CALLS = ["mkdir", "makedirs", "open", "write", "fsync", "replace", "unlink", "fchmod", "ftruncate"]
    OPERATIONS = {
        "first": lambda store: store.save("new", b"first", spec={"a": 1}),
        "save": lambda store: store.save("m", b"three", spec={"a": 3}),
        "again": lambda store: store.save("m", b"one", spec={"a": 1}),
        "promote": lambda store: store.promote("m", 1, checks=[lambda v: True]),
        "rollback": lambda store: store.rollback("m"),
        "delete": lambda store: store.delete("m", 1),
    }

    def prepare(path):
        store = ModelStore(path, who="x")
        for number, word in enumerate(["zero", "one", "two"]):
            store.save("m", word.encode(), spec={"a": number})
        store.promote("m", 2)
        store.promote("m", 3)

    def observe(path):
        store = ModelStore(path)
        return [
            (
                name,
                [(v.ref, v.digest, v.spec, store.load(v).decode()) for v in store.versions(name)],
                store.aliases(name),
                [change._replace(time=0) for change in store.history(name)],
            )
            for name in store.names()
        ]

    def sabotage(point):
        left = [point]
        def wrap(name, real):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0]:
                    return real(*args, **kwargs)
                if how == "fails":
                    if name == "write":
                        real(args[0], bytes(args[1])[: len(args[1]) // 2])
                    raise OSError(errno.ENOSPC, "no space left")
                if how == "middle":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call
        for name in ["write"] if how == "middle" else CALLS:
            setattr(os, name, wrap(name, getattr(os, name)))
        return left

    prepare(root + "/before")
    shutil.copytree(root + "/before", root + "/after")
    OPERATIONS[what](ModelStore(root + "/after", who="x"))
    before, after = observe(root + "/before"), observe(root + "/after")
    assert before != after
    seen = {"before": 0, "after": 0, "points": 0}
    for point in range(1, 200):
        path = f"{root}/{point}"
        shutil.copytree(root + "/before", path)
        child = os.fork()
        if child == 0:
            store = ModelStore(path, who="x")
            left = sabotage(point)
            try:
                OPERATIONS[what](store)
            except OSError:
                os._exit(3)
            os._exit(4 if left[0] > 0 else 0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = observe(path)
        if status == 4:
            break  # it makes no such call: every one has been tried
        seen["points"] += 1
        if found == before:
            seen["before"] += 1
            assert status != 0, f"{point}: it said it was done"
            OPERATIONS[what](ModelStore(path, who="x"))  # nothing is in the way of doing it again
            assert observe(path) == after, point
        else:
            assert found == after, (point, found)
            seen["after"] += 1
            assert status != 3, f"{point}: it said it had failed"
        shutil.rmtree(path)
    else:
        sys.exit("it never came to an end")
    print(json.dumps(seen))
    """
)


@pytest.mark.parametrize("what", ["first", "save", "again", "promote", "rollback", "delete"])
@pytest.mark.parametrize("how", ["killed", "middle", "fails"])
def test_at_every_point(tmp_path, what, how):
    n_writes = 3 if what in {"first", "save", "again"} else 1
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), how, what],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    seen = json.loads(result.stdout)
    if how == "middle":  # of a line, or of one of the three files of a save
        assert seen == {"points": n_writes, "before": n_writes, "after": 0}
    else:
        assert seen["before"] >= 3, "the points of failure were really there"
        assert seen["after"] >= (how == "killed" or what == "delete")
