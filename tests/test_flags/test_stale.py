"""Flags that have had their day, by the file, its metadata and the code."""

from __future__ import annotations

import os
import textwrap
from datetime import date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError
from mlkit.flags import Flags, find_stale
from mlkit.testing import virtual_time

SPLIT = {"fractional": [["a", 1], ["b", 1]]}


def made(rule=SPLIT, *, key="f", **more):
    flag = {"state": "ENABLED", "variants": {"a": 1, "b": 2}, "defaultVariant": "b", **more}
    if rule is not None:
        flag["targeting"] = rule
    return Flags.from_dict({"flags": {key: flag}})


def kinds(flags, **more):
    return [(one.key, one.kind) for one in find_stale(flags, **more)]


@pytest.mark.parametrize(
    ("expires", "found"),
    [
        ("2026-03-01", ["expired"]),
        ("2026-03-02", []),  # on its last day it has not expired
        ("2026-03-03", []),
        ("2026-03-01T23:59:59Z", ["expired"]),
        ("2026-03-01T23:59:59-05:00", []),  # which is the 2nd in UTC
        ("20260301", ["expired"]),
        ("soon", ["invalid"]),
        (20260301, ["invalid"]),
        (True, ["invalid"]),
    ],
)
def test_expires(expires, found):
    flags = made(metadata={"expires": expires, "owner": "ann"})
    told = find_stale(flags, today=date(2026, 3, 2))
    assert [one.kind for one in told] == found
    assert all(one.owner == "ann" and one.place == "/flags/f/metadata/expires" for one in told)


def test_today_is_the_clocks():
    flags = made(metadata={"expires": "2026-03-01"})
    for moment, found in ((1772409600 - 1, []), (1772409600, [("f", "expired")])):
        with virtual_time() as clock:
            clock.advance(moment - clock.time())
            assert kinds(flags) == found  # 2026-03-02 00:00 UTC
    assert kinds(flags, today=datetime(2026, 3, 2, 12, 0)) == [("f", "expired")]


@pytest.mark.parametrize(
    ("rule", "constant"),
    [
        (None, True),
        (SPLIT, False),
        ({"fractional": [["a", 100], ["b", 0]]}, True),
        ({"fractional": [["a", 0], ["b", 0]]}, True),  # nobody is bucketed: all have the default
        ({"if": [{"var": "x"}, "a", "a"]}, True),
        ({"if": [{"var": "x"}, "b"]}, True),  # else the default, which is the same
        ({"if": [{"var": "x"}, "a"]}, False),
        ({"if": [False, "a", "b"]}, True),
        ({"if": [True, "a", "b"]}, True),
        ({"if": [{"var": "x"}, "gone"]}, False),  # the default in the code, or b
        ({"var": "x"}, False),
        ({"or": [{"if": [{"var": "x"}, "b"]}, {"fractional": [["b", 1]]}]}, True),
        ({"rollout": [1000, 2000, "a", "b"]}, True),  # long over
        ({"rollout": [1000, 4102444800, "a", "b"]}, False),
    ],
)
def test_constant(rule, constant):
    flags = made(rule)
    assert not flags.problems or all(one.severity == "warning" for one in flags.problems)
    assert kinds(flags, today=date(2026, 1, 1)) == ([("f", "constant")] if constant else [])


@given(
    weights=st.lists(st.integers(0, 3), min_size=2, max_size=2),
    gate=st.sampled_from([True, False, None, {"var": "x"}, {"==": [{"var": "x"}, 1]}]),
    other=st.sampled_from(["a", "b", None, "gone"]),
)
def test_what_is_called_constant_is(weights, gate, other):
    split = {"fractional": [[name, weight] for name, weight in zip("ab", weights, strict=True)]}
    flags = made({"if": [gate, split, other]})
    if kinds(flags) == [("f", "constant")]:
        flag = flags.int("f", default=0)
        seen = {flag.details(f"u{i}", x=x).variant for i in range(20) for x in (None, 0, 1, "a")}
        assert len(seen) == 1


def test_a_finished_rollout_is_constant_and_a_running_one_not():
    flag = {"state": "ENABLED", "variants": {"v1": "1", "v2": "2"}, "defaultVariant": "v1"}
    flags = Flags.from_dict({"flags": {"f": flag}})
    rollout = flags.model("f", default="v1").rollout("v2", steps=[0.5, 1.0])
    rollout.advance()
    assert kinds(flags) == []
    rollout.advance()
    assert kinds(flags) == [("f", "constant")]


def test_disabled_and_permanent():
    assert kinds(made(state="DISABLED")) == [("f", "disabled")]
    assert kinds(made(state="DISABLED", metadata={"permanent": True})) == []
    assert kinds(made(None, metadata={"permanent": True})) == []


def code(folder, text, name="app.py"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.parametrize(
    "text",
    [
        'F = flags.bool("f", default=False)',
        'F = self.flags.model(key="f", default="v1")',
        'KEY = "f"\nF = flags.int(KEY, default=1)',
        'client.get_boolean_value("f", False)',
        'table = {"f": 1}',
        'flags.bool(f"{prefix}f", default=False)',
    ],
)
def test_code_that_names_it(tmp_path, text):
    code(tmp_path, text)
    assert kinds(made(), code=[tmp_path]) == []
    assert kinds(made(key="other"), code=[tmp_path])[0][1] in {"missing", "unreferenced"}


def test_code_that_does_not(tmp_path):
    code(tmp_path, 'x = "ff"; flags.str(f"{a}{b}", default="")  # "f"\n')
    code(tmp_path, 'x = "f"', name=".hidden/app.py")
    code(tmp_path, 'x = "f"', name="env/lib/app.py")
    (tmp_path / "env" / "pyvenv.cfg").touch()
    assert kinds(made(), code=[tmp_path]) == [("f", "unreferenced")]


def test_asked_for_and_not_there(tmp_path):
    path = code(
        tmp_path,
        """
        NAME: str = "gone"
        F = flags.bool("new-tokenizer", default=False)
        G = flags.float(NAME, default=1.0)
        value = await client.get_object_details_async("lost", {})
        text = "nothing".str("default")
        label = frame.str("plain")  # no default: no handle
        """,
    )
    found = find_stale(made(key="new-tokeniser"), code=[path])
    told = [(one.key, one.place, one.line) for one in found if one.kind == "missing"]
    assert told == [
        ("gone", str(path), 4),
        ("lost", str(path), 5),
        ("new-tokenizer", str(path), 3),
    ]
    assert "did you mean 'new-tokeniser'?" in next(
        one.message for one in found if one.key == "new-tokenizer"
    )


def test_a_flag_that_cannot_be_read_is_not_missing(tmp_path):
    path = code(tmp_path, 'F = flags.bool("f", default=False)')
    assert kinds(Flags.from_dict({"flags": {"f": {"state": "ON"}}}), code=[path]) == []


def test_what_is_no_python_is_told(tmp_path):
    path = code(tmp_path, "def f(:")
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(tmp_path / "pipe.py")  # nobody writes into it, and nobody waits for that
    code(tmp_path, 'x = "f"', name="good.py")
    found = find_stale(made(), code=[tmp_path])
    assert sorted((one.kind, one.place) for one in found) == [
        ("invalid", str(path)),
        ("invalid", str(tmp_path / "bytes.py")),
        ("invalid", str(tmp_path / "pipe.py")),
    ]


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ConfigurationError, match="code"):
        find_stale(made(), code=[tmp_path / "absent"])
    with pytest.raises(ConfigurationError, match="today"):
        find_stale(made(), today="2026-01-01")
    with pytest.raises(ConfigurationError, match="flags"):
        find_stale({})
