"""Building from specs: nesting, validation, identity, and the spec of what was built."""

import copy
import dataclasses
import datetime as dt
import enum
import functools
import gc
import pathlib
import pickle
import weakref
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, RegistryError, SpecError
from mlkit.registry import Registry, Spec, spec_of


class Encoder:
    def __init__(self, width: int = 8, act: str = "relu") -> None:
        self.width, self.act = width, act


class Big(Encoder):
    pass


encoders = Registry("encoders", Encoder)
nets = Registry("nets")
encoders.register("conv", version=1)(Encoder)
encoders.register("big", version=2)(Big)


@encoders.register("made")
def made(width: int) -> Encoder:
    return Encoder(width)


class Color(enum.Enum):
    RED = "red"


class Keep:
    """Keeps what it is called with."""

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


def net(**annotations: Any):
    """Return a registry with one factory `net` of these parameters, none of them required."""
    import inspect

    def factory(**given: Any) -> Keep:
        return Keep(**given)

    factory.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=...)
            for name, kind in annotations.items()
        ]
    )
    registry: Registry[Any] = Registry("one")
    registry.register("net")(factory)
    return registry


def problems(registry: Registry[Any], spec: Any) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        registry.build(spec)
    again = pickle.loads(pickle.dumps(caught.value))
    assert [str(problem) for problem in again.problems] == [str(p) for p in caught.value.problems]
    assert len(str(caught.value)) <= 600
    return [(problem.path, problem.kind) for problem in caught.value.problems]


class Net:
    def __init__(
        self,
        *,
        encoder: Annotated[Encoder, encoders],
        depth: int = 18,
        more: Annotated[Encoder, encoders] | None = None,
        many: list[Annotated[Encoder, encoders]] = [],
        named: dict[str, Annotated[Encoder, encoders]] = {},
        pair: tuple[Annotated[Encoder, encoders], ...] = (),
        mixed: Annotated[Encoder, encoders] | int = 0,
    ) -> None:
        self.__dict__.update(locals())


nets.register("net")(Net)

FULL = {
    "type": "net",
    "encoder": {"type": "conv", "width": 3},
    "more": "big",
    "many": [{"type": "made", "width": 4}, "conv"],
    "named": {"a": {"type": "big@2"}},
    "pair": ["conv", "conv@1"],
    "mixed": 5,
}


def test_nested_specs_are_built_wherever_they_may_be():
    built = nets.build(FULL)
    assert (built.encoder.width, built.depth) == (3, 18)
    assert type(built.more) is Big
    assert [e.width for e in built.many] == [4, 8]
    assert type(built.named["a"]) is Big
    assert type(built.pair) is tuple
    assert len(built.pair) == 2
    assert built.mixed == 5
    assert nets.build({**FULL, "mixed": {"type": "conv"}}).mixed.width == 8
    assert nets.build({**FULL, "more": None}).more is None


def test_the_spec_of_what_was_built_is_resolved_and_builds_it_again():
    built = nets.build(Spec(FULL))
    spec = spec_of(built)
    data = spec.to_dict()
    assert data["type"] == "net@1"
    assert data["depth"] == 18
    assert data["more"] == {"type": "big@2", "width": 8, "act": "relu"}
    assert data["many"][1] == {"type": "conv@1", "width": 8, "act": "relu"}
    assert spec == Spec(FULL).resolved(nets) == spec.resolved(nets)
    again = nets.build(spec.to_dict())
    assert spec_of(again) == spec
    assert spec_of(again).digest == spec.digest
    assert spec_of(built.many[0]).to_dict() == {"type": "made@1", "width": 4}
    assert nets.build({"type": "net", "encoder": "conv"}).many == []


def test_every_problem_is_reported_at_once_and_nothing_is_built():
    calls = []
    registry = Registry("calls")

    @registry.register("f")
    def f(part: Annotated[Any, registry] = None, size: int = 0, *, must: str) -> Any:
        calls.append(size)
        return Keep()

    found = problems(
        registry,
        {
            "type": "f",
            "siez": 1,
            "part": {"type": "f", "size": "wide", "must": 3, "part": {"type": "g"}},
            "size": None,
        },
    )
    assert found == [
        ("siez", "unknown_argument"),
        ("part.size", "value"),
        ("part.must", "value"),
        ("part.part.type", "unknown_name"),
        ("size", "value"),
        ("must", "missing_argument"),
    ]
    assert calls == []


def test_messages_say_what_was_meant():
    with pytest.raises(SpecError) as caught:
        nets.build({"type": "net", "encoder": {"type": "conv", "widht": 3, "act": 3}})
    first, second = caught.value.problems
    assert str(first) == "encoder.widht: conv@1 has no argument 'widht'; did you mean 'width'?"
    assert first.suggestions == ("width",)
    assert str(second) == "encoder.act: expected str, got 3"


def test_problems_have_file_line_and_column(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(
        "seed: 1\nmodel:\n  type: net\n  encoder:\n    type: conv\n    width: wide\n    hat: 1\n  many:\n    - conw\n"
    )
    with pytest.raises(SpecError) as caught:
        nets.build(Spec.load(file, at="model"))
    assert [(p.source, p.path) for p in caught.value.problems] == [
        (f"{file}:6:12", "model.encoder.width"),
        (f"{file}:7:5", "model.encoder.hat"),
        (f"{file}:9:7", "model.many[0]"),
    ]
    text = '{"type": "net",\n\t"encoder": {"type": "conv",\n\t\t"width": "wide"}}'
    with pytest.raises(SpecError, match=r"<text>:3:12 encoder.width: expected int, got 'wide'"):
        nets.build(Spec.load(text))
    spec = pickle.loads(pickle.dumps(Spec.load(text)))
    with pytest.raises(SpecError, match=r"<text>:3:12"):
        nets.build(spec)


@pytest.mark.parametrize("value", [True, "64", 64.5, None, [64], {"a": 1}])
def test_an_int_is_nothing_else(value):
    registry = net(n=int)
    for spec in ({"type": "net", "n": value}, Spec({"type": "net", "n": value})):
        assert problems(registry, spec) == [("n", "value")]


def test_half_a_surrogate_pair_is_text_and_reported_as_such():
    with pytest.raises(SpecError, match="expected int, got"):
        net(n=int).build({"type": "net", "n": "\ud800"})
    with pytest.raises(SpecError, match="expected int, got"):
        net(n=list[int]).build({"type": "net", "n": ["\ud800"]})


def test_every_wrong_argument_is_reported_by_its_own_verdict():
    registry = net(a=int, b=Color, c=pathlib.Path, d=list[int])
    with pytest.raises(SpecError) as caught:
        registry.build({"type": "net", "a": "x", "b": "green", "c": 3, "d": [1, "y"]})
    assert str(caught.value.problems[0]) == "a: expected int, got 'x'"
    assert [problem.path for problem in caught.value.problems] == ["a", "b", "c", "d[1]"]
    assert "'red'" in str(caught.value.problems[1])


def test_text_takes_the_form_its_parameter_wants():
    registry = net(
        path=pathlib.Path,
        color=Color,
        day=dt.date,
        pair=tuple[int, str],
        rate=float,
        rates=list[float],
        names=set[str],
        maybe=int | None,
    )
    data = {
        "type": "net",
        "path": "a/b",
        "color": "red",
        "day": "2026-01-02",
        "pair": [1, "x"],
        "rate": 1,
        "rates": [1, 2.5],
        "names": ["a"],
        "maybe": None,
    }
    for spec in (
        data,
        Spec(data),
        Spec.load(Spec(data).dump()),
        Spec.load(Spec(data).dump("json")),
    ):
        built = registry.build(spec)
        assert built.path == pathlib.Path("a/b")
        assert built.color is Color.RED
        assert built.day == dt.date(2026, 1, 2)
        assert built.pair == (1, "x")
        assert type(built.rate) is float
        assert built.rates == [1.0, 2.5]
        assert built.names == {"a"}
        assert spec_of(built).to_dict() == {
            **data,
            "type": "net@1",
            "rate": 1.0,
            "rates": [1.0, 2.5],
        }
        assert spec_of(registry.build(spec_of(built).to_dict())) == spec_of(built)


def test_live_objects_pass_by_identity():
    live: dict[str, Any] = {
        "numbers": [1, 2],
        "table": {"a": [1]},
        "path": pathlib.Path("x"),
        "anything": object(),
        "function": test_live_objects_pass_by_identity,
        "items": (1, 2),
        "lazy": iter([1, 2]),
        "kind": Encoder,
        "encoder": Encoder(),
        "encoders": [Encoder(), Encoder()],
    }
    registry = net(
        numbers=list[int],
        table=dict[str, list[int]],
        path=pathlib.Path,
        anything=object,
        function=Any,
        items=Sequence[int],
        lazy=Iterable[int],
        kind=type[Encoder],
        encoder=Annotated[Encoder, encoders],
        encoders=list[Annotated[Encoder, encoders]],
    )
    built = registry.build({"type": "net", **live})
    for name, value in live.items():
        assert getattr(built, name) is value, name
    with pytest.raises(RegistryError, match="alive"):
        spec_of(built)


def test_live_objects_that_hold_themselves_pass_by_identity():
    registry: Registry[Any] = Registry("models")

    @registry.register("net")
    class Net:
        def __init__(self, items: list[Any] | None = None, free: Any = None) -> None:
            self.items, self.free = items, free

    endless: list[Any] = []
    endless += [endless, endless]
    tree: dict[str, Any] = {}
    tree["below"] = [{"above": tree}, {"above": tree}]
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for value in (endless, deep, tree):
        given = {"free": value} if value is tree else {"items": value, "free": value}
        built = registry.build({"type": "net", **given})
        assert built.free is value
        assert value is tree or built.items is value
        with pytest.raises(RegistryError, match="deeper than 100 levels"):
            spec_of(built)


def test_a_spec_is_not_changed_by_what_was_built_from_it():
    registry = net(cfg=dict[str, Any], more=Any)
    spec = Spec({"type": "net", "cfg": {"a": [1]}, "more": [1]})
    before = spec.digest
    built = registry.build(spec)
    built.cfg["a"].append(2)
    built.more.append(2)
    assert spec.to_dict() == {"type": "net", "cfg": {"a": [1]}, "more": [1]}
    assert spec_of(built).to_dict()["cfg"] == {"a": [1]}
    assert Spec(spec.to_dict()).digest == before


def test_a_live_object_that_has_a_spec_is_written_as_its_spec():
    encoder = encoders.build({"type": "made", "width": 2})
    built = nets.build({"type": "net", "encoder": encoder, "many": [encoder, "conv"]})
    assert built.encoder is built.many[0] is encoder
    assert spec_of(built).to_dict()["encoder"] == {"type": "made@1", "width": 2}
    assert nets.build(spec_of(built)).many[0].width == 2


def test_a_plain_dict_with_a_type_stays_data_where_no_registry_is_annotated():
    registry = net(cfg=dict[str, Any])
    assert registry.build({"type": "net", "cfg": {"type": "conv"}}).cfg == {"type": "conv"}


def test_what_is_no_spec_is_refused_where_a_spec_is_wanted():
    for value in (
        3,
        None,
        {"width": 3},
        ["conv"],
        {"type": 3},
        {"type": None},
        {"type": ["conv"]},
        Keep(),
        1.5,
    ):
        assert len(problems(nets, {"type": "net", "encoder": value})) == 1
    for value in ("conv", {"type": "conv"}, 3):
        assert problems(nets, {"type": "net", "encoder": "conv", "many": value})
    for value in ("conv", ["conv"], 3):
        assert problems(nets, {"type": "net", "encoder": "conv", "named": value})


def test_the_annotated_class_may_be_narrower_than_the_registry():
    registry = net(big=Annotated[Big, encoders])
    assert type(registry.build({"type": "net", "big": "big"}).big) is Big
    assert problems(registry, {"type": "net", "big": "conv"}) == [("big", "value")]
    assert problems(registry, {"type": "net", "big": Encoder()}) == [("big", "value")]


@pytest.mark.parametrize(
    "annotation",
    [
        dict[int, Annotated[Encoder, encoders]],
        Annotated[Encoder, encoders, nets],
        list[Annotated[Encoder, encoders]] | tuple[Annotated[Keep, nets], ...],
    ],
)
def test_nesting_that_is_not_understood_is_refused_clearly(annotation):
    registry = net(part=annotation, n=int)
    registry.build({"type": "net", "n": 3})  # only where it is used
    with pytest.raises(SpecError, match="cannot be checked"):
        registry.build({"type": "net", "part": []})


def test_factories_of_every_kind():
    registry: Registry[Any] = Registry("kinds")

    @registry.register("dataclass")
    @dataclasses.dataclass
    class Data:
        part: Annotated[Encoder, encoders]
        size: int = 3
        tags: list[str] = dataclasses.field(default_factory=list)

    @registry.register("positional")
    def positional(a: int, b: int = 2, c: int = 3, /, *rest: int, d: int = 4) -> Any:
        return Keep(values=(a, b, c, *rest, d))

    class Made:
        @classmethod
        def of(cls, n: int) -> Any:
            return Keep(n=n)

        def __call__(self, n: int) -> Any:
            return Keep(n=n)

    registry.register("classmethod")(Made.of)
    registry.register("instance")(Made())
    registry.register("partial")(functools.partial(positional, 1))
    registry.register("open", extra=True)(Keep)
    assert registry.build({"type": "dataclass", "part": "conv"}).part.width == 8
    assert registry.build({"type": "positional", "a": 1, "c": 9}).values == (1, 2, 9, 4)
    assert registry.build({"type": "partial", "d": 9}).values == (1, 2, 3, 9)
    assert registry.build({"type": "classmethod", "n": 1}).n == 1
    assert registry.build({"type": "instance", "n": 1}).n == 1
    assert registry.build({"type": "open", "anything": [1]}).anything == [1]
    for name in ("classmethod", "instance"):
        assert problems(registry, {"type": name, "n": "x"}) == [("n", "value")]


def test_pydantic_models_are_factories_and_parameters():
    from pydantic import BaseModel, Field

    class Config(BaseModel):
        lr: float = Field(gt=0)

    registry: Registry[Any] = Registry("pydantic")
    registry.register("config")(Config)
    registry.register("user")(net(config=Config, n=Annotated[int, Field(ge=1)])["net"])
    assert registry.build({"type": "config", "lr": 0.5}).lr == 0.5
    assert registry.build({"type": "user", "config": {"lr": 0.5}}).config == Config(lr=0.5)
    live = Config(lr=1)
    assert registry.build({"type": "user", "config": live}).config is live
    assert problems(registry, {"type": "user", "config": {"lr": -1}, "n": 0}) == [
        ("config.lr", "value"),
        ("n", "value"),
    ]


def test_kwargs_swallow_no_slip():
    registry: Registry[Any] = Registry("loose")

    @registry.register("loose")
    def loose(width: int = 1, **kwargs: Any) -> Any:
        return Keep(width=width, **kwargs)

    assert problems(registry, {"type": "loose", "widht": 2}) == [("widht", "unknown_argument")]
    with pytest.raises(SpecError, match=r"\*\*kwargs"):
        registry.build({"type": "loose", "zzz": 2})
    assert registry.create("loose", widht=2).widht == 2


def test_a_failing_factory_says_where_it_is():
    registry: Registry[Any] = Registry("failing")

    @registry.register("f")
    def f(part: Annotated[Any, registry] = None, ok: bool = True) -> Any:
        if not ok:
            raise OSError("disk")
        return Keep()

    with pytest.raises(OSError, match="disk") as caught:
        registry.build({"type": "f", "part": {"type": "f", "part": {"type": "f", "ok": False}}})
    assert caught.value.__notes__ == ["raised while building f@1 of 'failing' at part.part"]


def test_an_entry_that_cannot_be_imported_is_a_problem_with_its_cause():
    registry: Registry[Any] = Registry("lazy")
    registry.lazy("gone", "no_such_module_anywhere:X")
    with pytest.raises(SpecError) as caught:
        registry.build("gone")
    assert caught.value.problems[0].kind == "entry"
    assert isinstance(caught.value.__cause__, RegistryError)


def test_what_has_no_signature_or_a_type_parameter_is_a_problem():
    registry: Registry[Any] = Registry("odd")
    registry.register("dict")(dict)
    registry.register("typed")(net(type=str)["net"])
    assert problems(registry, {"type": "typed"}) == [("type", "entry")]
    assert problems(registry, {"type": "dict", "a": 1}) == [("a", "unknown_argument")]
    with pytest.raises(SpecError, match="no signature"):
        registry.build({"type": "dict", "a": 1})
    assert registry.build("dict") == {}
    shadowed = net(part=Encoder)  # a name that turned out to be no registry at run time
    with pytest.raises(SpecError, match=r"expected an instance of Encoder, got 'conv'"):
        shadowed.build({"type": "net", "part": "conv"})


def test_bad_arguments_of_build():
    for wrong in (3, None, ["net"], Net):
        with pytest.raises(ConfigurationError):
            nets.build(wrong)  # type: ignore[arg-type]
    assert problems(nets, {}) == [("", "type")]
    assert problems(nets, "nets") == [("", "unknown_name")]
    assert problems(nets, {"type": "net", "encoder": "conv", 3: 4}) == [("3", "unknown_argument")]
    loop: dict[str, Any] = {"type": "net"}
    loop["encoder"] = loop
    registry: Registry[Any] = Registry("loop")

    @registry.register("net")
    def again(encoder: Annotated[Any, registry] = None) -> Any: ...

    assert problems(registry, loop)[0][1] == "value"


def test_spec_of_says_why_there_is_none():
    registry: Registry[Any] = Registry("values")
    registry.register("tuple")(lambda: (1, 2))
    registry.register("shared")(functools.cache(lambda: Keep()))
    built = registry.build("tuple")
    with pytest.raises(RegistryError, match="weakly"):
        spec_of(built)
    with pytest.raises(RegistryError, match="not made by"):
        spec_of(Keep())
    with pytest.raises(RegistryError, match="not made by"):
        spec_of(copy.copy(registry.build("shared")))
    assert spec_of(registry.build("shared")).type == "shared@1"


def test_what_was_built_is_not_kept_alive():
    built = nets.build(FULL)
    reference = weakref.ref(built)
    del built
    gc.collect()
    assert reference() is None


@given(st.lists(st.sampled_from(["conv", "big", "made"]), max_size=5), st.integers(), st.data())
def test_any_nested_spec_comes_back(names, depth, data):
    def part(name: str) -> dict[str, Any]:
        return {"type": name, "width": data.draw(st.integers())}

    spec = Spec(
        {
            "type": "net",
            "encoder": part("conv"),
            "depth": depth,
            "many": [part(name) for name in names],
        }
    )
    built = nets.build(spec)
    assert [e.width for e in built.many] == [item["width"] for item in spec.to_dict()["many"]]
    once = spec_of(built)
    assert once == spec.resolved(nets) == spec_of(nets.build(Spec.load(once.dump())))
    assert once == spec_of(nets.build(spec.to_dict()))


def test_a_factory_that_is_false_is_checked_like_any_other():
    class Empty:
        def __len__(self) -> int:
            return 0

        def __call__(self, width: int = 1) -> Encoder:
            return Encoder(width)

    reg = Registry("encoders", Encoder)
    reg.register("empty")(Empty())
    assert reg.build({"type": "empty", "width": 2}).width == 2
    with pytest.raises(SpecError, match="width: expected int, got 'no'"):
        reg.build({"type": "empty", "width": "no"})


def test_a_mapping_of_specs_has_text_as_keys():
    encoders, models = Registry("encoders", Encoder), Registry("models")
    encoders.register("enc")(Encoder)

    @models.register("net")
    class Net:
        def __init__(self, parts: dict[str, Annotated[Encoder, encoders]]) -> None:
            self.parts = parts

    assert list(models.build({"type": "net", "parts": {"a": "enc"}}).parts) == ["a"]
    for value in ("enc", Encoder()):
        with pytest.raises(SpecError, match="parts: expected text as keys, got 1"):
            models.build({"type": "net", "parts": {1: value}})


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("{type: conv}", "the text of a spec"),
        ('{"type": "conv"}', "the text of a spec"),
        ("type: conv", "the text of a spec"),
        ("type: conv\nwidth: 3\n", "the text of a spec"),
        ("train.yaml", "a file"),
    ],
)
def test_text_that_is_no_name_leads_to_load(given, what):
    for spec, where in ((given, ""), ({"type": "wrap", "encoder": given}, "encoder")):
        wraps = Registry("wraps")

        @wraps.register("wrap")
        def wrap(encoder: Annotated[Encoder, encoders]) -> Encoder:
            return encoder

        with pytest.raises(SpecError) as caught:
            (wraps if where else encoders).build(spec)
        (problem,) = caught.value.problems
        assert (problem.path, problem.kind, problem.suggestions) == (where, "unknown_name", ())
        assert problem.message == (
            f"expected a name, got {given!r}, which looks like {what}; pass Spec.load(...) of it"
        )


def test_what_may_be_a_name_is_still_an_unknown_name():
    for spec in ("convv", {"type": "{type: conv}"}):
        with pytest.raises(SpecError, match="unknown name"):
            encoders.build(spec)


def test_each_build_of_a_spec_has_lists_and_dicts_of_its_own():
    things = Registry[object]("things")

    @things.register("spoiler")
    def spoiler(rows: list[int], named: dict[str, list[int]]):
        rows.append(9)
        named["a"].append(9)
        return rows, named

    spec = Spec({"type": "spoiler", "rows": [1], "named": {"a": [2]}})
    for _ in range(2):
        assert things.build(spec) == ([1, 9], {"a": [2, 9]})
        assert spec.compile(things)() == ([1, 9], {"a": [2, 9]})
    given = {"type": "spoiler", "rows": [1], "named": {"a": [2]}}
    assert things.build(given)[0] is given["rows"]
