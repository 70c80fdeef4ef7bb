"""The laws of a sink hold for ours, and the suite bites when one is broken."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlkit.errors import ConfigurationError, SinkRejectedError
from mlkit.testing._sinks import SinkContract, StoredRun
from mlkit.tracking import JsonlSink, TensorboardSink, start_run, sync


def stored_lines(folder: Path, run) -> StoredRun:
    params, tags, artifacts, metrics, status = {}, {}, {}, [], ""
    for text in (folder / f"{run.id}.jsonl").read_text().splitlines():
        line = json.loads(text)
        key, value = line["key"], line["value"]
        match line["kind"]:
            case "metric":
                metrics.append((key, line["step"], float(value)))
            case "param":
                params.setdefault(key, value)
            case "tag":
                tags[key] = value
            case "artifact":
                artifacts[key] = value
            case "status":
                status = value
    return StoredRun(metrics, params, tags, artifacts, status)


class TestJsonl(SinkContract):
    def make_sink(self, place):
        return JsonlSink(place / "out")

    def stored(self, place, run):
        return stored_lines(place / "out", run)


def fields(message: bytes) -> list[tuple[int, object]]:
    """Read protobuf's wire format: number and content of each field, in order."""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    at, found = 0, []
    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            found.append((number, varint()))
        elif kind == 1:
            found.append((number, message[at : at + 8]))
            at += 8
        else:
            length = varint()
            found.append((number, message[at : at + length]))
            at += length
    return found


def events(folder: Path) -> list[dict[int, object]]:
    """Read TFRecords without looking at their checksums."""
    found = []
    for path in folder.iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(dict(fields(data[at + 12 : at + 12 + length])))
            at += length + 16
    return found


class TestTensorboard(SinkContract):
    def make_sink(self, place):
        return TensorboardSink(place / "out")

    def stored(self, place, run):
        params, tags, artifacts, metrics, status = {}, {}, {}, [], ""
        for event in events(place / "out" / run.id)[1:]:
            value = dict(fields(dict(fields(event[5]))[1]))
            tensor = dict(fields(value[8]))
            tag = value[1].decode()
            plugin = dict(fields(dict(fields(value[9]))[1]))[1]
            if 6 in tensor:  # double_val
                (number,) = struct.unpack("<d", tensor[6])
                if tensor[1] == 1:  # DT_FLOAT
                    assert plugin == b"scalars"
                    assert tensor[4] == np.float32(number).tobytes()
                else:
                    assert float(tensor[8]) == number
                key = tag.removeprefix("mlkit/metrics/").removeprefix("mlkit/beyond-float32/")
                metrics.append((key, event[2] - (1 << 64 if event[2] >> 63 else 0), number))
                continue
            assert plugin == b"text"
            text = tensor[8].decode()
            _, kind, *rest = tag.split("/", 2)
            if kind == "status":
                status = text
            elif kind == "params":
                params.setdefault(rest[0], text)
            else:
                {"tags": tags, "artifacts": artifacts}[kind][rest[0]] = text
        return StoredRun(metrics, params, tags, artifacts, status)


def test_a_checksum_is_that_of_the_format():
    """The vector of RFC 3720, B.4: 32 bytes of zeros have CRC-32C 0x8a9136aa; masked as TFRecord says."""
    from mlkit.tracking._tensorboard import _masked

    crc = 0x8A9136AA
    assert _masked(bytes(32)) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_an_event_file_cut_anywhere_is_completed(tmp_path):
    with start_run("x", root=tmp_path / "r", sinks=[f"tensorboard:{tmp_path}/tb"], shipper="none") as run:  # fmt: skip
        run.log_metrics({"loss": 0.1, "mlkit/params/lr": 2}, step=-1)
        run.log_param("lr", 0.5)
        run.close(timeout=0)
    assert sync(run.dir).complete
    (path,) = (tmp_path / "tb" / run.id).iterdir()
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        next(run.dir.glob("sinks/*/cursor.json")).unlink()
        assert sync(run.dir).complete
        assert path.read_bytes() == whole


def test_tensorboard_itself_reads_it(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    util = pytest.importorskip("tensorboard.util.tensor_util")
    with start_run("x", root=tmp_path / "r", sinks=[f"tensorboard:{tmp_path}/tb"], shipper="none") as run:  # fmt: skip
        run.log_points({"loss": [0.1, math.inf, math.nan]}, steps=[1, 2, 3])
        run.log_param("lr", 0.5)
        run.close(timeout=0)
    assert sync(run.dir).complete
    read = loader.EventAccumulator(str(tmp_path / "tb" / run.id)).Reload()
    found = [util.make_ndarray(event.tensor_proto).item() for event in read.Tensors("loss")]
    assert repr(found) == "[0.10000000149011612, inf, nan]"
    (lr,) = read.Tensors("mlkit/params/lr")
    assert util.make_ndarray(lr.tensor_proto).item() == b"0.5"


def test_a_package_of_somebody_else_offers_a_sink(tmp_path):
    """Its entry point is found by the training and by the shipper, which is another process."""
    site = tmp_path / "site"
    (site / "theirs-1.0.dist-info").mkdir(parents=True)
    (site / "theirs-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n"
    )
    (site / "theirs-1.0.dist-info" / "entry_points.txt").write_text(
        "[mlkit.sinks]\ntheirs = their_sink:Sink\n"
    )
    (site / "their_sink.py").write_text(
        "import json, os, pathlib\n"
        "class Sink:\n"
        "    max_records = 10\n"
        "    def __init__(self, place): self.place, self.uri = place, 'theirs:' + place\n"
        "    def open(self, run): self.held = {}\n"
        "    def send(self, batch):\n"
        "        self.held |= {r.id: [r.kind, r.key, r.value] for r in batch}\n"
        "        pathlib.Path(self.place).write_text(json.dumps([os.getpid(), list(self.held.values())]))\n"
        "    def close(self): pass\n"
    )
    code = (
        "import os, sys\n"
        "from mlkit.tracking import start_run\n"
        "with start_run('x', root=sys.argv[1], sinks=['theirs:' + sys.argv[2]]) as run:\n"
        "    run.log_metric('loss', 0.5, step=1)\n"
        "    print(os.getpid(), run.close(timeout=60).delivered)\n"
    )
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path / "r", out],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    training, delivered = done.stdout.split()
    shipper, held = json.loads(out.read_text())
    assert delivered == "3"
    assert str(shipper) != training
    assert ["metric", "loss", 0.5] in held


class Broken:
    """A sink around a good one, to be broken in one way."""

    max_records = 1000

    def __init__(self, folder):
        self.inner = JsonlSink(folder)
        self.uri = self.inner.uri

    def open(self, run):
        self.inner.open(run)

    def send(self, batch):
        self.inner.send(batch)

    def close(self):
        self.inner.close()


class AppendsBlindly(Broken):
    def send(self, batch):
        self.inner._known.clear()
        self.inner.send(batch)


class ForgetsOnOpen(Broken):
    def open(self, run):
        self.inner.open(run)
        self.inner._known.clear()


class DropsTheLast(Broken):
    def send(self, batch):
        self.inner.send(batch[:-1])


class TakesOnlyRisingSteps(Broken):
    last = -(2**63)

    def send(self, batch):
        kept = []
        for record in batch:
            if record.kind == "metric" and record.step < self.last:
                continue
            self.last = max(self.last, record.step)
            kept.append(record)
        self.inner.send(kept)


class FirstTagWins(Broken):
    def __init__(self, folder):
        super().__init__(folder)
        self.seen = set()

    def send(self, batch):
        fresh = [r for r in batch if r.kind != "tag" or r.key not in self.seen]
        self.seen |= {r.key for r in batch if r.kind == "tag"}
        self.inner.send(fresh)


class RefusesGoodRecords(Broken):
    def send(self, batch):
        if any(record.value == "another value" for record in batch):
            self.poisoned = True
        if getattr(self, "poisoned", False):
            raise SinkRejectedError("no more")
        self.inner.send(batch)


class CutsInfinity(Broken):
    def send(self, batch):
        limit = 1.7976931348623157e308
        self.inner.send(
            [
                r._replace(value=max(-limit, min(limit, r.value))) if r.kind == "metric" else r
                for r in batch
            ]
        )


class MergesNames(Broken):
    def send(self, batch):
        self.inner.send([r._replace(key="".join(c if c.isalnum() else "_" for c in r.key)) for r in batch])  # fmt: skip


class OneFileForAll(Broken):
    def open(self, run):
        self.inner.open(run._replace(id="all"))


@pytest.mark.parametrize(
    ("double", "law"),
    [
        (AppendsBlindly, "test_replay_changes_nothing"),
        (ForgetsOnOpen, "test_replay_changes_nothing"),
        (DropsTheLast, "test_everything_arrives"),
        (TakesOnlyRisingSteps, "test_order_does_not_matter"),
        (FirstTagWins, "test_the_later_tag_and_status_win"),
        (RefusesGoodRecords, "test_a_refused_record_harms_no_other"),
        (CutsInfinity, "test_numbers_are_exact"),
        (MergesNames, "test_names_stay_different"),
        (OneFileForAll, "test_runs_do_not_mix"),
    ],
)
def test_the_suite_bites(tmp_path, double, law):
    class Suite(SinkContract):
        def make_sink(self, place):
            return double(place / "out")

        def stored(self, place, run):
            name = "all" if double is OneFileForAll else run.id
            return stored_lines(place / "out", run._replace(id=name))

    with pytest.raises(AssertionError):
        getattr(Suite(), law)(tmp_path)


def test_the_suite_asks_for_its_two_methods(tmp_path):
    with pytest.raises(NotImplementedError):
        SinkContract().make_sink(tmp_path)
    with pytest.raises(NotImplementedError):
        SinkContract().stored(tmp_path, None)


@pytest.mark.parametrize("folder", ["", 3, None])
def test_a_sink_refuses_what_is_no_folder(folder):
    with pytest.raises(ConfigurationError, match="JsonlSink"):
        JsonlSink(folder)
    with pytest.raises(ConfigurationError, match="TensorboardSink"):
        TensorboardSink(folder)
