"""The laws of a sink hold for ours, and the suite bites when one is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlkit.errors import ConfigurationError, SinkRejectedError
from mlkit.testing._sinks import SinkContract, StoredRun
from mlkit.tracking import JsonlSink


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
