"""Writers wait for each other, no longer than they are willing to, and nobody keeps the lock who is not at work."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from mlkit._clock import SYSTEM
from mlkit.errors import ConfigurationError, StoreLockedError
from mlkit.models import ModelStore
from mlkit.testing import virtual_time

HOLD = textwrap.dedent(
    """
    import os, sys
    from mlkit.models import ModelStore
    store = ModelStore(sys.argv[1])
    store.save("m", b"x")

    def hold(version):
        print(os.getpid(), flush=True)
        sys.stdin.readline()
        return True

    with store._backing.folder.lock():
        hold(None)
    """
)


@pytest.fixture
def held(tmp_path):
    """A store that another process holds until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield tmp_path, int(process.stdout.readline())
        process.kill()


def test_a_writer_waits_as_long_as_it_was_told_and_names_who_was_in_the_way(held):
    path, holder = held
    with virtual_time():  # the other process is not in it, so its time is what counts
        store = ModelStore(path, timeout=0.1)
        before = SYSTEM.monotonic()
        with pytest.raises(StoreLockedError, match=f"process {holder} on ") as caught:
            store.save("m", b"y")
        assert SYSTEM.monotonic() - before >= 0.1
        assert caught.value.timeout == 0.1
        assert caught.value.path == f"{path}/lock"
        for change in (
            lambda: store.promote("m", 1),
            lambda: store.delete("m", 1),
            lambda: ModelStore(path, timeout=0).promote("m", 1),
        ):
            with pytest.raises(StoreLockedError):
                change()
    assert not list(path.glob("tmp/*"))
    assert [version.number for version in store.versions("m")] == [1], "readers wait for nobody"


def test_the_lock_of_a_killed_process_is_gone_with_it(held):
    path, holder = held
    os.kill(holder, signal.SIGKILL)
    assert ModelStore(path).save("m", b"y").number == 2


def test_a_child_that_was_forked_under_the_lock_does_not_keep_it(tmp_path):
    code = textwrap.dedent(
        """
        import os, signal, sys
        from mlkit.models import ModelStore
        store = ModelStore(sys.argv[1])
        store.save("m", b"x")
        if os.fork() == 0:
            with store._backing.folder.lock():
                if os.fork() == 0:  # as a DataLoader's worker would, while a thread saves
                    print("alive", flush=True)
                    sys.stdin.readline()
                    os._exit(0)
                os.kill(os.getpid(), signal.SIGKILL)
        os.wait()
        sys.stdin.readline()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "alive\n"
        store = ModelStore(tmp_path, timeout=20.0)
        assert store.save("m", b"y").number == 2
        process.kill()


def test_a_child_that_was_forked_under_the_lock_does_not_let_it_go(tmp_path):
    store = ModelStore(tmp_path)
    store.save("m", b"x")
    with store._backing.folder.lock():
        child = os.fork()
        if child == 0:
            try:
                ModelStore(tmp_path, timeout=0).save("m", b"from the child")
            except StoreLockedError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        with pytest.raises(StoreLockedError):
            ModelStore(tmp_path, timeout=0).promote("m", 1)
    assert ModelStore(tmp_path, timeout=0).promote("m", 1).version == 1


def test_a_child_that_leaves_the_block_leaves_the_lock_to_its_parent(tmp_path):
    store = ModelStore(tmp_path)
    store.save("m", b"x")
    end, begin = os.pipe()
    with store._backing.folder.lock():
        child = os.fork()
        if child:
            assert os.read(end, 1) == b"!", "the child is out of the block, without an error"
            with pytest.raises(StoreLockedError):
                ModelStore(tmp_path, timeout=0).promote("m", 1)
    if child == 0:
        os.write(begin, b"!")
        os._exit(0)
    os.close(begin)
    os.close(end)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ModelStore(tmp_path, timeout=0).promote("m", 1).version == 1


def test_threads_of_one_process_take_turns(tmp_path):
    store, done = ModelStore(tmp_path, timeout=None), []
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        for _ in range(5):
            done.append(store.save("m", b"%d" % number).number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(1, 41))


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "5", True])
def test_what_is_no_time_is_refused(tmp_path, wrong):
    with pytest.raises(ConfigurationError, match=re.escape("ModelStore(timeout=...)")):
        ModelStore(tmp_path, timeout=wrong)
