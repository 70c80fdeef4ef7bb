"""JSON variants as pydantic models: typed, validated, everybody's own."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, field_validator
from typing_extensions import TypedDict

from mlkit.errors import ConfigurationError, FlagTypeError
from mlkit.flags import Flags


class Search(BaseModel):
    top_k: int = 10
    fields: list[str] = []
    since: date | None = None


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    top_k: int = 10
    names: tuple[str, ...] = ()


class Halfway(BaseModel):
    model_config = ConfigDict(frozen=True)
    names: list[str] = []


@dataclass
class Plain:
    top_k: int = 10
    names: list[str] = field(default_factory=list)


class Typed(TypedDict):
    top_k: int


class Angry(BaseModel):
    top_k: int

    @field_validator("top_k")
    @classmethod
    def _refuse(cls, value: int) -> int:
        if value > 5:
            raise RuntimeError("out of order")
        return value


def document(**variants):
    flag = {"state": "ENABLED", "variants": variants, "defaultVariant": next(iter(variants)),
            "targeting": {"if": [{"var": "pick"}, {"var": "pick"}]}}  # fmt: skip
    return {"flags": {"search": flag}}


def test_a_variant_is_an_object_of_the_model():
    flags = Flags.from_dict(document(a={"top_k": 50, "since": "2026-03-01"}, b={}))
    flag = flags.json("search", default=Search(top_k=1), schema=Search)
    assert flag("u") == Search(top_k=50, since=date(2026, 3, 1))
    details = flag.details("u", pick="b")
    assert (details.value, details.variant, details.reason) == (Search(), "b", "TARGETING_MATCH")
    assert flag("u", pick="zzz") == Search(top_k=1)
    assert [one.value.top_k for one in flag.assign(["u", "v"], pick=["a", "b"])] == [50, 10]


@pytest.mark.parametrize(
    ("default", "schema", "change"),
    [
        (Search(fields=["x"]), Search, lambda one: one.fields.append("y")),
        (Halfway(names=["x"]), Halfway, lambda one: one.names.append("y")),
        (Plain(names=["x"]), Plain, lambda one: one.names.append("y")),
        (Typed(top_k=3), Typed, lambda one: one.update(top_k=4)),
    ],
)
def test_nobody_can_change_anybody_elses(default, schema, change):
    flags = Flags.from_dict(document(a={"top_k": 3, "names": ["a"], "fields": ["a"]}))
    flag = flags.json("search", default=default, schema=schema)
    before = repr(flag("u"))
    change(default)
    for make in (
        lambda: flag("u"),
        lambda: flag.details("u").value,
        lambda: flag.assign(["u"])[0].value,
        lambda: flag.assign(["u"] * 30, pick=["a"] * 30).values[0],
    ):
        change(make())
        assert repr(flag("u")) == before
    absent = Flags.in_memory().json("search", default=default, schema=schema)
    before = repr(absent("u"))
    change(default)
    change(absent("u"))
    assert repr(absent("u")) == before


def test_what_cannot_be_changed_is_not_copied():
    flags = Flags.from_dict(document(a={"top_k": 3, "names": ["a"]}))
    flag = flags.json("search", default=Frozen(), schema=Frozen)
    assert flag("u") is flag("v")
    assert flag("u").names == ("a",)


def test_a_handle_refuses_a_file_that_does_not_fit():
    flags = Flags.from_dict(document(a={"top_k": "many"}))
    with pytest.raises(FlagTypeError, match=r"no Search: top_k: .*valid integer"):
        flags.json("search", default=Search(), schema=Search)


def test_a_reload_that_does_not_fit_is_told_with_its_place(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(document(a={"fields": []}, b={})))
    flags = Flags.from_file(path)
    flag = flags.json("search", default=Search(top_k=1), schema=Search)
    assert flags.problems == ()
    path.write_text(json.dumps(document(a={"fields": ["x", 7], "top_k": []}, b={}), indent=1))
    assert flags.reload() is not None
    details = flag.details("u")
    assert (details.value, details.reason, details.error) == (Search(top_k=1), "ERROR", "TYPE_MISMATCH")  # fmt: skip
    assert flag("u", pick="b") == Search()  # one bad variant is one bad variant
    (problem,) = flags.problems
    assert (problem.flag, problem.severity) == ("search", "error")
    lines = path.read_text().splitlines()
    assert problem.pointer in {
        "/flags/search/variants/a/top_k",
        "/flags/search/variants/a/fields/1",
    }
    assert ('"top_k"' if problem.pointer.endswith("top_k") else "7") in lines[problem.line - 1]
    assert "and 1 more" in problem.message
    assert "many" not in problem.message


def test_other_handles_tell_too():
    flags = Flags.in_memory({"n": 3})
    flags.int("n", default=1, le=5)
    flags.replace({"flags": {"n": {"state": "ENABLED", "variants": {"x": 9}, "defaultVariant": "x"}}})  # fmt: skip
    (problem,) = flags.problems
    assert problem.pointer == "/flags/n/variants/x"
    assert "9 is not within" in problem.message


def test_what_a_validator_raises_harms_nobody():
    flags = Flags.in_memory()
    flag = flags.json("search", default=Angry(top_k=1), schema=Angry)
    flags.replace(document(a={"top_k": 9}, b={"top_k": 2}))
    assert flag.details("u").error == "TYPE_MISMATCH"
    assert flag("u", pick="b") == Angry(top_k=2)
    assert "RuntimeError" in flags.problems[0].message


def test_overrides_are_checked():
    flags = Flags.from_dict(document(a={"top_k": 3}))
    flag = flags.json("search", default=Search(), schema=Search)
    with flags.override({"search": Search(top_k=7)}):
        assert flag("u").top_k == 7
    with flags.override({"search": {"top_k": 8}}):
        assert flag("u").top_k == 8
    with pytest.raises(ConfigurationError), flags.override({"search": {"top_k": []}}):
        pass


@pytest.mark.parametrize("schema", [dict, list, int, None.__class__, "Search", Search(), 3])
def test_schemas_are_checked(schema):
    with pytest.raises(ConfigurationError, match=r"Flags.json\(schema"):
        Flags.in_memory().json("search", default={}, schema=schema)


def test_defaults_are_checked():
    with pytest.raises(ConfigurationError, match="Search"):
        Flags.in_memory().json("search", default=7, schema=Search)


def test_it_pickles():
    flag = Flags.from_dict(document(a={"top_k": 3})).json("search", default=Search(), schema=Search)
    assert pickle.loads(pickle.dumps(flag))("u") == flag("u")


@given(top_k=st.integers(-(2**40), 2**40), fields=st.lists(st.text(max_size=5), max_size=3))
def test_what_the_model_writes_it_reads(top_k, fields):
    given_ = Search(top_k=top_k, fields=fields)
    flags = Flags.from_dict(document(a=json.loads(given_.model_dump_json())))
    assert flags.json("search", default=Search(), schema=Search)("u") == given_
