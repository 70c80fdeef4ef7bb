"""The exported JSON Schema accepts exactly what `build` accepts, on types with a JSON form."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import pathlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    LiteralString,
    NamedTuple,
    NotRequired,
    Required,
    TypedDict,
)

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import utils
from hypothesis_jsonschema import _from_schema as generator
from hypothesis_jsonschema import from_schema
from pydantic import BaseModel, Field

from mlkit.errors import ConfigurationError, EntryError, SpecError
from mlkit.registry import Registry, Spec
from mlkit.testing.strategies import json_values


class Many(utils.many):
    """With the method that hypothesis-jsonschema 0.23.1 calls, which Hypothesis has replaced by iteration."""

    def more(self) -> bool:
        if self._depth is None:
            self.__enter__()
            self.steps = iter(self)
        if next(self.steps, self) is self:
            self.__exit__(None)
            return False
        return True


@pytest.fixture(autouse=True)
def generating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "cu", types.SimpleNamespace(many=Many))


def draft_7(schema: Any) -> Any:
    """Return *schema* as hypothesis-jsonschema reads it, which knows no later draft."""
    if isinstance(schema, list):
        return [draft_7(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: draft_7(value) for key, value in schema.items() if key != "$schema"}
    if "prefixItems" in made:
        made["additionalItems"] = made.pop("items", True)
        made["items"] = made.pop("prefixItems")
    return made


class Part:
    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


class Big(Part):
    pass


class Color(enum.Enum):
    RED = "red"
    ONE = 1


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    SHARE = 8


class Bits(enum.IntFlag):
    A = 1
    B = 2


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Pair(NamedTuple):
    x: int
    y: float = 0.5


class Options(TypedDict, total=False):
    depth: int


class Tree(TypedDict):
    x: Required[float]
    y: NotRequired[list[Tree]]


class Model(BaseModel):
    lr: float = Field(gt=0, le=1)
    names: list[str] = []


encoders: Registry[Part] = Registry("encoders", Part)
heads: Registry[Part] = Registry("heads", Part)


@encoders.register("conv", aliases=["cnn"], version=2)
def conv(width: int, act: Literal["relu", "tanh"] = "relu") -> Part:
    return Part(width=width, act=act)


@encoders.register("flat")
def flat() -> Part:
    return Part()


@encoders.register("big")
class BigOne(Big):
    def __init__(self, rate: float | None = None) -> None:
        super().__init__(rate=rate)


@heads.register("flat")
@heads.register("linear")
def head(size: int = 1) -> Part:
    return Part(size=size)


Encoder = Annotated[Part, encoders]
Head = Annotated[Part, heads]

PLAIN: list[Any] = [
    int,
    float,
    bool,
    str,
    None,
    Any,
    int | None,
    int | str,
    int | float,
    bool | int,
    Literal["a", 1],
    Literal[True],
    Literal[1],
    Color,
    Level,
    Access,
    Bits,
    LiteralString,
    pathlib.Path,
    list[int],
    list[float],
    dict[str, int],
    dict[str, list[bool]],
    Sequence[int],
    Iterable,
    Iterable[int],
    dict[str, Iterable[Literal[1]]] | None,
    Mapping[str, float],
    tuple[int, str],
    tuple[float, ...],
    set,
    set[str],
    frozenset[int],
    list[Color | None],
    Annotated[int, Field(ge=1, le=9)],
    Annotated[str, Field(min_length=2)],
    Annotated[list[int], Field(min_length=1, max_length=2)],
    Point,
    Pair,
    Options,
    Tree,
    dict[str, Tree] | None,
    Model,
    list[Model],
    Callable[[], int],
    Part,
    Part | None,
    type[Part],
]
NESTED: list[Any] = [
    Encoder,
    Annotated[Big, encoders],
    Encoder | None,
    Encoder | int,
    Encoder | str,
    Encoder | dict[str, int],
    Encoder | list[int],
    Encoder | Head,
    Encoder | Head | float | None,
    list[Encoder],
    set[Encoder],
    tuple[Encoder, ...],
    tuple[Encoder, int],
    tuple[Encoder, Head | None],
    dict[str, Encoder],
    list[Encoder | int],
    dict[str, list[Encoder]] | None,
]


# There are many annotations, so few examples of each; all of them in the deep profile.
few = settings(
    max_examples=max(5, settings().max_examples // 10),
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


def models(annotation: Any) -> Registry[Any]:
    """Return a registry with one factory that takes a parameter `x` of *annotation*."""

    def make(**given: Any) -> Part:
        return Part(**given)

    parameter = inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    make.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    registry: Registry[Any] = Registry("models")
    registry.register("net")(make)
    return registry


def builds(registry: Registry[Any], data: Any) -> bool:
    try:
        registry.build(data)
    except (SpecError, ConfigurationError):  # the latter: data that is no mapping and no text
        return False
    except EntryError:
        return True  # what a function returns is known only after the call
    return True


def exported(registry: Registry[Any]) -> dict[str, Any]:
    return json.loads(json.dumps(registry.json_schema()))  # it is itself JSON


def validator_of(registry: Registry[Any]) -> jsonschema.Draft202012Validator:
    schema = exported(registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def agree(registry: Registry[Any], validator: jsonschema.Draft202012Validator, data: Any) -> None:
    assert validator.is_valid(data) == builds(registry, data), data


# What tells the types of a parameter apart, and the spots where JSON and Python see values differently.
SPOTS: list[Any] = (
    [None, True, False, 0, 1, 2, -1, 1.0, 2.0, 0.5, 1e300, "", "a", "red", "1", "ab", [], [1], [1.0], [1, 1], [1, "b"],
     ["x"], ["x", "x"], [True], [0.5], [None], {}, {"x": 1}, {"x": 1.0, "y": 2}, {"x": True}, {"depth": 1}, {"lr": 0.5},
     {"lr": "0.5"}, {"lr": 1}, [{"lr": 2}], {"a": [True]}, {"x": 1, "z": 2}, {"type": 1},
     {"x": 1, "y": [{"x": 2}]}, {"x": 1, "y": [{}]}, {"a": {"x": 1}}, 3, 4, 9, 16]
)  # fmt: skip
telling = st.sampled_from(SPOTS)
names = st.sampled_from(
    ["conv", "cnn", "conv@2", "cnn@2", "conv@1", "flat", "flat@1", "big", "linear", "nope", "", "@"]
)
nodes = st.builds(
    lambda name, rest: {"type": name, **rest},
    names,
    st.sampled_from([{}, {"width": 3}, {"width": 3.0, "act": "tanh"}, {"width": 0.5}, {"rate": 1}, {"size": 1}, {"x": 1}]),
)  # fmt: skip
parts = st.recursive(
    names | nodes | telling,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("annotation", PLAIN + NESTED, ids=str)
def test_both_accept_the_same(annotation):
    registry = models(annotation)
    validator = validator_of(registry)
    for value in SPOTS:
        agree(registry, validator, {"type": "net", "x": value})

    @few
    @given(telling | parts | json_values(max_leaves=4))
    def check(value: Any) -> None:
        agree(registry, validator, {"type": "net", "x": value})

    check()


@pytest.mark.parametrize("annotation", PLAIN + NESTED, ids=str)
def test_what_the_schema_says_is_built(annotation):
    registry = models(annotation)
    schema = exported(registry)
    validator = jsonschema.Draft202012Validator(schema)
    if annotation in (Callable[[], int], Part, type[Part]):
        return  # nothing satisfies it: only a live object will do

    @few
    @given(from_schema(draft_7(schema)))
    def check(data: Any) -> None:
        assert validator.is_valid(data)
        assert builds(registry, data)

    check()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["net", "net@1", "net@2", "other", 3, None]),
            "x": st.sampled_from([1, "1"]),
            "y": st.sampled_from([1, "1"]),
            "": st.none(),
        },
    )
)
@example("net")
@example("net@3")
@example([])
@example(3)
def test_both_accept_the_same_names_and_arguments(data):
    registry = models(int)
    registry.register("other")(lambda y=0: Part(y=y))
    registry.register("open", extra=True)(lambda **given: Part(**given))
    registry.lazy("broken", "no_such_module_anywhere:X")
    agree(registry, validator_of(registry), data)


def test_what_takes_any_name_says_so():
    registry: Registry[Any] = Registry("models")

    @registry.register("loose", extra=True)
    def loose(width: int = 1, **parts: Encoder) -> Part:
        return Part(**parts)

    @registry.register("tight")
    def tight(width: int = 1, **parts: Encoder) -> Part:
        return Part(**parts)

    validator = validator_of(registry)
    for name in ("loose", "tight"):
        for value in ("flat", {"type": "conv", "width": 1}, "conv", 3):
            agree(registry, validator, {"type": name, "any": value})


def test_a_factory_that_nests_its_own_registry_refers_to_itself():
    registry: Registry[Any] = Registry("trees")

    @registry.register("node")
    def node(left: Annotated[Any, registry] | None = None, size: int = 0) -> Part:
        return Part(left=left)

    schema = exported(registry)
    validator = jsonschema.Draft202012Validator(schema)
    trees = st.recursive(
        st.sampled_from(["node", None, 3, {"type": "node", "size": "x"}]),
        lambda inner: st.builds(lambda left: {"type": "node", "left": left}, inner),
    )

    @given(trees)
    def check(data: Any) -> None:
        assume(data is not None)
        agree(registry, validator, data)

    check()


def test_a_pattern_chooses_what_may_stand_at_the_top():
    schema = encoders.json_schema("big*")
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"type": "big"})
    assert not validator.is_valid({"type": "conv", "width": 1})
    assert set(schema["$defs"]) == {"encoders", "encoders.big@1"}
    with pytest.raises(ConfigurationError):
        encoders.json_schema(3)  # type: ignore[arg-type]
    nothing = encoders.json_schema("nothing*")
    jsonschema.Draft202012Validator.check_schema(nothing)
    assert not jsonschema.Draft202012Validator(nothing).is_valid("big")


def test_two_registries_of_one_name_are_kept_apart():
    other: Registry[Any] = Registry("encoders")
    other.register("flat")(lambda z=0: Part(z=z))
    registry = models(tuple[Encoder, Annotated[Any, other]])
    validator = validator_of(registry)
    for pair in (["flat", "flat"], ["flat", {"type": "flat", "z": 1}], [{"type": "flat", "z": 1}, "flat"]):  # fmt: skip
        agree(registry, validator, {"type": "net", "x": pair})


def test_the_schema_says_what_is_the_default_and_what_is_deprecated():
    registry: Registry[Any] = Registry("models")
    registry.register("old", deprecated="new")(lambda n=3: Part(n=n))
    found = registry.json_schema()["$defs"]["models.old@1"]
    assert found["deprecated"] is True
    assert found["properties"]["n"]["default"] == 3


def test_what_is_resolved_fits_the_schema():
    registry = models(Encoder)
    spec = Spec({"type": "net", "x": {"type": "cnn", "width": 3}}).resolved(registry)
    jsonschema.validate(spec.to_dict(), exported(registry))
