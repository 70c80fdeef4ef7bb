"""What can be a factory, and what each kind of parameter may be given."""

import dataclasses
import functools
from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum, Flag
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Required, TypedDict, Unpack

import jsonschema
import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from mlkit.errors import SpecError
from mlkit.registry import Registry, Spec, spec_of


class Keep:
    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


class Encoder:
    def __init__(self, width: int = 8) -> None:
        self.width = width


class Head:
    def __init__(self, size: int = 1) -> None:
        self.size = size


encoders: Registry[Encoder] = Registry("encoders", Encoder)
heads: Registry[Head] = Registry("heads", Head)
encoders.register("conv")(Encoder)
encoders.register("same")(Encoder)
heads.register("linear")(Head)
heads.register("same")(Head)
kinds: Registry[Any] = Registry("kinds")


def problems(spec: Any, registry: Registry[Any] = kinds) -> list[str]:
    with pytest.raises(SpecError) as caught:
        registry.build(spec)
    return [str(problem) for problem in caught.value.problems]


@kinds.register("data")
@dataclasses.dataclass(kw_only=True)
class Data:
    part: Annotated[Encoder, encoders]
    scale: dataclasses.InitVar[int]
    tags: list[str] = dataclasses.field(default_factory=list)
    hidden: int = dataclasses.field(init=False, default=0)

    def __post_init__(self, scale: int) -> None:
        self.hidden = scale * 2


def test_a_dataclass_with_arguments_that_are_no_fields():
    built = kinds.build({"type": "data", "part": "conv", "scale": 3})
    assert (built.hidden, built.tags) == (6, [])
    assert spec_of(built).to_dict() == {
        "type": "data@1",
        "part": {"type": "conv@1", "width": 8},
        "scale": 3,
        "tags": [],
    }
    assert problems({"type": "data", "part": "conv", "scale": "x", "hidden": 1}) == [
        "scale: expected int, got 'x'",
        "hidden: data@1 has no argument 'hidden'; it has part, scale, tags",
    ]


@kinds.register("model")
class Model(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    part: Annotated[Encoder, encoders]
    rate: float = Field(0.5, gt=0, alias="lr")
    names: list[str] = Field(default_factory=list, validation_alias=AliasChoices("words", "tokens"))
    kind: Literal["a", "b"] = "a"


def test_a_pydantic_model_with_aliases_and_a_nested_part():
    built = kinds.build(
        {"type": "model", "part": {"type": "conv", "width": 2}, "lr": 1, "kind": "b"}
    )
    assert (built.part.width, built.rate, built.kind) == (2, 1.0, "b")
    assert problems({"type": "model", "part": "conv", "lr": -1, "rate": 1})[0].startswith("lr: ")


def test_an_attrs_class():
    attrs = pytest.importorskip("attrs")

    @kinds.register("attrs", replace=True)
    @attrs.define
    class Layer:
        width: int
        part: Annotated[Encoder, encoders] | None = None
        tags: list[str] = attrs.field(factory=list)
        rate: float = attrs.field(default="0.5", converter=float)
        _seed: int = 3
        named: int = attrs.field(default=1, alias="other")
        bias: bool = attrs.field(default=True, kw_only=True)
        made: int = attrs.field(init=False, default=4)
        depth: int = attrs.field(default=1, validator=attrs.validators.gt(0))

    spec = {"type": "attrs", "width": 8, "part": {"type": "conv", "width": 2}, "rate": "1.5"}
    layer = kinds.build({**spec, "seed": 5, "other": 6, "bias": False})
    assert (layer.width, layer.part.width, layer.rate, layer._seed) == (8, 2, 1.5, 5)
    assert (layer.named, layer.bias, layer.made, layer.tags) == (6, False, 4, [])
    assert spec_of(kinds.build({"type": "attrs", "width": 8})).to_dict() == {
        "type": "attrs@1",
        "width": 8,
        "part": None,
        "tags": [],
        "rate": "0.5",
        "seed": 3,
        "other": 1,
        "depth": 1,
        "bias": True,
    }
    wrong = {"width": "8", "tags": [1], "_seed": 5, "made": 1, "bias": 1, "part": "cnv"}
    said = problems({"type": "attrs", **wrong})
    assert [line.partition(":")[0].partition("[")[0] for line in said] == [*wrong]
    assert "did you mean 'seed'" in said[2]
    with pytest.raises(ValueError, match="depth"):  # attrs' own validator, when it is called
        kinds.build({"type": "attrs", "width": 8, "depth": 0})


def test_the_empty_containers_that_fields_begin_with_are_in_the_resolved_spec():
    class Begins(BaseModel):
        names: list[str] = Field(default_factory=list)
        table: dict[str, int] = Field(default_factory=dict, alias="by")
        late: list[int] = Field(default_factory=lambda: [1])

    kinds.register("begins", replace=True)(Begins)
    spec = spec_of(kinds.build("begins")).to_dict()
    assert spec == {"type": "begins@1", "names": [], "by": {}}


@pytest.mark.parametrize(
    ("arguments", "says", "near"),
    [
        ({"act": "rleu"}, "expected 'relu', 'gelu' or 3, got 'rleu'; did you mean 'relu'?", ["relu"]),
        ({"colour": "xyz"}, "expected 'red' or 2, got 'xyz'", []),
        ({"colour": "rde"}, "expected 'red' or 2, got 'rde'; did you mean 'red'?", ["red"]),
        ({"ways": ["up", "dwn"]}, "expected 'up' or 'down', got 'dwn'; did you mean 'down'?", ["down"]),
    ],
)  # fmt: skip
def test_a_word_of_a_closed_list_has_a_nearest_one(arguments, says, near):
    class Colour(Enum):
        RED = "red"
        BLUE = 2

    @kinds.register("closed", replace=True)
    def closed(
        act: Literal["relu", "gelu", 3] = "relu",
        colour: Colour = Colour.RED,
        ways: list[Literal["up", "down"]] = [],
    ) -> Keep:
        return Keep()

    with pytest.raises(SpecError) as caught:
        kinds.build({"type": "closed", **arguments})
    (problem,) = caught.value.problems
    assert (problem.message, list(problem.suggestions)) == (says, near)


def test_a_long_closed_list_does_not_drown_the_answer():
    options = tuple(f"option_{n}" for n in range(1_000))

    @kinds.register("long", replace=True)
    def long(act: Literal[options]) -> Keep:  # type: ignore[valid-type]
        return Keep()

    (said,) = problems({"type": "long", "act": "option_99x"})
    assert len(said) <= 600
    assert said.endswith(
        "got 'option_99x'; did you mean 'option_99' or 'option_999' or 'option_998'?"
    )


class Pair(NamedTuple):
    left: int
    right: Annotated[Encoder, encoders]


class Options(TypedDict, total=False):
    depth: int


kinds.register("pair")(Pair)
kinds.register("options")(Options)


def test_named_tuples_and_typed_dicts():
    built = kinds.build({"type": "pair", "left": 1, "right": "conv"})
    assert type(built) is Pair
    assert built.right.width == 8
    assert kinds.build({"type": "options", "depth": 3}) == {"depth": 3}
    assert kinds.build("options") == {}
    assert problems({"type": "options", "depth": "x"}) == ["depth: expected int, got 'x'"]


class Made:
    @classmethod
    def of(cls, n: int) -> Keep:
        return Keep(n=n, cls=cls)

    @staticmethod
    def plain(n: int, /, m: int = 2, *rest: int, k: int = 4) -> Keep:
        return Keep(values=(n, m, *rest, k))


kinds.register("classmethod")(Made.of)
kinds.register("staticmethod")(Made.plain)
kinds.register("partial")(functools.partial(Made.plain, 1, k=5))


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ({"type": "staticmethod", "n": 1}, (1, 2, 4)),
        ({"type": "staticmethod", "n": 1, "rest": [7, 8]}, (1, 2, 7, 8, 4)),
        ({"type": "staticmethod", "n": 1, "rest": []}, (1, 2, 4)),
        ({"type": "staticmethod", "rest": [7], "k": 0, "m": 3, "n": 1}, (1, 3, 7, 0)),
        ({"type": "partial", "rest": [7]}, (1, 2, 7, 5)),
        ({"type": "partial", "m": 3, "k": 6}, (1, 3, 6)),
    ],
)
def test_arguments_by_position_and_any_number_of_them(spec, values):
    assert kinds.build(spec).values == values
    assert Spec(spec).compile(kinds)().values == values
    assert kinds.build(spec_of(kinds.build(spec))).values == values
    assert kinds.build({"type": "classmethod", "n": 1}).cls is Made


def test_wrong_ones_of_any_number_are_found():
    assert problems({"type": "staticmethod", "n": 1, "rest": [7, "x"]}) == [
        "rest[1]: expected int, got 'x'"
    ]
    assert problems({"type": "staticmethod", "m": 1}) == ["n: staticmethod@1 needs an argument 'n'"]


@kinds.register("chain")
def chain(*parts: Annotated[Encoder, encoders] | int) -> Keep:
    return Keep(parts=parts)


@kinds.register("loose", extra=True)
def loose(width: int = 1, **parts: Annotated[Encoder, encoders] | str) -> Keep:
    return Keep(width=width, parts=parts)


def test_any_number_of_nested_specs():
    built = kinds.build({"type": "chain", "parts": ["conv", 3, {"type": "conv", "width": 4}]})
    assert [getattr(part, "width", part) for part in built.parts] == [8, 3, 4]
    assert spec_of(built).to_dict()["parts"][1] == 3


def test_names_of_ones_own_keep_their_order_and_are_checked():
    spec = {
        "type": "loose",
        "z": "conv",
        "width": 2,
        "a": "text",
        "m": {"type": "conv", "width": 3},
    }
    for built in (kinds.build(spec), kinds.build(Spec(spec)), Spec(spec).compile(kinds)()):
        assert list(built.parts) == ["z", "a", "m"]
        assert (built.parts["z"].width, built.parts["a"], built.parts["m"].width) == (8, "text", 3)
        assert kinds.build(spec_of(built)).parts["a"] == "text"
    assert len(problems({"type": "loose", "z": 3})) == 1


@kinds.register("either")
def either(
    part: Annotated[Encoder, encoders] | Annotated[Head, heads] | None = None,
    word: Annotated[Encoder, encoders] | str = "",
) -> Keep:
    return Keep(part=part, word=word)


def test_one_of_two_registries_by_the_name():
    assert type(kinds.build({"type": "either", "part": "conv"}).part) is Encoder
    assert type(kinds.build({"type": "either", "part": {"type": "linear", "size": 3}}).part) is Head
    live = Head()
    assert kinds.build({"type": "either", "part": live}).part is live
    assert kinds.build({"type": "either", "part": None}).part is None
    assert problems({"type": "either", "part": "same"}) == [
        "part: 'same' is in registries 'encoders' and 'heads'; rename one"
    ]
    assert problems({"type": "either", "part": {"type": "lineer"}}) == [
        "part.type: unknown name 'lineer' in registry 'heads'; did you mean 'linear'?"
    ]
    assert problems({"type": "either", "part": {"type": "linear", "sise": 3}}) == [
        "part.sise: linear@1 has no argument 'sise'; did you mean 'size'?"
    ]
    assert "or a" in problems({"type": "either", "part": 3})[0]


def test_text_is_a_name_where_it_is_one_and_text_where_text_may_be():
    assert kinds.build({"type": "either", "word": "conv"}).word.width == 8
    assert kinds.build({"type": "either", "word": "other"}).word == "other"
    assert problems({"type": "either", "word": {"type": "other"}})[0].startswith(
        "word.type: unknown"
    )


@kinds.register("containers")
def containers(
    both: tuple[Annotated[Encoder, encoders], int] | None = None,
    group: set[Annotated[Encoder, encoders]] = set(),
    frozen: frozenset[Annotated[Encoder, encoders]] = frozenset(),
    deep: dict[str, list[Annotated[Encoder, encoders]]] = {},
) -> Keep:
    return Keep(both=both, group=group, frozen=frozen, deep=deep)


def test_containers_of_nested_specs():
    live = Encoder(5)
    built = kinds.build(
        {
            "type": "containers",
            "both": ["conv", 3],
            "group": ["conv", live],
            "frozen": ["conv"],
            "deep": {"a": ["conv", {"type": "conv", "width": 2}]},
        }
    )
    assert type(built.both) is tuple
    assert (built.both[0].width, built.both[1]) == (8, 3)
    assert live in built.group
    assert type(built.group) is set
    assert type(built.frozen) is frozenset
    assert [part.width for part in built.deep["a"]] == [8, 2]
    whole = {live}
    assert kinds.build({"type": "containers", "group": whole}).group is whole
    assert problems({"type": "containers", "both": ["conv"]}) == [
        "both: expected a list of 2 parts, got ['conv']"
    ]
    first, second = problems({"type": "containers", "both": ["conv", "x"], "deep": {"a": ["nope"]}})
    assert first == "both[1]: expected int, got 'x'"
    assert second.startswith("deep.a[0]: unknown name 'nope' in registry 'encoders'")


def test_what_python_knows_no_signature_of_is_built_without_arguments():
    kinds.register("deque", replace=True)(deque)
    kinds.register("dict", replace=True)(dict)
    assert kinds.build("dict") == {}
    assert "no signature" in problems({"type": "dict", "a": 1})[0]


def test_names_that_only_kwargs_would_take_need_leave():
    kinds.register("swallow", replace=True)(Keep)
    (said,) = problems({"type": "swallow", "widht": 3})
    assert "extra=True" in said
    kinds.register("swallow", extra=True, replace=True)(Keep)
    assert kinds.build({"type": "swallow", "widht": 3}).widht == 3


def test_parts_are_built_in_the_order_of_the_signature_whatever_the_order_of_keys():
    order: list[int] = []
    registry: Registry[Any] = Registry("order")

    @registry.register("part")
    def part(n: int) -> Keep:
        order.append(n)
        return Keep()

    @registry.register("net")
    def net(
        a: Annotated[Any, registry], b: Annotated[Any, registry], c: list[Annotated[Any, registry]]
    ) -> Keep:
        return Keep()

    parts = {key: {"type": "part", "n": n} for n, key in enumerate("ab")}
    backwards = {"c": [{"type": "part", "n": 2}], "b": parts["b"], "type": "net", "a": parts["a"]}
    for build in (lambda: registry.build(backwards), Spec(backwards).compile(registry)):
        order.clear()
        build()
        assert order == [0, 1, 2]


class Handing(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def test_a_metaclass_that_hands_arguments_on_does_not_hide_them():
    class Single(metaclass=Handing):
        def __init__(self, width: int = 1) -> None:
            self.width = width

    class Made(metaclass=Handing):
        width: int

        def __new__(cls, width: int = 1) -> Any:
            made = super().__new__(cls)
            made.width = width
            return made

    for factory in (Single, Made):
        kinds.register("single", replace=True)(factory)
        assert kinds.build({"type": "single", "width": 3}).width == 3
        assert problems({"type": "single", "width": "3"}) == ["width: expected int, got '3'"]
        assert "it has width" in problems({"type": "single", "zzz": 3})[0]


def test_what_a_typed_dict_needs_is_seen_through_annotations_that_are_text():
    class Text(TypedDict):
        needed: "Required[int]"
        other: "NotRequired[str]"

    kinds.register("text", replace=True)(Text)
    assert kinds.build({"type": "text", "needed": 1}) == {"needed": 1}
    assert problems({"type": "text"}) == ["needed: text@1 needs an argument 'needed'"]


def test_what_a_model_inside_needs_is_named():
    class Inner(BaseModel):
        x: int
        y: int = 0

    @kinds.register("inner", replace=True)
    def make(many: list[Inner]) -> Keep:
        return Keep()

    assert problems({"type": "inner", "many": [{"x": 1}, {"y": "2"}]}) == [
        "many[1].x: a value for 'x' is needed",
        "many[1].y: expected int, got '2'",
    ]


def test_a_key_that_does_not_fit_is_what_is_shown():
    @kinds.register("keys", replace=True)
    def make(sizes: dict[Literal["small", "large"], int]) -> Keep:
        return Keep()

    assert problems({"type": "keys", "sizes": {"lrage": 1}}) == [
        "sizes.lrage: expected 'small' or 'large', got 'lrage'; did you mean 'large'?"
    ]


@kinds.register("unset")
class Unset(Keep):
    def __init__(
        self,
        width: int = None,  # noqa: RUF013 - as much code is written
        part: Annotated[Encoder, encoders] = None,
        sizes: "list[int]" = None,  # noqa: RUF013
        act: Literal["relu", "gelu"] = None,  # noqa: RUF013
    ) -> None:
        super().__init__(width=width, part=part, sizes=sizes, act=act)


@kinds.register("unset-model")
class UnsetModel(BaseModel):
    width: int = None  # pydantic refuses the None that it does not check as a default


def test_none_is_taken_where_it_is_the_default_whatever_the_annotation_says():
    left_out = {"type": "unset@1", "width": None, "part": None, "sizes": None, "act": None}
    made = kinds.build("unset")
    assert spec_of(made).to_dict() == left_out
    assert spec_of(kinds.build(left_out)) == spec_of(made)
    jsonschema.validate(left_out, kinds.json_schema("unset"))
    assert problems({"type": "unset", "width": "8", "act": "rleu"}) == [
        "width: expected int, got '8'",
        "act: expected 'relu' or 'gelu', got 'rleu'; did you mean 'relu'?",
    ]


def test_none_is_no_value_for_what_checks_its_own_arguments():
    assert spec_of(kinds.build("unset-model")).to_dict() == {"type": "unset-model@1"}
    assert problems({"type": "unset-model", "width": None}) == ["width: expected int, got None"]


def test_an_iterable_is_checked_as_data_and_handed_on_unread_if_it_is_live():
    @kinds.register("sums", replace=True)
    def make(items: Iterable[int], more: Sequence[int] = ()) -> Keep:
        return Keep(items=items)

    assert problems({"type": "sums", "items": [1, "2"], "more": 3}) == [
        "items[1]: expected int, got '2'",
        "more: expected a list, got 3",
    ]
    for wrong in ("12", {"a": 1}, 3):
        assert problems({"type": "sums", "items": wrong}) == [
            f"items: expected a list, got {wrong!r}"
        ]
    read: list[int] = []
    live = (read.append(n) or n for n in range(3))
    for given in (live, range(3), {1, 2}, [1], (1, 2)):
        assert kinds.build({"type": "sums", "items": given}).items is given
    assert read == []


class Tuning(TypedDict, total=False):
    rate: Required[float]
    steps: int


def test_keywords_that_a_typed_dictionary_names_are_arguments():
    @kinds.register("tuned", replace=True)
    def make(name: str = "a", **tuning: "Unpack[Tuning]") -> Keep:
        return Keep(tuning=tuning)

    made = kinds.build({"type": "tuned", "rate": 1})
    assert made.tuning == {"rate": 1.0}
    assert spec_of(made).to_dict() == {"type": "tuned@1", "name": "a", "rate": 1.0}
    assert problems({"type": "tuned", "rate": "x", "step": 3}) == [
        "rate: expected float, got 'x'",
        "step: tuned@1 has no argument 'step'; did you mean 'steps'?",
    ]
    assert problems({"type": "tuned"}) == ["rate: tuned@1 needs an argument 'rate'"]
    jsonschema.validate({"type": "tuned", "rate": 1.0}, kinds.json_schema("tuned"))


@dataclasses.dataclass
class Decay:
    rate: float
    steps: int = 1


class Step(TypedDict):
    decay: Decay
    size: NotRequired[int]


def stepped(first: Step, span: tuple[int, int] = (0, 1)) -> Keep:
    return Keep(first=first, span=span)


kinds.register("stepped")(stepped)


def test_names_inside_typed_dictionaries_and_dataclasses_are_checked():
    built = kinds.build({"type": "stepped", "first": {"decay": {"rate": 1}}})
    assert built.first == {"decay": Decay(1.0)}
    slips = {"decay": {"rate": "x", "stpes": 2}, "szie": 3}
    assert problems({"type": "stepped", "first": slips, "span": [1]}) == [
        "first.decay.rate: expected float, got 'x'",
        "first.decay.stpes: expected nothing of that name, got 2",
        "first.szie: expected nothing of that name, got 3",
        "span[1]: an item 1 is needed",
    ]
    assert problems({"type": "stepped", "first": {"size": 1}}) == [
        "first.decay: a value for 'decay' is needed"
    ]


class Access(Flag):
    READ = 1
    WRITE = 2


@kinds.register("opened")
def opened(access: Access = Access.READ) -> Keep:
    return Keep(access=access)


def test_members_of_a_flag_are_given_together():
    both = kinds.build({"type": "opened", "access": Access.READ | Access.WRITE})
    assert both.access == Access.READ | Access.WRITE
    assert kinds.build(spec_of(both)).access == both.access
    assert kinds.build({"type": "opened", "access": 0}).access == Access(0)
    assert problems({"type": "opened", "access": True}) == ["access: expected int, got True"]
    assert problems({"type": "opened", "access": 4}) == ["access: expected 1 or 2, got 4"]
