"""Threads, forks and spawned processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from mlkit.registry import Registry, Spec, spec_of


@pytest.fixture(autouse=True)
def _switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(n, work):
    barrier, results, errors = threading.Barrier(n), [], []

    def run(index):
        barrier.wait()
        try:
            results.append(work(index))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors[:3]
    assert len(results) == n
    return results


def test_many_threads_import_a_lazy_entry_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "once_only.py").write_text(
        "import builtins, threading\n"
        "builtins.once_only_count = getattr(builtins, 'once_only_count', 0) + 1\n"
        "threading.Event().wait(0.02)\n"
        "class Made(dict): pass\n"
    )
    import builtins

    reg = Registry("lazy", dict)
    reg.lazy("made", "once_only:Made")
    kinds = together(
        32,
        lambda index: (
            type(reg.create("made") if index % 2 else reg.build({"type": "made"}))
            if index % 4
            else reg["made"]
        ),
    )
    assert len(set(kinds)) == 1
    assert builtins.once_only_count == 1
    del builtins.once_only_count
    sys.modules.pop("once_only")


def test_readers_never_see_half_a_registration():
    reg: Registry[Any] = Registry("busy")

    class Thing:
        pass

    reg.register("a", aliases=["x"])(Thing)
    stop = threading.Event()

    def write(index):
        for n in range(300):
            reg.register(f"n{index}_{n}", aliases=[f"alias{index}_{n}"])(Thing)
            reg.register("a", aliases=["x"])(Thing)
            reg.create(f"alias{index}_{n}")
        return True

    def read(index):
        while not stop.is_set():
            names = list(reg)
            assert all(name in reg for name in names)
            assert type(reg.create("x")) is Thing
            assert "a" in reg.list("?")
        return True

    readers = threading.Thread(target=lambda: together(2, read))
    readers.start()
    together(3, write)
    stop.set()
    readers.join()
    assert len(reg) == 901


def test_builds_and_overrides_in_threads_do_not_mix():
    reg: Registry[Any] = Registry("mix")

    class Real:
        def __init__(self, n: int = 0) -> None:
            self.n = n

    reg.register("r")(Real)

    def work(index):
        for n in range(40):
            if index % 2:
                fake = type(f"Fake{index}", (Real,), {})
                with reg.override(r=fake):
                    assert type(reg.build({"type": "r", "n": n})) is fake
                    assert type(reg.create("r")) is fake
            else:
                built = reg.build({"type": "r", "n": n})
                assert type(built) is type(reg.create("r")) is Real
                assert spec_of(built).to_dict() == {"type": "r@1", "n": n}
        return True

    together(8, work)
    assert type(reg.create("r")) is Real


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_register_even_if_another_thread_was_registering():
    code = """
    import os, threading
    from mlkit.registry import Registry
    reg = Registry("forked")
    stop = threading.Event()
    def write():
        while not stop.is_set():
            reg.register("a")(dict)
    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads: thread.start()
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            reg.register("child")(dict)
            os._exit(0 if reg.create("child", a=1) == {"a": 1} else 1)
        assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    for thread in threads: thread.join()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=300)


def test_a_spec_travels_to_a_spawned_process_and_builds_there(tmp_path):
    (tmp_path / "spawned_models.py").write_text(
        "from mlkit.registry import Registry\n"
        "models = Registry('models')\n"
        "@models.register('m')\n"
        "class M:\n"
        "    def __init__(self, n: int = 3) -> None: self.n = n\n"
    )
    code = f"""
    import multiprocessing, sys
    sys.path.insert(0, {str(tmp_path)!r})
    from mlkit.registry import Spec, spec_of
    def build(spec):
        from spawned_models import models
        built = models.build(spec)
        return spec_of(built), built.n
    if __name__ == "__main__":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            spec, n = pool.apply(build, (Spec({{"type": "m", "n": 5}}),))
        assert n == 5 and spec == Spec({{"type": "m@1", "n": 5}}), spec
    """
    script = tmp_path / "spawning.py"
    script.write_text(textwrap.dedent(code))
    subprocess.run([sys.executable, str(script)], check=True, timeout=300)
    assert pickle.loads(pickle.dumps(Spec({"type": "m"}))) == Spec({"type": "m"})
