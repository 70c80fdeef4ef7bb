"""Registering: names, versions, aliases, owners, and what is refused."""

from __future__ import annotations

import copy
import functools
import pickle
import sys
import types
from typing import Annotated, Any, Protocol, runtime_checkable

import pytest

from mlkit.errors import (
    ConfigurationError,
    DuplicateNameError,
    EntryError,
    RegistryFrozenError,
    SpecError,
    UnknownNameError,
)
from mlkit.registry import Registry, Spec, spec_of


class Thing:
    def __init__(self, size: int = 1) -> None:
        self.size = size


class Sub(Thing):
    pass


nested: Registry[Thing] = Registry("nested", Thing)
nested.register("old", deprecated="use new")(Thing)


def things() -> Registry[Thing]:
    return Registry("things", Thing)


def test_the_decorator_returns_what_it_decorates():
    reg = things()
    assert reg.register("thing")(Thing) is Thing
    assert reg.register(Sub) is Sub
    assert reg["thing"] is Thing
    assert list(reg) == ["Sub", "thing"]
    assert len(reg) == 2


def test_the_name_defaults_to_that_of_the_object():
    reg = things()

    @reg.register()
    def small() -> Thing:
        return Thing(1)

    assert reg.create("small").size == 1
    with pytest.raises(ConfigurationError, match="a name"):
        reg.register()(lambda: Thing())
    with pytest.raises(ConfigurationError, match="a name"):
        reg.register()(functools.partial(Thing, 2))


def test_an_entry_says_all_that_was_said():
    reg = things()
    reg.register(
        "thing",
        version=3,
        aliases=["t", "thingy"],
        tags={"x"},
        meta={"paper": "none"},
        requires=["numpy"],
        priority=2.5,
    )(Thing)
    entry = reg.entry("t")
    assert (entry.name, entry.version, entry.ref) == ("thing", 3, "thing@3")
    assert entry.aliases == ("t", "thingy")
    assert entry.tags == {"x"}
    assert entry.meta == {"paper": "none"}
    assert entry.requires == ("numpy",)
    assert entry.priority == 2.5
    assert entry.deprecated is None
    assert entry.imported
    assert entry.target.endswith(":Thing")
    assert entry.source.rpartition(":")[2].isdigit()
    assert copy.deepcopy(entry) is entry
    again = pickle.loads(pickle.dumps(entry))
    assert all(getattr(again, slot) == getattr(entry, slot) for slot in entry.__slots__)
    reg.register(name="named", tags=["y"])(Thing)
    assert "named" in reg
    with pytest.raises(AttributeError, match="immutable"):
        entry.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        entry.meta["paper"] = "changed"  # type: ignore[index]


def test_the_newest_version_that_is_not_deprecated_is_meant():
    reg = things()
    for version in (2, 10, 1):
        reg.register("t", version=version)(functools.partial(Thing, version))
    reg.register("t", version=11, deprecated="use t@10")(functools.partial(Thing, 11))
    assert reg.create("t").size == 10
    assert reg.create("t@2").size == 2
    assert reg.list("*", versions=True) == ["t@1", "t@2", "t@10"]
    assert reg.list("*", versions=True, deprecated=True)[-1] == "t@11"
    with pytest.warns(
        FutureWarning, match=r"t@11 of registry 'things' is deprecated: use t@10"
    ) as w:
        assert reg.create("t@11").size == 11
    assert w[0].filename == __file__
    with pytest.warns(FutureWarning) as w:
        reg.build("t@11")
    assert w[0].filename == __file__
    with pytest.warns(FutureWarning) as w:
        reg["t@11"]
    assert w[0].filename == __file__


def test_if_all_are_deprecated_the_newest_is_meant_and_warns():
    reg = things()
    reg.register("t", version=1, deprecated="gone")(functools.partial(Thing, 1))
    reg.register("t", version=2, deprecated="gone")(functools.partial(Thing, 2))
    with pytest.warns(FutureWarning):
        assert reg.create("t").size == 2
    assert reg.list() == []
    assert reg.list(deprecated=True) == ["t"]
    assert list(reg) == ["t"]


def test_two_owners_of_one_name_raise_and_name_both():
    reg = things()
    reg.register("t")(Thing)
    with pytest.raises(DuplicateNameError) as caught:
        reg.register("t")(Sub)
    text = str(caught.value)
    assert ":Thing" in text
    assert ":Sub" in text
    assert "replace=True" in text
    assert reg["t"] is Thing
    reg.register("t", replace=True)(Sub)
    assert reg["t"] is Sub
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.name) == (text, "t@1")


def test_running_a_definition_again_replaces_it():
    reg = things()
    made = []
    for size in (1, 2):

        @reg.register("cell", aliases=["a", "b"] if size == 1 else ["b"])
        class Cell(Thing):
            value = size

        made.append(Cell)
    assert reg["cell"] is made[1]
    assert reg["b"] is made[1]
    assert "a" not in reg


def test_a_reloaded_module_replaces_its_own(tmp_path, monkeypatch):
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    reg = things()
    hub = types.ModuleType("registry_hub_for_reload")
    hub.reg, hub.Thing = reg, Thing
    monkeypatch.setitem(sys.modules, hub.__name__, hub)
    (tmp_path / "reloaded_things.py").write_text(
        "from registry_hub_for_reload import reg, Thing\n"
        "@reg.register('one')\nclass One(Thing): pass\n"
        "reg.register('two')(lambda: Thing(2))\n"
    )
    module = importlib.import_module("reloaded_things")
    first = module.One
    importlib.reload(module)
    assert reg["one"] is module.One is not first
    assert reg.create("two").size == 2
    sys.modules.pop("reloaded_things")


def test_lambdas_of_different_places_are_different_owners():
    reg = things()
    reg.register("l")(lambda: Thing(1))
    with pytest.raises(DuplicateNameError):
        reg.register("l")(lambda: Thing(2))
    assert reg.create("l").size == 1


def test_aliases_mean_one_name():
    reg = things()
    reg.register("a", aliases=["x"])(Thing)
    with pytest.raises(DuplicateNameError):
        reg.register("b", aliases=["x"])(Sub)
    with pytest.raises(DuplicateNameError):
        reg.register("b", aliases=["a"])(Sub)
    with pytest.raises(DuplicateNameError):
        reg.register("x")(Sub)
    assert list(reg) == ["a"]  # a refused registration leaves nothing behind
    reg.register("a", version=2)(Sub)
    assert reg["x"] is Sub
    assert reg["x@1"] is Thing
    assert "x" in reg
    assert "x@2" in reg
    assert "x@3" not in reg
    reg.register("x", replace=True)(Sub)
    assert reg.entry("x").name == "x"


def test_lazy_imports_on_first_use_only(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lazy_one.py").write_text(
        "class Outer:\n    class Inner(dict): pass\nnot_callable = 3\n"
    )
    reg = Registry("dicts", dict)
    reg.lazy("inner", "lazy_one:Outer.Inner", tags=["nested"])
    assert "inner" in reg
    assert reg.list("*", tag="nested") == ["inner"]
    assert not reg.entry("inner").imported
    assert "missing" not in reg
    with pytest.raises(UnknownNameError):
        reg.create("iner")
    assert "lazy_one" not in sys.modules
    assert reg.create("inner", a=1) == {"a": 1}
    assert reg["inner"] is sys.modules["lazy_one"].Outer.Inner
    sys.modules.pop("lazy_one")


def test_a_broken_target_raises_when_asked_for_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    reg = things()
    file = tmp_path / "lazy_broken.py"
    file.write_text("raise RuntimeError('no device')\n")
    reg.lazy("broken", "lazy_broken:Make")
    reg.lazy("absent", "no_such_package_here.sub:Make")
    reg.lazy("uninstalled", "no_such_package_here:Make", requires=["vision[big]"])
    reg.lazy("attribute", "json:dump_s")
    reg.lazy("number", "math:pi")
    reg.lazy("wrong", "json:JSONDecoder")
    reg.lazy("needy", "lazy_needy:Make", requires=["timm>=1"])
    (tmp_path / "lazy_needy.py").write_text("import not_installed_at_all\n")
    expected = {
        "broken": "RuntimeError: no device",
        "absent": "there is no module 'no_such_package_here'",
        "uninstalled": "install what it requires with:  pip install 'vision[big]'",
        "attribute": "module 'json' has no attribute 'dump_s'; did you mean 'dumps'",
        "number": "cannot be called",
        "wrong": "not a subclass",
        "needy": "pip install 'timm>=1'",
    }
    for name, text in expected.items():
        with pytest.raises(EntryError) as caught:
            reg.create(name)
        assert text in str(caught.value)
        assert isinstance(caught.value, ImportError)
    sys.modules.pop("lazy_broken", None)
    file.write_text(
        "def Make(size: int = 7):\n    import sys\n    return sys.modules['thing_home'].Thing(size)\n"
    )
    home = types.ModuleType("thing_home")
    home.Thing = Thing
    monkeypatch.setitem(sys.modules, "thing_home", home)
    import importlib

    importlib.invalidate_caches()
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        assert reg.create("broken").size == 7  # a failed import was not remembered
    finally:
        sys.dont_write_bytecode = before
        sys.modules.pop("lazy_broken", None)


def test_lazy_and_the_decorator_in_its_module_are_one_owner(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    reg = things()
    hub = types.ModuleType("registry_hub_for_lazy")
    hub.reg, hub.Thing = reg, Thing
    monkeypatch.setitem(sys.modules, hub.__name__, hub)
    (tmp_path / "lazy_decorated.py").write_text(
        "from registry_hub_for_lazy import reg, Thing\n@reg.register('d')\nclass D(Thing): pass\n"
    )
    reg.lazy("d", "lazy_decorated:D")
    assert type(reg.create("d")) is reg["d"] is sys.modules["lazy_decorated"].D
    assert reg.entry("d").imported
    sys.modules.pop("lazy_decorated")


@pytest.mark.parametrize("name", ["", "a b", "a@1", "*", "a?", "a[0]", "a\n", "x" * 201, 3, b"a"])
def test_bad_names_are_refused(name):
    reg = things()
    with pytest.raises(ConfigurationError):
        reg.register(name)(Thing) if isinstance(name, str) else reg.lazy(name, "a:b")
    with pytest.raises(ConfigurationError):
        reg.lazy(name, "a:b")
    with pytest.raises(ConfigurationError):
        Registry(name)
    assert len(reg) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"version": 0},
        {"version": True},
        {"version": 1.0},
        {"version": "1"},
        {"aliases": "abc"},
        {"aliases": ["a b"]},
        {"aliases": 3},
        {"tags": "vision"},
        {"tags": [""]},
        {"meta": {1: 2}},
        {"meta": "x"},
        {"requires": "timm"},
        {"deprecated": ""},
        {"deprecated": True},
        {"replacement": ""},
        {"replacement": "a@x"},
        {"replacement": 3},
        {"migrate": dict},
        {"migrate": 3, "replacement": "t@2"},
        {"extra": 1},
        {"when": "always"},
        {"priority": float("nan")},
        {"priority": True},
        {"priority": "high"},
    ],
)
def test_bad_options_are_refused(options):
    reg = things()
    with pytest.raises(ConfigurationError):
        reg.register("t", **options)(Thing)
    with pytest.raises(ConfigurationError):
        reg.lazy("t", "a:b", **options)
    assert "t" not in reg


def test_what_cannot_be_held_is_refused():
    reg = things()
    with pytest.raises(ConfigurationError, match="subclass of"):
        reg.register("d")(dict)
    with pytest.raises(ConfigurationError, match="class or function"):
        reg.register("d")(3)

    def typed(type: str) -> Thing: ...  # noqa: A002 - the name under test
    def wrong() -> None: ...
    def text() -> str: ...

    wrong.__annotations__["return"] = None
    text.__annotations__["return"] = str
    with pytest.raises(ConfigurationError, match="'type'"):
        reg.register("typed")(typed)
    for function in (wrong, text):
        with pytest.raises(ConfigurationError, match="returns a"):
            reg.register("f")(function)
    for target in ("os", "os.system", "os:", ":system", "os:system()", "../x:y", 3):
        with pytest.raises(ConfigurationError):
            reg.lazy("t", target)
    assert len(reg) == 0


def test_the_base_may_be_a_protocol_or_several_classes():
    @runtime_checkable
    class Sized(Protocol):
        size: int

    class Loose(Protocol):
        size: int

    reg = Registry("sized", Sized)
    reg.register("t")(Thing)
    reg.register("d")(dict)
    assert reg.create("t").size == 1
    with pytest.raises(EntryError, match="returned a dict"):
        reg.create("d")
    with pytest.raises(ConfigurationError, match="runtime_checkable"):
        Registry("loose", Loose)
    both = Registry("both", (dict, Thing))
    both.register("d")(dict)
    both.register("t")(Thing)
    for base in ((), 3, "dict", (dict, 3)):
        with pytest.raises(ConfigurationError):
            Registry("bad", base)
    with pytest.raises(ConfigurationError):
        Registry("bad", entry_points="")


def test_the_result_of_a_function_is_checked_every_time():
    reg = things()
    answers = iter([Thing(), 3])
    reg.register("f")(lambda: next(answers))
    assert isinstance(reg.create("f"), Thing)
    with pytest.raises(EntryError, match="returned an int"):
        reg.create("f")


def test_listing_is_natural_and_filtered():
    reg = things()
    for depth in (101, 18, 50):
        reg.lazy(f"resnet{depth}", "a:b", tags=["vision"], meta={"depth": depth})
    reg.lazy("bert", "a:b", tags=["text"])
    assert reg.list() == ["bert", "resnet18", "resnet50", "resnet101"]
    assert reg.list("RES*") == []
    assert reg.list(["b*", "*18"]) == ["bert", "resnet18"]
    assert reg.list("*", exclude="resnet*") == ["bert"]
    assert reg.list(tag="vision", where=lambda entry: entry.meta["depth"] > 40) == [
        "resnet50",
        "resnet101",
    ]
    assert list(reg) == reg.list()
    with pytest.raises(ConfigurationError):
        reg.list(3)  # type: ignore[arg-type]


def test_create_takes_handles():
    reg = things()
    reg.register("t")(Thing)
    assert reg.create(Thing, size=4).size == 4
    assert reg.create(Thing, 5).size == 5
    with pytest.raises(UnknownNameError, match="Sub"):
        reg.create(Sub)
    for wrong in (3, None, [], {}):
        with pytest.raises(ConfigurationError):
            reg.create(wrong)

    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self) -> Thing:
            return Thing(9)

    factory = Unhashable()
    reg.register("u")(factory)
    assert reg.create(factory).size == 9
    assert reg.create(factory).size == 9


def test_misses_are_helpful_and_short():
    reg = things()
    for number in range(3000):
        reg.lazy(f"layer_{number}", "a:b")
    with pytest.raises(UnknownNameError) as caught:
        reg.create("layer_29999")
    assert caught.value.suggestions
    assert len(str(caught.value)) <= 600
    assert isinstance(caught.value, KeyError)
    for slip in ("LAYER-299", "alyer_299", "layer_2999_", "ayer_299", "lager_299", "layre299"):
        with pytest.raises(UnknownNameError, match="did you mean 'layer_"):
            reg.create(slip)
    with pytest.raises(UnknownNameError, match="imported"):
        reg.create("Q" * 500)
    reg.register("v", version=2)(Thing)
    with pytest.raises(UnknownNameError, match="v@2"):
        reg.create("v@1")
    for wrong in (
        "v@",
        "v@0",
        "v@-1",
        "v@02",
        "v@٢",
        "v@1.0",
        "@1",
        "",
        "v@" + "9" * 5000,
        "v@1@1",
    ):
        assert wrong not in reg
        with pytest.raises(UnknownNameError):
            reg.create(wrong)
    with pytest.raises(ConfigurationError):
        reg[3]  # type: ignore[index]
    with pytest.raises(ConfigurationError):
        reg.entry(3)  # type: ignore[arg-type]
    assert 3 not in reg
    assert [] not in reg


def test_iteration_survives_a_registration():
    reg = things()
    reg.lazy("a", "x:y")
    reg.lazy("c", "x:y")
    seen = []
    for name in reg:
        reg.lazy(f"{name}2", "x:y")
        seen.append(name)
    assert seen == ["a", "c"]


def test_a_registry_is_copied_by_reference_and_never_pickled():
    reg = things()
    assert copy.deepcopy([reg])[0] is reg
    assert copy.copy(reg) is reg
    assert reg
    assert "things" in repr(reg)
    with pytest.raises(TypeError, match="import its module"):
        pickle.dumps(reg)


def test_options_count_also_when_the_object_is_passed_directly():
    reg = things()
    assert reg.register(Sub, version=2, tags=["x"], deprecated="use Thing") is Sub
    entry = reg.entry("Sub")
    assert (entry.ref, entry.tags, entry.deprecated) == ("Sub@2", {"x"}, "use Thing")


def test_a_deprecated_class_used_as_a_handle_warns_at_the_place_of_use():
    reg = things()
    reg.register("old", deprecated="use new")(Sub)
    for _ in range(2):
        with pytest.warns(
            FutureWarning, match="old@1 of registry 'things' is deprecated"
        ) as caught:
            assert type(reg.create(Sub)) is Sub
        assert [warning.filename for warning in caught] == [__file__]


def test_an_alias_that_replaces_a_name_takes_it_and_may_lose_it_again():
    reg = things()
    reg.register("a", aliases=["a2"])(Thing)
    with pytest.raises(DuplicateNameError):
        reg.register("b", aliases=["a"])(Sub)
    reg.register("b", aliases=["a"], replace=True)(Sub)
    assert reg.list() == ["b"]
    assert reg["a"] is Sub
    assert "a2" not in reg
    with pytest.raises(DuplicateNameError):
        reg.register("a")(Thing)
    reg.register("a", replace=True)(Thing)
    assert reg["a"] is Thing
    reg.register("b", version=2)(Sub)  # its first version still says that it has the alias
    reg.register("a")(Thing)
    assert reg["a"] is Thing
    assert reg.list() == ["a", "b"]


def test_a_listing_refuses_filters_that_cannot_be_meant():
    reg = things()
    reg.register("thing", tags=["x"])(Thing)
    with pytest.raises(ConfigurationError, match=r"things\.list\(tag=\.\.\.\): expected one tag"):
        reg.list(tag=["x"])  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"things\.list\(where=\.\.\.\)"):
        reg.list(where="x")  # type: ignore[arg-type]


def test_a_name_of_a_text_subclass_is_kept_as_text():
    class Text(str):
        __slots__ = ()

    reg = things()
    reg.register(Text("thing"))(Thing)
    assert type(reg.entry("thing").name) is str


def test_a_handle_whose_equality_uses_the_registry_does_not_hang():
    reg: Registry[object] = Registry("objects")

    class Curious:
        def __init__(self, n: int) -> None:
            self.n = n

        def __hash__(self) -> int:
            reg.register("seen")(Thing)  # takes the lock of the writers
            return 1

        def __call__(self) -> int:
            return self.n

    one = Curious(1)
    reg.register("one")(one)
    assert reg.create(one) == 1
    assert reg.create(one) == 1


def closures(reg):
    def make(width, bias=0):
        @reg.register("net")
        class Net(Thing):
            def __init__(self) -> None:
                super().__init__(width)

        return Net

    return make


def test_a_closure_that_is_made_again_the_same_replaces_and_another_one_does_not():
    reg = things()
    make = closures(reg)
    first, again = make(3), make(3)
    assert reg["net"] is again is not first
    with pytest.raises(DuplicateNameError):
        make(4)
    assert reg.create("net").size == 3
    assert type(reg.create(again)) is again


def test_functions_made_by_one_function_are_told_apart_by_what_they_hold():
    reg = things()

    def make(size, *, wrapped=None):
        def factory(n=size):
            return wrapped() if wrapped else Thing(size + n)

        return factory

    reg.register("f")(make(1))
    reg.register("f")(make(1))
    for other in (make(2), make(True), make(1, wrapped=Thing)):
        with pytest.raises(DuplicateNameError):
            reg.register("f")(other)
    reg.register("g")(make(1, wrapped=make(5)))
    reg.register("g")(make(1, wrapped=make(5)))
    with pytest.raises(DuplicateNameError):
        reg.register("g")(make(1, wrapped=make(6)))

    def recursive(depth):
        def factory():
            return factory if depth < 0 else Thing(depth)

        return factory

    reg.register("r")(recursive(2))
    reg.register("r")(recursive(2))
    with pytest.raises(DuplicateNameError):
        reg.register("r")(recursive(3))


def test_two_lambdas_of_a_module_are_two_things():
    reg = things()
    one, two = (lambda: Thing(1)), (lambda: Thing(2))
    reg.register("one")(one)
    reg.register("two")(two)
    assert reg.create(one).size == 1
    assert reg.create(two).size == 2
    with pytest.raises(DuplicateNameError):
        reg.register("one")(two)
    with pytest.raises(UnknownNameError):
        reg.create(lambda: Thing(3))
    assert reg.entry("one").target.startswith(f"{__name__}:test_two_lambdas")
    assert "line" in reg.entry("one").target
    for size in (1, 2):
        if size == 1:
            reg.register("looped")(lambda size=size: Thing(size))
        else:
            with pytest.raises(DuplicateNameError):
                reg.register("looped")(lambda size=size: Thing(size))


def test_a_partial_is_its_function_and_its_arguments():
    reg = things()
    reg.register("p")(functools.partial(Thing, 2))
    reg.register("p")(functools.partial(Thing, 2))
    for other in (
        functools.partial(Thing, 3),
        functools.partial(Sub, 2),
        functools.partial(Thing, size=2),
    ):
        with pytest.raises(DuplicateNameError):
            reg.register("p")(other)


def test_what_was_said_of_a_lazy_entry_is_kept_when_its_module_registers_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    reg = things()
    hub = types.ModuleType("registry_hub_for_tags")
    hub.reg, hub.Thing = reg, Thing
    monkeypatch.setitem(sys.modules, hub.__name__, hub)
    (tmp_path / "lazy_tagged.py").write_text(
        "from registry_hub_for_tags import reg, Thing\n"
        "@reg.register('d', tags=['inner'], meta={'b': 2, 'c': 3}, priority=5)\nclass D(Thing): pass\n"
    )
    reg.lazy(
        "d", "lazy_tagged:D", tags=["outer"], requires=["timm"], aliases=["dd"], meta={"a": 1, "b": 1},
        when=lambda context: context or "no",
    )  # fmt: skip
    assert type(reg.create("d")).__name__ == "D"
    entry = reg.entry("dd")
    assert entry.tags == {"inner", "outer"}
    assert entry.requires == ("timm",)
    assert dict(entry.meta) == {"a": 1, "b": 2, "c": 3}
    assert entry.priority == 5
    assert entry.imported
    assert reg.select(True).entry.name == "d"
    sys.modules.pop("lazy_tagged")


def test_a_frozen_registry_takes_nothing_more():
    reg = things()
    reg.register("t")(Thing)
    reg.freeze()
    reg.freeze()
    for attempt in (
        lambda: reg.register("new")(Sub),
        lambda: reg.register("t", version=2)(Sub),
        lambda: reg.register("t", replace=True)(Sub),
        lambda: reg.register("t")(Thing),
        lambda: reg.lazy("new", "a:b"),
    ):
        with pytest.raises(RegistryFrozenError, match="freeze"):
            attempt()
    assert reg.list(versions=True) == ["t@1"]
    assert reg.create("t").size == 1
    with reg.override(t=Sub):
        assert type(reg.create("t")) is Sub
    assert type(reg.create("t")) is Thing


def replaced(reg, migrate):
    calls = []

    @reg.register("net", version=2)
    def new(layers: int, width: int = 4) -> Thing:
        calls.append((layers, width))
        return Thing(layers)

    @reg.register("net", version=1, replacement="net@2", migrate=migrate)
    def old(depth: int, wide: bool = False) -> Thing:
        raise AssertionError("the old one was called")

    return calls, old


def test_a_spec_of_an_old_version_builds_its_replacement_and_says_so_once():
    reg = things()
    seen = []

    def migrate(arguments):
        seen.append(dict(arguments))
        depth = arguments.pop("depth")
        return {"layers": depth, "width": 8 if arguments.pop("wide", False) else 4, **arguments}

    calls, old = replaced(reg, migrate)
    given = {"type": "net@1", "depth": 3, "wide": True}
    with pytest.warns(
        FutureWarning, match=r"net@1 of registry 'things' is deprecated: use net@2"
    ) as caught:
        assert reg.build(given).size == 3
    assert [warning.filename for warning in caught] == [__file__]
    assert given == {"type": "net@1", "depth": 3, "wide": True}
    with pytest.warns(FutureWarning) as caught:
        made = [reg.create("net@1", 5), reg.create("net@1", depth=6, wide=True)]
    assert [one.size for one in made] == [5, 6]
    assert [warning.filename for warning in caught] == [__file__] * 2
    assert calls == [(3, 8), (5, 4), (6, 8)]
    assert reg.create("net", layers=2).size == 2
    assert reg.entry("net@1").replacement == "net@2"
    assert reg.list(versions=True) == ["net@2"]
    with pytest.warns(FutureWarning):
        assert reg["net@1"] is old
    with pytest.warns(FutureWarning), pytest.raises(EntryError, match="by name"):
        reg.create("net@1", 1, True, 3)
    with pytest.warns(FutureWarning):
        built = reg.build(Spec({"type": "net@1", "depth": 3}))
    assert spec_of(built).to_dict() == {"type": "net@2", "layers": 3, "width": 4}


def test_overriding_an_old_version_takes_the_old_arguments():
    reg = things()
    replaced(reg, lambda old: {})
    with reg.override({"net@1": lambda depth: Thing(depth + 100)}), pytest.warns(FutureWarning):
        assert reg.create("net@1", depth=1).size == 101


@pytest.mark.parametrize(
    ("migrate", "said"),
    [
        (lambda old: old["absent"], "KeyError: 'absent'"),
        (lambda old: None, "expected a mapping"),
        (lambda old: {"type": "x"}, "expected a mapping"),
        (lambda old: {3: 4}, "expected a mapping"),
        (lambda old: [1, 2], "expected a mapping"),
    ],
    ids=["raises", "nothing", "type", "number", "list"],
)
def test_a_migration_that_fails_says_so(migrate, said):
    reg = things()
    replaced(reg, migrate)
    with pytest.warns(FutureWarning), pytest.raises(EntryError, match=said):
        reg.create("net@1", depth=1)
    with pytest.raises(SpecError, match=said):
        reg.build({"type": "net@1", "depth": 1})


def test_migrations_are_followed_to_their_end_and_never_for_ever():
    reg = things()
    for version in (1, 2):
        reg.register(
            "t", version=version, replacement=f"t@{version + 1}",
            migrate=lambda old, version=version: {"size": old["size"] * 10},
        )(functools.partial(Thing, version))  # fmt: skip
    reg.register("t", version=3)(Thing)
    for name, back in (("a", "b"), ("b", "a")):
        reg.register(name, replacement=back, migrate=dict)(functools.partial(Thing, len(name)))
    reg.register("lost", replacement="nowhere", migrate=dict)(Thing)
    with pytest.warns(FutureWarning):
        made = [reg.create("t@1", size=1), reg.build({"type": "t@1", "size": 1})]
    assert [one.size for one in made] == [100, 100]
    for name, said in (("a", "back to where"), ("lost", "nowhere")):
        with pytest.warns(FutureWarning), pytest.raises(EntryError, match=said):
            reg.create(name)
    for name in ("a", "lost"):
        with pytest.raises(SpecError):
            reg.build(name)


def test_a_warning_names_the_registry_of_the_entry_once_for_each_build():
    reg: Registry[object] = Registry("outer")

    @reg.register("pair")
    def pair(a: Annotated[Thing, nested], b: Annotated[Thing, nested]) -> object:
        return [a, b]

    with pytest.warns(FutureWarning, match=r"old@1 of registry 'nested' is deprecated") as caught:
        reg.build({"type": "pair", "a": "old", "b": {"type": "old", "size": 3}})
    assert len(caught) == 1


def test_a_reload_replaces_classes_whose_metaclass_is_reloaded_too():
    reg: Registry[object] = Registry("objects")
    code = "class Meta(type): pass\n@reg.register('m')\nclass Made(metaclass=Meta): pass\n"
    for _ in range(2):
        module = {"reg": reg, "__name__": "reloaded_with_meta"}
        exec(code, module)
    assert reg["m"] is module["Made"]


def test_a_misspelt_option_says_which_was_meant():
    registry: Registry[Any] = Registry("models")
    with pytest.raises(TypeError, match=r"models.register\(\) .* 'alias'; did you mean 'aliases'"):
        registry.register("net", alias=["network"])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"models.lazy\(\) .* 'verison'; did you mean 'version'"):
        registry.lazy("net", "mypkg:Net", verison=2)  # type: ignore[call-arg]
    assert list(registry) == []


def test_a_circular_import_is_called_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    reg = things()
    home = types.ModuleType("circle_home")
    home.reg = reg
    monkeypatch.setitem(sys.modules, "circle_home", home)
    (tmp_path / "circle.py").write_text(
        "from circle_home import reg\nearly = reg.create('thing')\nclass Make: pass\n"
    )
    reg.lazy("thing", "circle:Make")
    with pytest.raises(EntryError, match=r"'circle' is still being imported .* a circular import"):
        reg.create("thing")


def test_a_base_that_a_notebook_defined_again_is_named_as_the_reason():
    cell = {"__name__": "notebook"}
    exec("class Base: pass", cell)
    reg: Registry[Any] = Registry("parts", cell["Base"])
    exec("class Base: pass\nclass Part(Base): pass", cell)
    with pytest.raises(ConfigurationError, match=r"Base was defined again .* make the registry"):
        reg.register(cell["Part"])
    with pytest.raises(ConfigurationError) as caught:
        reg.register(dict)
    assert "again" not in str(caught.value)


def test_a_class_under_several_names_is_listed_once_in_a_miss():
    reg = Registry("many")
    for name in ("a", "b", "c"):
        reg.register(name)(Thing)
    with pytest.raises(UnknownNameError) as caught:
        reg.create(dict)
    assert str(caught.value).count("Thing") == 1


def test_a_wrong_pattern_names_the_call_that_it_was_given_to():
    reg = Registry("named")
    for call in (reg.list, reg.json_schema):
        with pytest.raises(ConfigurationError, match=rf"named\.{call.__name__}\(pattern\)"):
            call(3)


def test_every_problem_is_shown_for_which_there_is_room():
    reg = Registry("roomy")

    @reg.register
    def wide(a: int, b: int, c: int, d: int, e: int) -> Thing:
        return Thing()

    with pytest.raises(SpecError) as caught:
        reg.build({"type": "wide", **dict.fromkeys("abcde", "x")})
    assert "e: expected int" in str(caught.value)
    with pytest.raises(SpecError) as caught:
        reg.build({"type": "wide", **dict.fromkeys("abcde", "x" * 500)})
    assert "and 1 more" in str(caught.value) or "and 2 more" in str(caught.value)
    assert len(str(caught.value)) <= 600
