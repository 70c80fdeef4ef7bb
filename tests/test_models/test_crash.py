"""A process that dies, or a disk that fails, at any call to the operating system leaves the old state or the new one."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import textwrap

import pytest

from mlkit.models import ModelStore

# One process without threads that forks a child per point of failure: the child does one thing to its own copy of a
# store and, at its n-th call that writes, is killed (before it, which is after the one before; or in the middle of a
# write) or sees the call fail. A limit on the size of files is the kernel's own disk that is full.
SCRIPT = textwrap.dedent(
    """
    import errno, gc, json, os, resource, shutil, signal, sys
    from pathlib import Path
    from mlkit.models import ModelStore, signed_by

    root, what = sys.argv[1:3]
    CALLS = ["mkdir", "makedirs", "open", "write", "pwrite", "fsync", "replace", "rename", "link", "unlink", "remove",
             "rmdir", "fchmod", "chmod", "ftruncate", "truncate", "sendfile", "posix_fallocate"]
    KEY = NEED = None
    if what in {"signed save", "sign", "import"}:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
        NEED = signed_by(KEY.public_key())

    class Keys:
        def __init__(self, now):
            self.now = now
        def current(self):
            return self.now, self.now.encode() * 32
        def key(self, key_id):
            return key_id.encode() * 32

    SEALED = what in {"sealed save", "reseal"}

    class Clock:
        def time(self):
            return 1e9  # a signature is of the time, too
        def monotonic(self):
            return 0.0

    def opened(path, now="b"):
        clock = None if what == "collect" else Clock()
        return ModelStore(path, who="x", keys=Keys(now) if SEALED else None, clock=clock)

    def collect(path):
        ModelStore(path).collect_garbage(older_than=0)

    OPERATIONS = {
        "first": lambda store: store.save("new", b"first", spec={"a": 1}),
        "save": lambda store: store.save("m", b"three", spec={"a": 3}),
        "again": lambda store: store.save("m", b"one", spec={"a": 1}),
        "signed save": lambda store: store.save("m", b"three", spec={"a": 3}, sign=KEY),
        "sealed save": lambda store: store.save("m", b"three", spec={"a": 3}),
        "sign": lambda store: store.sign("m@1", KEY),
        "import": lambda store: store.import_(root + "/package"),
        "promote": lambda store: store.promote("m", 1, checks=[lambda v: True]),
        "rollback": lambda store: store.rollback("m"),
        "remove alias": lambda store: store.remove_alias("m", "champion"),
        "delete": lambda store: store.delete("m", 1),
        "collect": lambda store: store.collect_garbage(older_than=0),
        "reseal": lambda store: store.reseal(),
    }
    # These change nothing that a caller sees.
    HARMLESS = what in {"collect", "reseal"}

    def prepare(path):
        store = opened(path, "a")
        for number, word in enumerate(["zero", "one", "two"][: 1 if what == "reseal" else 3]):
            store.save("m", word.encode(), spec={"a": number})
        if what != "reseal":
            store.promote("m", 2)
            store.promote("m", 3)
        if what == "collect":
            for number in range(3):
                (Path(path) / "tmp" / f"left-{number}").write_bytes(b"left")
                orphan = Path(path) / "blobs" / "sha256" / "ab" / ("ab" + str(number) * 62)
                orphan.parent.mkdir(exist_ok=True)
                orphan.write_bytes(b"left")

    def elsewhere():
        store = ModelStore(root + "/elsewhere", who="x", clock=Clock())
        for number in range(7):
            store.save("m", b"elsewhere", spec={"n": number}, sign=KEY)
        store.export("m@7", root + "/package")

    def observe(path):
        store = opened(path)
        return [
            (
                name,
                [(v.ref, v.digest, v.spec, store.load(v).decode()) for v in store.versions(name)],
                store.aliases(name),
                [change._replace(time=0) for change in store.history(name)],
                [v.ref for v in store.versions(name) if KEY and meets(store, v)],
            )
            for name in store.names()
        ]

    def meets(store, version):
        try:
            return bool(store.get(version, require=NEED))
        except ValueError:
            return False

    def on_disk(path):
        return {
            os.path.join(folder, name)[len(path):]
            for folder, _, names in os.walk(path) for name in names if name != "lock"
        }

    def sabotage(point, how):
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

    def full(point):
        # Of any file, the bytes beyond the limit; SIGXFSZ is ignored by Python, so that the call fails.
        left = [0]
        limit = (point - 1) * 211
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return [0 if limit < 3000 else 1]

    prepare(root + "/before")
    if what == "import":
        elsewhere()
    shutil.copytree(root + "/before", root + "/after")
    done = OPERATIONS[what](opened(root + "/after"))
    before, after = observe(root + "/before"), observe(root + "/after")
    assert HARMLESS or before != after
    assert not HARMLESS or len(done.files) >= 2, "there was something to do"
    collect(root + "/after")
    left = on_disk(root + "/after")
    gc.freeze()  # no child copies pages to look for garbage
    def attempt(path, point, how):
        child = os.fork()
        if child == 0:
            store = opened(path)
            left = full(point) if how == "full" else sabotage(point, how)
            try:
                OPERATIONS[what](store)
            except OSError:
                os._exit(3)
            os._exit(4 if left[0] > 0 else 0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def run(how):
        seen = {"before": 0, "after": 0, "points": 0}
        for point in range(1, 300):
            path = f"{root}/{point}"
            shutil.copytree(root + "/before", path)
            status = attempt(path, point, how)
            found = observe(path)
            if status == 4:
                shutil.rmtree(path)
                return seen  # it makes no such call: every one has been tried
            seen["points"] += 1
            if found == before and not (HARMLESS and status == 0):
                seen["before"] += 1
                assert status != 0, f"{how} {point}: it said it was done"
                OPERATIONS[what](opened(path))  # nothing is in the way of doing it again
            else:
                seen["after"] += 1
                assert status != 3, f"{how} {point}: it said it had failed"
            collect(path)
            assert observe(path) == after, (how, point, found)
            assert not HARMLESS or OPERATIONS[what](opened(path)).files == ()
            assert on_disk(path) == left, f"{how} {point}: nothing is left behind"
            shutil.rmtree(path)
        sys.exit("it never came to an end")

    print(json.dumps({how: run(how) for how in sys.argv[3:]}))
    """
)
SAVES = ["first", "save", "again", "signed save", "sealed save", "import"]
OTHERS = ["sign", "promote", "rollback", "remove alias", "delete", "collect", "reseal"]


@pytest.fixture
def folder(tmp_path):
    """Return a folder in memory where there is one: no point of failure needs a disk that turns."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield path


@pytest.mark.parametrize("what", SAVES + OTHERS)
def test_at_every_point(folder, what):
    ways = ["killed", "fails"]
    if what in {
        "save",
        "signed save",
        "sealed save",
        "import",
        "sign",
        "promote",
    }:  # of each way to write, one
        ways += ["middle", "full"]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), what, *ways],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    seen = json.loads(result.stdout)
    assert seen["killed"]["before"] >= 3, "the points of failure were really there"
    assert seen["killed"]["after"] >= (what not in {"collect", "reseal"})
    assert seen["fails"]["before"] >= 3
    if "middle" in seen:
        assert seen["middle"]["before"] >= (1 if what == "promote" else 2)
        assert seen["full"]["before"] >= 1


@pytest.mark.parametrize("name", ["close", "fstat"])
def test_what_fails_after_a_change_was_written_does_not_say_that_it_was_not(
    tmp_path, monkeypatch, name
):
    store = ModelStore(tmp_path)
    store.save("m", b"one")
    written, failed = [], []
    sync, call = os.fsync, getattr(os, name)

    def note(descriptor):
        sync(descriptor)
        written.append(descriptor)

    def fail(descriptor):
        result = call(descriptor)
        if written:
            failed.append(descriptor)
            raise OSError(errno.EIO, "as network file systems say it")
        return result

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", note)
        patched.setattr(os, name, fail)
        assert store.promote("m", 1, to="champion").version == 1
    assert failed
    assert store.aliases("m") == {"champion": 1}
    assert store.save("m", b"two").ref == "m@2"


def test_a_package_that_cannot_be_read_is_not_called_a_wrong_one(tmp_path, monkeypatch):
    store = ModelStore(tmp_path / "store")
    store.save("m", b"one")
    store.export("m@1", tmp_path / "out")
    opened = os.open

    def fail(path, *args, **kwargs):
        if path == "version.json":
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match="Input/output"):
        ModelStore(tmp_path / "other").import_(tmp_path / "out")
