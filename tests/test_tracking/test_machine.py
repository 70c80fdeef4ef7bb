"""A run against a plain model of it, with a sink that comes, goes and refuses."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlkit.errors import ParamConflictError, RunClosedError
from mlkit.tracking import read, start_run, sync


class IdSink:
    """Keeps records by id."""

    uri = "memory:machine"
    max_records = 7

    def __init__(self):
        self.held = {}

    def open(self, run):
        pass

    def send(self, batch):
        self.held |= {record.id: record for record in batch}

    def close(self):
        pass


keys = st.sampled_from(["a", "b", "c/d"])


class RunMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.sink = IdSink()
        self.run = start_run("machine", root=self.root)
        self.open = True
        self.metrics: dict[str, list] = {}
        self.params: dict[str, object] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: dict[str, bytes] = {}
        self.records = 1

    def call(self, log, *args) -> bool:
        if self.open:
            log(*args)
            return True
        with pytest.raises(RunClosedError):
            log(*args)
        return False

    @rule(
        values=st.dictionaries(keys, st.floats(allow_nan=False), min_size=1), step=st.integers(0, 3)
    )
    def log_metrics(self, values, step):
        if self.call(self.run.log_metrics, values, step):
            for key, value in values.items():
                self.metrics.setdefault(key, []).append((step, value))
            self.records += len(values)

    @rule(values=st.dictionaries(keys, st.integers(0, 1), min_size=1))
    def log_params(self, values):
        if self.open and any(self.params.get(key, new) != new for key, new in values.items()):
            with pytest.raises(ParamConflictError):
                self.run.log_params(values)
        elif self.call(self.run.log_params, values):
            self.records += len(values.keys() - self.params.keys())
            self.params |= values

    @rule(key=keys, value=st.text(max_size=3))
    def set_tag(self, key, value):
        if self.call(self.run.set_tag, key, value):
            self.tags[key] = value
            self.records += 1

    @rule(name=keys, data=st.binary(max_size=3))
    def log_artifact(self, name, data):
        if self.call(self.run.log_artifact, data, name):
            self.artifacts[name] = data
            self.records += 1

    @rule(status=st.sampled_from(["FINISHED", "FAILED"]))
    def close(self, status):
        self.run.close(status)
        self.records += self.open
        self.open = False

    @precondition(lambda self: not self.open)
    @rule()
    def resume(self):
        self.run = start_run("machine", root=self.root, resume=self.run.id)
        self.records += 1
        self.open = True

    @rule()
    def deliver(self):
        delivery = sync(self.run.dir, sinks=[self.sink])
        assert delivery[:4] == (self.records, self.records, 0, 0)
        assert len(self.sink.held) == self.records

    @invariant()
    def reads_back(self):
        data = read(self.run.dir)
        found = {key: [(p.step, p.value) for p in points] for key, points in data.metrics.items()}
        assert found == self.metrics
        assert (data.params, data.tags) == (self.params, self.tags)
        contents = {name: data.artifact(name).read_bytes() for name in data.artifacts}
        assert contents == self.artifacts
        assert (data.status == "RUNNING") == self.open
        assert data.torn_bytes == 0

    def teardown(self) -> None:
        self.run.close()
        self.deliver_at_last()
        shutil.rmtree(self.root)

    def deliver_at_last(self) -> None:
        sync(self.run.dir, sinks=[self.sink])
        values = [r.value for r in self.sink.held.values() if r.kind == "metric"]
        assert sorted(values) == sorted(v for points in self.metrics.values() for _, v in points)


TestRunMachine = RunMachine.TestCase
TestRunMachine.settings = settings(max_examples=25, stateful_step_count=15)
