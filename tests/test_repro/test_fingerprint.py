"""Equal if and only if the content is equal; the same everywhere; loud about what it cannot hash."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import socket
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit._digest import digest
from mlkit.errors import ConfigurationError, FingerprintError
from mlkit.repro import fingerprint
from mlkit.testing.strategies import digestible

torch.set_num_threads(1)


@dataclass(frozen=True)
class Point:
    x: Any
    y: Any


base = np.arange(6, dtype="<f4").reshape(2, 3)
nan = float("nan")
other_nan = np.array([0x7FC00001], dtype="<u4").view("<f4")

SAME = [
    (base, base.copy(order="F")),
    (base, np.concatenate([base, base])[:2]),
    (base, base.astype(">f4")),
    (base.T, np.ascontiguousarray(base.T)),
    (np.array([nan], "f4"), other_nan),
    (np.int64(3), 3),
    (np.float64(0.5), 0.5),
    ([1, 2], (1, 2)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({"a": 1}, OrderedDict(a=1)),
    ({"a": 1}, MappingProxyType({"a": 1})),
    ({1, 2, 3}, frozenset([3, 2, 1])),
    (b"x", bytearray(b"x")),
    (np.array(["a", "b"]), np.array(["a", "b"], dtype="U9")),
    (torch.ones(2, 3), torch.ones(3, 2).t()),
    (torch.ones(2, 3), torch.ones(2, 3, requires_grad=True)),
    (torch.ones(2), torch.nn.Parameter(torch.ones(2))),
    (torch.tensor([nan]), torch.from_numpy(other_nan)),
    ({"w": torch.ones(2)}, OrderedDict(w=torch.ones(4)[::2])),
    (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j])),
    (torch.tensor([125, 1, 255], dtype=torch.uint8).view(torch.float8_e5m2), torch.tensor([nan, 2**-16, nan]).to(torch.float8_e5m2)),
    (Point(1, [2]), Point(1, (2,))),
]  # fmt: skip

DIFFERENT = [
    None, True, 1, 1.0, "1", b"1", 0, 0.0, -0.0, False, nan, float("inf"), 1j, [], {}, set(), "", b"",
    [1], [[1]], [1, 2], [2, 1], {1}, {"a": 1}, {"a": [1]}, {1: "a"}, {"1": "a"}, "é", "e\u0301",
    dt.date(2026, 1, 2), dt.datetime(2026, 1, 2), dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    base, base.T, base.reshape(-1), base.astype("f8"), base.astype("f2"), base.astype("i4"), base.astype("i8"),
    base > 0, -base, base[::-1].copy(), np.zeros((0, 2)), np.zeros((2, 0)), np.zeros(()), np.array([-0.0]), np.array([0.0]),
    torch.ones(2, 3), torch.ones(6), torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.bfloat16),
    torch.ones(2, 3, dtype=torch.float16), torch.ones(2, 3, dtype=torch.int32), torch.ones(2, 3, dtype=torch.bool),
    torch.zeros(2, 3), -torch.zeros(2, 3), torch.zeros(0), torch.zeros(0, 2), torch.tensor(1.0), torch.tensor(1),
    {"w": torch.ones(2)}, {"w": torch.zeros(2)}, [torch.ones(2)], {"v": torch.ones(2)}, Point(1, 2), Point(2, 1),
    Point(torch.ones(1), 2), PurePosixPath("a"), {"dtype": "float32"},
    torch.ones(2).to(torch.float8_e4m3fn), torch.zeros(2).to(torch.float8_e4m3fn), torch.ones(2).to(torch.float8_e5m2),
    torch.ones(2).to(torch.float8_e8m0fnu), torch.tensor([1.0, nan]).to(torch.float8_e8m0fnu), torch.tensor([1, nan]).to(torch.float8_e4m3fnuz),
    torch.ones(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
]  # fmt: skip


@pytest.mark.parametrize("pair", range(len(SAME)))
def test_equal_content(pair):
    one, other = SAME[pair]
    assert fingerprint(one) == fingerprint(other)


def test_different_content():
    assert len(DIFFERENT) >= 65
    seen: dict[str, int] = {}
    for position, value in enumerate(DIFFERENT):
        clash = seen.setdefault(fingerprint(value), position)
        assert clash == position, (DIFFERENT[clash], value)


@given(digestible())
def test_plain_values_have_their_digest(value):
    assert fingerprint(value) == digest(value)


@given(digestible(), digestible())
@settings(max_examples=50)
def test_blake3_tells_apart_what_sha256_does(one, other):
    same = fingerprint(one) == fingerprint(other)
    found = fingerprint(one, algorithm="blake3")
    assert found.startswith("blake3:")
    assert (found == fingerprint(other, algorithm="blake3")) is same


def test_blake3_of_the_table():
    for one, other in SAME:
        assert fingerprint(one, algorithm="blake3") == fingerprint(other, algorithm="blake3")
    assert len({fingerprint(value, algorithm="blake3") for value in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "i4"])
def test_where_the_pieces_end_does_not_count(dtype, monkeypatch):
    import mlkit.repro._fingerprint as module

    array = np.arange(1001).astype(dtype)
    if dtype != "i4":
        array[[0, 500, 1000]] = nan
    for value in (array, torch.from_numpy(array)):
        whole = fingerprint(value, algorithm="blake3"), fingerprint(value)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_PIECE", 64)
            assert (fingerprint(value, algorithm="blake3"), fingerprint(value)) == whole


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(ConfigurationError, match="blake3"):
        fingerprint(1, algorithm="blake")


def test_frozen_fingerprints():
    assert (
        fingerprint(torch.arange(3))
        == "sha256:70f33161ed20ad01655b4b6a183c23a414a33c74f25e9b2b871bc4492ead29f1"
    )
    assert (
        fingerprint({"w": torch.ones(2, dtype=torch.bfloat16)})
        == "sha256:93cf51505b78ecce7a61a985f643c47b178712d975c2f650eb43ca38b7496004"
    )


def test_it_is_the_same_for_any_hash_seed():
    code = (
        "from mlkit.repro import fingerprint; print(fingerprint({'b': {'x', 'y', 'z'}, 'a': None}))"
    )
    expected = fingerprint({"a": None, "b": {"z", "y", "x"}})
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == expected


@dataclass
class Unfinished:
    x: int
    y: int = field(init=False)


def unhashable():
    from torch._subclasses import FakeTensorMode

    cycle: list[Any] = []
    cycle.append(cycle)
    with FakeTensorMode():
        fake = torch.ones(2)
    return [
        Unfinished(1), fake, torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), Path("a\0b"),
        {(Path("x"), 1)}, {frozenset({Path("x")})},
        object(), lambda: None, Point, sys, iter([1]), np.array([object()]), np.zeros(2, dtype=[("a", "f4")]),
        torch.ones(2).to_sparse(), torch.ones(2, device="meta"), torch.nn.Linear(2, 2), cycle,
        {"deep": [{"x": object()}]}, {Path("x")}, torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_what_cannot_be_hashed_is_refused():
    for value in unhashable():
        with pytest.raises(FingerprintError):
            fingerprint(value)
    with pytest.raises(FingerprintError, match=r"\$\[deep\]\[0\]\[x\]") as caught:
        fingerprint({"deep": [{"x": object()}]})
    assert caught.value.path == "$[deep][0][x]"
    with pytest.raises(FingerprintError, match="cannot be read"):
        torch.vmap(fingerprint)(torch.ones(2, 3))


def test_a_file_has_the_digest_that_sha256sum_prints(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(b"some bytes")
    assert fingerprint(path) == "sha256:" + hashlib.sha256(b"some bytes").hexdigest()
    assert fingerprint(str(path)) == digest(str(path))  # a text is a text
    assert fingerprint([path]) != fingerprint([str(path)])
    link = tmp_path / "link"
    link.symlink_to(path)
    assert fingerprint(link) == fingerprint(path)
    before = fingerprint({"train": path})
    path.write_bytes(b"some bytez")
    assert fingerprint({"train": path}) != before
    assert fingerprint(Point(path, 1)) != before


TREES = st.dictionaries(
    st.from_regex(r"[a-c]{1,2}(/[a-c]{1,2}){0,2}\.t", fullmatch=True),
    st.binary(max_size=4),
    max_size=5,
)


def write(folder, tree):
    folder.mkdir()
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@given(TREES, TREES)
@settings(max_examples=30)
def test_folders_are_equal_if_their_content_is(tmp_path_factory, first, second):
    place = tmp_path_factory.mktemp("trees")
    one = write(place / "one", first)
    other = write(place / "other", dict(reversed(list(second.items()))))
    assert (fingerprint(one) == fingerprint(other)) is (first == second)


def test_what_counts_in_a_folder(tmp_path):
    folder = write(tmp_path / "folder", {"a": b"1", "b": b"2", "sub/c": b"3"})
    seen = {fingerprint(folder)}

    def changed():
        now = fingerprint(folder)
        assert now not in seen
        seen.add(now)

    original = fingerprint(folder)
    (folder / "a").rename(folder / "z")  # a new name
    changed()
    (
        (folder / "z").rename(folder / "t"),
        (folder / "b").rename(folder / "z"),
        (folder / "t").rename(folder / "b"),
    )
    changed()  # swapped
    (folder / "sub/c").rename(folder / "c")  # moved; an empty folder stays
    changed()
    (folder / "sub").rmdir()
    changed()
    (folder / "c").chmod(0o755)
    changed()
    (folder / "link").symlink_to("c")
    changed()
    (folder / "link").unlink(), (folder / "link").symlink_to("nowhere")
    changed()
    (folder / "link").unlink(), (folder / "link").symlink_to(".")  # a loop is not followed
    changed()
    status = (folder / "b").stat()
    (folder / "b").write_bytes(b"9")  # same size, same time
    os.utime(folder / "b", ns=(status.st_atime_ns, status.st_mtime_ns))
    changed()
    assert fingerprint(write(tmp_path / "copy", {"a": b"1", "b": b"2", "sub/c": b"3"})) == original


def test_what_does_not_count_in_a_folder(tmp_path):
    folder = write(tmp_path / "folder", {"a": b"1"})
    before = fingerprint(folder)
    os.utime(folder / "a", (1, 1))
    (folder / "a").chmod(0o600)
    assert fingerprint(folder.rename(tmp_path / "renamed")) == before


def test_unreadable_things(tmp_path, monkeypatch):
    with pytest.raises(FingerprintError, match="cannot be read"):
        fingerprint(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FingerprintError, match="neither"):
        fingerprint(tmp_path / "pipe")
    with pytest.raises(FingerprintError, match="pipe"):
        fingerprint(tmp_path)
    (tmp_path / "pipe").unlink()
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(FingerprintError, match="socket"):
            fingerprint(tmp_path)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    import mlkit.repro._hashing as module

    path = tmp_path / "log"
    path.write_bytes(b"one")
    read = module._pieces

    def reading(file):
        yield from read(file)
        with path.open("ab") as log:
            log.write(b"two")

    monkeypatch.setattr(module, "_pieces", reading)
    with pytest.raises(FingerprintError, match="changed while"):
        fingerprint(path)
