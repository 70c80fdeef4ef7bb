"""From data, nothing runs that code did not register."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import MlkitError, SpecError, UnknownNameError
from mlkit.registry import Registry, Spec

TARGETS = [
    "os.system", "os:system", "posix.system", "nt.system", "subprocess.Popen", "subprocess:run", "builtins.eval", "eval",
    "exec", "__import__", "builtins:__import__", "compile", "open", "input", "getattr", "globals", "pdb.Pdb._getval",
    "logging.os.system", "importlib.import_module", "runpy.run_path", "pickle.loads", "shutil.rmtree", "socket.socket",
    "ctypes.CDLL", "code.interact", "webbrowser.open", "sys.exit", "types.FunctionType", "operator.attrgetter",
    "functools.partial", "torch.load", "numpy.load", "yaml.unsafe_load", "mlkit.registry:Registry", "marker_target:fire",
    "marker_target.fire", "__main__:fire", ".fire", "marker_target", "lazy", "register", "__class__", "__init__",
    "__reduce__", "base", "_table", "safe.__class__", "safe:__init__", "safe@1:__globals__", "../marker_target",
    "entry_points", "hydra.utils.instantiate", "${oc.env:HOME}", "{{7*7}}", "%(x)s", "safe;fire", "safe\nfire",
]  # fmt: skip
fired: list[Any] = []


class Safe:
    def __init__(
        self, part: Annotated[Any, "no registry"] = None, n: int = 0, text: str = ""
    ) -> None:
        self.part, self.n, self.text = part, n, text


registry: Registry[Any] = Registry("safe", Safe)
registry.register("safe")(Safe)


@registry.register("outer")
def outer(inner: Annotated[Any, registry], many: list[Annotated[Any, registry]] = []) -> Safe:
    return Safe()


@pytest.fixture(autouse=True)
def _marker(tmp_path, monkeypatch):
    (tmp_path / "marker_target.py").write_text("raise SystemExit('imported from data')\n")
    monkeypatch.syspath_prepend(tmp_path)
    fired.clear()
    yield
    assert "marker_target" not in sys.modules
    assert not fired


@pytest.mark.parametrize("target", TARGETS)
def test_no_dotted_target_is_reached(target):
    before = set(sys.modules)
    hostile: list[Any] = [
        {"type": target},
        {"type": target, "command": "true"},
        {"type": "outer", "inner": target},
        {"type": "outer", "inner": {"type": target}},
        {"type": "outer", "inner": "safe", "many": [{"type": target, "args": ["true"]}]},
        {"type": f"{target}@1"},
        {"_target_": target},
        {"type": "safe", "_target_": target},
        {"type": "safe", "_args_": [target]},
        {"type": {"type": target}},
        {"type": [target]},
    ]
    for spec in hostile:
        with pytest.raises(SpecError):
            registry.build(spec)
        with pytest.raises(SpecError):
            registry.build(Spec(spec))
    with pytest.raises(UnknownNameError):
        registry.create(target)
    with pytest.raises(UnknownNameError):
        registry[target]
    assert target not in registry
    # What reporting an error needs may be imported; nothing that the data names.
    assert not {
        name
        for name in set(sys.modules) - before
        if name.split(".")[0] in {"marker_target", "hydra", "webbrowser"}
    }


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_as_an_argument_stays_text(target):
    assert registry.build({"type": "safe", "text": target}).text == target
    assert registry.build({"type": "safe", "part": {"type": target}}).part == {"type": target}
    with pytest.raises(SpecError):
        registry.build({"type": "safe", "n": target})


@pytest.mark.parametrize(
    "name", ["self", "cls", "__class__", "__init__", "args", "kwargs", "factory", "return"]
)
def test_no_argument_reaches_past_the_signature(name):
    with pytest.raises(SpecError, match="no argument"):
        registry.build({"type": "safe", name: "x"})


@pytest.mark.parametrize(
    "tag",
    ["!!python/name:os.system", "!!python/object/apply:os.system ['true']", "!!python/module:marker_target",
     "!!python/object/new:marker_target.fire []", "!!python/object:marker_target.fire {}", "!!python/tuple [1]"],
)  # fmt: skip
def test_yaml_tags_run_nothing(tag):
    for text in (f"type: safe\ntext: {tag}\n", f"type: {tag}\n", f"{tag}\n"):
        with pytest.raises(MlkitError):
            Spec.load(text if "\n" in text else text + "\n")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(TARGETS),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "inner", "many", "n", "text", "part"]) | st.text(), inner, max_size=4),
                    max_leaves=12))  # fmt: skip
def test_any_data_builds_something_registered_or_is_refused(data):
    if not isinstance(data, dict):
        data = {"type": data}
    try:
        built = registry.build(data)
    except SpecError as error:
        assert error.problems
        assert len(str(error)) <= 600
    else:
        assert type(built) is Safe


# What a block list has to know, and aliases under which the standard library holds the same objects.
DANGEROUS = [
    "os.system", "os.popen", "os.execv", "os.spawnl", "os.remove", "os.kill", "os.fork", "posix.system", "pty.spawn",
    "subprocess.call", "subprocess.check_output", "subprocess.getoutput", "multiprocessing.Process", "asyncio.run",
    "builtins.exec", "builtins.compile", "builtins.open", "builtins.getattr", "builtins.breakpoint", "importlib.reload",
    "importlib.util.spec_from_file_location", "runpy.run_module", "zipimport.zipimporter", "pkgutil.resolve_name",
    "pickle.load", "pickle.Unpickler", "_pickle.loads", "marshal.loads", "shelve.open", "dill.loads", "joblib.load",
    "pdb.run", "pdb.Pdb._getval", "bdb.Bdb.run", "cProfile.run", "profile.run", "timeit.timeit", "timeit.repeat",
    "trace.Trace.runctx", "doctest.debug_script", "code.InteractiveInterpreter.runsource", "codeop.compile_command",
    "ctypes.CDLL", "ctypes.cdll.LoadLibrary", "cffi.FFI", "socket.create_connection", "urllib.request.urlopen",
    "http.server.HTTPServer", "smtplib.SMTP", "ftplib.FTP", "telnetlib.Telnet", "shutil.move", "pathlib.Path.unlink",
    "tempfile.mktemp", "signal.raise_signal", "sys.settrace", "threading.Thread", "types.CodeType", "gc.get_objects",
    "inspect.getattr_static", "operator.methodcaller", "functools.reduce", "itertools.starmap", "atexit.register",
    "distutils.spawn.spawn", "setuptools.setup", "pip.main", "venv.create", "platform.popen", "antigravity", "this",
    "pandas.read_pickle", "pandas.eval", "numpy.load", "torch.hub.load", "sklearn.datasets.fetch_openml",
]  # fmt: skip
ALIASED = [
    "logging.os.system", "random._os.system", "tempfile._os.system", "shutil.os.system", "glob.os.system",
    "inspect.importlib.import_module", "unittest.mock.builtins.exec", "json.codecs.builtins.open", "pathlib.os.remove",
    "typing.sys.modules", "mlkit.registry._target.import_module", "mlkit.cli.import_module", "yaml.sys.exit",
]  # fmt: skip


@pytest.mark.parametrize("form", ["{}", "{}@1", "{}()", "{} ", " {}", "!{}", "@{}"])
def test_no_spelling_of_a_dangerous_callable_is_a_name(form):
    for dotted in [*DANGEROUS, *ALIASED]:
        module, _, attribute = dotted.rpartition(".")
        for target in {dotted, f"{module}:{attribute}", attribute, dotted.replace(".", ":")}:
            ref = form.format(target)
            assert ref not in registry
            with pytest.raises(UnknownNameError):
                registry.create(ref)
            with pytest.raises(SpecError):
                registry.build({"type": "outer", "inner": {"type": ref}})


def test_data_can_register_and_declare_nothing():
    for key in ("target", "module", "import", "requires", "entry_points", "migrate", "replacement"):
        with pytest.raises(SpecError):
            registry.build({"type": "safe", key: "marker_target:fire"})
    assert registry.list(versions=True) == ["outer@1", "safe@1"]
