"""Specs in other processes: they know which modules registered their names, and nothing else is imported."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from mlkit.errors import SpecError
from mlkit.registry import Registry, Spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = {
    "__init__.py": "",
    "tables.py": """
from mlkit.registry import Registry
models, encoders = Registry("jobs_models"), Registry("jobs_encoders")
""",
    "nets.py": """
from typing import Annotated
from jobs.tables import encoders, models

@models.register("net")
class Net:
    def __init__(self, encoder: Annotated[object, encoders], depth: int = 1) -> None:
        self.encoder, self.depth, self.version = encoder, depth, 1
""",
    "newer.py": """
from jobs.tables import models
from jobs.nets import Net

@models.register("net", version=2)
class Newer(Net):
    def __init__(self, depth: int = 1) -> None:
        self.encoder, self.depth, self.version = None, depth, 2
""",
    "convs.py": """
from jobs.tables import encoders

@encoders.register("conv")
class Conv:
    width = 3

encoders.lazy("later", "jobs.heavy:Heavy")
""",
    "heavy.py": "class Heavy:\n    width = 9\n",
    "unrelated.py": "raise RuntimeError('nobody asked for this')\n",
    "work.py": """
import sys
from jobs.tables import models

def build(spec):
    before = sorted(name for name in sys.modules if name.startswith("jobs."))
    built = models.build(spec)
    after = sorted(name for name in sys.modules if name.startswith("jobs."))
    return before, after, built.version, getattr(built.encoder, "width", None)
""",
}


_numbers = itertools.count()


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    folder = tmp_path / "jobs"
    folder.mkdir()
    prefix = f"jobs{next(_numbers)}"  # what an earlier test registered may still be alive
    for name, text in FILES.items():
        (folder / name).write_text(text.replace("jobs_", f"{prefix}_"))
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name: import_module(f"jobs.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "jobs"]:
        del sys.modules[name]


def test_a_spawned_worker_imports_what_registered_the_names_and_builds(jobs):
    work = jobs("work")
    jobs("nets")
    jobs("convs")
    nested = Spec({"type": "net", "encoder": {"type": "conv"}})
    bare = Spec({"type": "net", "encoder": "later"})
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        before, after, version, width = pool.submit(work.build, nested).result(60)
        assert before == ["jobs.tables", "jobs.work"]
        assert after == ["jobs.convs", "jobs.nets", "jobs.tables", "jobs.work"]
        assert (version, width) == (1, 3)
        *_, width = pool.submit(work.build, bare).result(60)
        assert width == 9
        # A newer version that this process knows is the one that is built there, too.
        jobs("newer")
        *_, version, _ = pool.submit(work.build, Spec({"type": "net"})).result(60)
        assert version == 2


def test_holding_an_unpickled_spec_imports_nothing(jobs):
    jobs("nets")
    jobs("convs")
    sent = pickle.dumps(Spec({"type": "net", "encoder": "conv"}))
    for name in ("jobs.nets", "jobs.convs"):
        del sys.modules[name]
    spec = pickle.loads(sent)
    assert spec == Spec({"type": "net", "encoder": "conv"})
    assert "jobs.nets" not in sys.modules
    again = pickle.loads(
        pickle.dumps(spec.with_(depth=2))
    )  # sent on by a worker that did not import them
    assert again.compile(jobs("tables").models)().depth == 2


def test_data_names_no_module(jobs):
    tables = jobs("tables")
    for data in (
        {"type": "net", "encoder": "conv"},
        {"type": "jobs.nets:Net"},
        {"type": "jobs.unrelated"},
        {"type": "net", "encoder": {"type": "jobs.convs:Conv"}},
    ):
        for spec in (
            Spec(data),
            Spec.load(Spec(data).dump()),
            pickle.loads(pickle.dumps(Spec(data))),
        ):
            with pytest.raises(SpecError, match="unknown name"):
                tables.models.build(spec)
    assert not {"jobs.nets", "jobs.convs", "jobs.unrelated"} & set(sys.modules)


def test_a_module_that_is_gone_is_said(jobs, tmp_path):
    jobs("nets")
    jobs("convs")
    sent = pickle.dumps(Spec({"type": "net", "encoder": "conv"}))
    for name in [name for name in sys.modules if name.partition(".")[0] == "jobs"]:
        del sys.modules[name]
    (tmp_path / "jobs" / "nets.py").unlink()
    with pytest.raises(SpecError, match=r"in another process jobs\.nets registered it"):
        jobs("tables").models.build(pickle.loads(sent))


SCRIPT = """
import multiprocessing, sys
from jobs.tables import models
from jobs import work

def main():
    @models.register("net")
    class Local:
        version, encoder = 5, None

    from mlkit.registry import Spec
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            pool.apply(work.build, (Spec({"type": "net"}),))
        except Exception as error:
            print(type(error).__name__, error)

if __name__ == "__main__":
    main()
"""


def test_what_only_a_script_registered_is_said(jobs, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    said = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, check=True
    ).stdout
    assert said.startswith("SpecError type: unknown name 'net' in registry 'jobs")
    assert "registered in the script or notebook of another process: move it to a module" in said


def test_names_of_many_registries_do_not_slow_pickling_down_or_keep_them_alive():
    import gc
    import weakref

    registry: Registry[Any] = Registry("short")
    registry.register("a")(object)
    reference = weakref.ref(registry)
    assert pickle.loads(pickle.dumps(Spec({"type": "a"}))) == Spec({"type": "a"})
    del registry
    gc.collect()
    assert reference() is None
