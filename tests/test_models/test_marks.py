"""A long history opened at its last mark is the history that its lines tell, and no byte of it is taken on trust."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import IntegrityError, ModelStoreError
from mlkit.models import ModelStore, _log
from mlkit.models._folder import Folder
from mlkit.models._log import Log
from mlkit.models._state import Folding, State

SAVED = {
    "kind": "saved", "format": "bytes", "n_bytes": 1, "run": None, "metrics": {"a": "0.5"}, "tags": {},
    "payload": "sha256:" + "b" * 64, "who": "x", "time": 0.0, "why": "",
}  # fmt: skip


def event(state, choice, alias):
    """Return an event that can happen now, as the first of what *choice* may mean."""
    live = list(state.saved)
    free = [number for number in live if number not in state.aliases().values()]
    base = {"who": "x", "time": 0.0, "why": ""}
    last = state.last + 1
    digest = f"sha256:{last:064x}"
    saved = SAVED | {"version": last, "digest": digest}
    if not live or choice == "saved":
        return saved
    if choice == "imported":
        return saved | {
            "kind": "imported",
            "version": last + 3,
            "origin": {"time": 1.0, "who": "y"},
        }
    if choice == "signed":
        return base | {"kind": "signed", "version": live[-1], "bundle": digest}
    if choice == "deleted" and free:
        return base | {"kind": "deleted", "version": free[0]}
    held = state.holders.get(alias, ())
    if choice == "rolled_back" and len(held) > 1:
        return base | {"kind": choice, "version": held[-2], "alias": alias, "previous": held[-1]}
    if choice == "alias_removed" and held:
        return base | {"kind": choice, "version": held[-1], "alias": alias, "previous": held[-1]}
    return base | {
        "kind": "promoted",
        "version": live[0],
        "alias": alias,
        "evidence": {"c": "passed"},
    }


KINDS = ["saved", "imported", "signed", "deleted", "promoted", "rolled_back", "alias_removed"]
CHOICES = st.tuples(st.sampled_from(KINDS), st.sampled_from(["champion", "challenger"]))


def said(state):
    versions = {number: state.facts(number) for number in state.versions}
    signatures = {number: state.signatures(number) for number in versions}
    return state.to_mark(), versions, signatures, state.changes, state.aliases()


def slow(path):
    """Return what the lines add up to one by one, with no regard to any mark."""
    folding = Folding(State(b"", 0, ""))
    begin, total = 0, ""
    data = path.read_bytes()
    for line in data.splitlines(keepends=True):
        parsed = json.loads(line)
        if "event" in parsed:
            total = parsed["sum"]
            folding.add(begin, parsed["event"])
        begin += len(line)
    return folding.done(data, total)


@settings(max_examples=15)
@given(choices=st.lists(CHOICES, min_size=60, max_size=90))
def test_a_mark_says_what_the_lines_before_it_say(tmp_path_factory, choices):
    root = tmp_path_factory.mktemp("marks")
    Path(root, "models").mkdir()
    log = Log(Folder(str(root)), "m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        state = log.read_locked()
        for choice in choices:
            state = log.append(state, event(state, *choice))
    path = root / "models" / "m.jsonl"
    assert b'\n{"mark":' in path.read_bytes()
    assert said(state) == said(slow(path)) == said(Log(Folder(str(root)), "m").read())


@pytest.fixture
def long(tmp_path, monkeypatch):
    """A store whose history has a few lines beyond its last mark."""
    monkeypatch.setattr(_log, "_MARK_AFTER", 8)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    store = ModelStore(tmp_path)
    for number in range(20):
        store.save("m", b"%d" % number, tags={"mark": '{"mark":"' + "0" * 64}, why='\n{"mark":"')
    store.promote("m", 3)
    store.promote("m", 7)
    return store


def log_of(store):
    return Path(store.path, "models", "m.jsonl")


def test_every_flipped_byte_of_a_marked_history_is_found(long):
    path = log_of(long)
    content = path.read_bytes()
    marks = content.count(b'\n{"mark":')
    assert marks >= 2
    assert ModelStore(long.path).aliases("m") == {"champion": 7}
    last = content.rfind(b'\n{"mark":')
    # Each of the bytes around the last mark, and some of all others.
    offsets = {*range(0, len(content), 211), *range(last - 80, last + 200, 2)}
    for offset in sorted(offsets):
        flipped = bytearray(content)
        flipped[offset] ^= 0x01
        path.write_bytes(flipped)
        with pytest.raises(IntegrityError) as caught:
            ModelStore(long.path).aliases("m")
        number = content.count(b"\n", 0, offset) + 1
        assert caught.value.path.startswith(str(path))
        if content[offset] != 0x0A and content[offset + 1] != 0x0A:
            assert f"line {number}" in caught.value.path


def test_a_mark_of_something_else_is_no_mark(long):
    from hashlib import sha256

    path = log_of(long)
    content = path.read_bytes()
    begin = content.rfind(b'\n{"mark":') + 1
    end = content.index(b"\n", begin)
    state = json.loads(content[begin:end])["state"]
    body = lambda changed: json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()

    def forged(said):
        text = body(said)
        total = sha256(content[:begin] + text).hexdigest().encode()
        return content[:begin] + b'{"mark":"' + total + b'","state":' + text + b"}\n"

    path.write_bytes(forged(state))
    assert len(ModelStore(long.path).versions("m")) >= 16, (
        "forging works, so the rest means something"
    )
    for said in (
        state | {"sum": "0" * 64},
        state | {"changes": 1},
        {key: value for key, value in state.items() if key != "holders"},
        state | {"steps": state["steps"][1:]},
        state | {"runs": [[1, 10**12]]},
        [],
    ):
        path.write_bytes(forged(said) + content[end + 1 :])
        with pytest.raises(IntegrityError):
            [ModelStore(long.path).load(v) for v in ModelStore(long.path).versions("m")]
    for lines in (
        content[:begin] + content[begin : end + 1] * 2,  # twice
        content[begin : end + 1] + content,  # at the beginning
        content[end + 1 :],  # without what was before it
    ):
        path.write_bytes(lines)
        with pytest.raises(IntegrityError):
            ModelStore(long.path).aliases("m")


def test_a_torn_mark_is_as_if_it_had_not_begun(long):
    path = log_of(long)
    content = path.read_bytes()
    begin = content.rfind(b'\n{"mark":') + 1
    end = content.index(b"\n", begin)
    expected = None
    for cut in range(begin, end + 1, 7):
        path.write_bytes(content[:cut])
        store = ModelStore(long.path)
        expected = expected or store.aliases("m")
        assert store.aliases("m") == expected
    path.write_bytes(content[: end - 3])
    store = ModelStore(long.path)
    store.promote("m", 1)
    assert ModelStore(long.path).aliases("m") == {"champion": 1}
    assert ModelStore(long.path).history("m") == store.history("m")


def test_a_history_is_never_longer_than_what_is_read(tmp_path, monkeypatch):
    store = ModelStore(tmp_path)
    store.save("m", b"1")
    store.promote("m", 1)
    size = log_of(store).stat().st_size
    monkeypatch.setattr(_log, "_MAX_LOG", size + 300)
    n_files = len(list(tmp_path.rglob("*")))
    store.promote("m", 1, to="challenger")
    with pytest.raises(ModelStoreError, match=r"history of 'm' is full.*another name"):
        store.promote("m", 1, to="third")
    assert log_of(store).stat().st_size <= size + 300
    with pytest.raises(ModelStoreError, match="full"):
        store.save("m", b"2")
    assert ModelStore(tmp_path).load("m@champion") == b"1", "and all that was is still read"
    assert store.collect_garbage(older_than=0).n_bytes > 0
    assert len(list(tmp_path.rglob("*/*/*/*"))) <= n_files
    assert store.save("n", b"2").number == 1
