"""Events as log lines: stable names, a level, and nothing that could be data."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import structlog
from structlog.testing import capture_logs

from mlkit.errors import ConfigurationError, MissingDependencyError
from mlkit.integrations.structlog import add_run, listen, run_context
from mlkit.resilience import Breaker, Policy
from mlkit.telemetry import emit
from mlkit.testing import virtual_time
from mlkit.tracking import start_run


def test_the_life_of_a_breaker_is_three_lines():
    breaker = Breaker(min_calls=2, window=2, cooldown=30.0, name="ranker")
    answers = iter([ConnectionError, ConnectionError, None])

    def score(patient):
        if error := next(answers):
            raise error(f"cannot score {patient}")
        return patient

    guarded = Policy(breaker=breaker)(score)
    with virtual_time() as clock, capture_logs() as lines, listen(scope="context"):
        for _ in range(2):
            with pytest.raises(ConnectionError):
                guarded("Ada Lovelace")
        clock.advance(30)
        guarded("Ada Lovelace")
    assert [(line["event"], line["log_level"], line["name"]) for line in lines] == [
        ("resilience.breaker.opened", "warning", "ranker"),
        ("resilience.breaker.half_open", "info", "ranker"),
        ("resilience.breaker.closed", "info", "ranker"),
    ]
    assert lines[0]["failures"] == 2
    assert "Ada" not in repr(lines)


def test_it_hears_until_it_is_closed():
    with capture_logs() as lines:
        subscription = listen(scope="context")
        emit("flags.changed", "flags.json", n_keys=1)
        subscription.close()
        subscription.close()
        emit("flags.changed", "flags.json", n_keys=2)
    assert [line["n_keys"] for line in lines] == [1]


def test_fields_that_mean_something_to_structlog_are_kept_apart():
    with capture_logs() as lines, listen(scope="context"):
        emit("test.thing.failed", "x", event="e", name="n", exc_info=True, level="high", kind="k")
    assert lines == [
        {
            "event": "test.thing.failed", "log_level": "warning", "name": "x", "kind": "k",
            "field_event": "e", "field_name": "n", "field_exc_info": True, "field_level": "high",
        }
    ]  # fmt: skip


def test_a_logger_of_ones_own_writes_json(capsys):
    logger = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
    ).bind(service="scores")
    with listen(logger, scope="context"):
        emit("resilience.breaker.opened", "ranker", failures=5)
    assert json.loads(capsys.readouterr().out) == {
        "event": "resilience.breaker.opened", "level": "warning", "service": "scores", "name": "ranker", "failures": 5,
    }  # fmt: skip


def test_a_wrong_scope_is_refused():
    with pytest.raises(ConfigurationError, match="'process' or 'context'"):
        listen(scope="thread")


@pytest.mark.parametrize(
    ("room", "package", "extra"),
    [
        ("structlog", "structlog", "structlog"),
        ("prometheus", "prometheus_client", "prometheus"),
        ("opentelemetry", "opentelemetry", "opentelemetry"),
    ],
)
def test_without_its_package_a_listener_names_the_extra(room, package, extra):
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from mlkit.errors import MissingDependencyError
from mlkit.integrations.{room} import listen
try:
    listen()
except MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"mlkit-blocks[{extra}]" in done.stdout, done
    assert issubclass(MissingDependencyError, ImportError)


@pytest.fixture
def lines():
    """Configure structlog as a service would, and give back what it writes."""
    written = []

    def keep(logger, method, event):
        written.append(event)
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, add_run, keep],
        cache_logger_on_first_use=False,
    )
    yield written
    structlog.configure(**before)


def test_a_line_says_of_which_run_and_step_it_is(lines, tmp_path):
    log = structlog.get_logger()
    with start_run("a", root=tmp_path) as run, run_context(run):
        log.info("begun")
        for step in range(2):
            run.log_metrics({"loss": 0.5}, step=step)
            log.info("stepped")
        log.info("other", run_id="mine", step="also mine")
        with run.child("fold") as fold, run_context(fold):
            log.info("nested")
        log.info("back")
    log.info("after")
    assert [(line["event"], line.get("run_id"), line.get("step")) for line in lines] == [
        ("begun", run.id, None),
        ("stepped", run.id, 0),
        ("stepped", run.id, 1),
        ("other", "mine", "also mine"),
        ("nested", fold.id, None),
        ("back", run.id, 1),
        ("after", None, None),
    ]


def test_two_threads_and_two_tasks_each_have_their_own_run(lines, tmp_path):
    log = structlog.get_logger()
    barrier = threading.Barrier(2)

    def train(name):
        with start_run(name, root=tmp_path) as run, run_context(run):
            barrier.wait()
            log.info(name)
            barrier.wait()
            return run.id

    async def task(name, met):
        with start_run(name, root=tmp_path) as run, run_context(run):
            await met.wait()
            log.info(name)
            return run.id

    async def tasks():
        met = asyncio.Barrier(2)
        return await asyncio.gather(task("c", met), task("d", met))

    with ThreadPoolExecutor(2) as pool:
        ids = dict(zip("ab", pool.map(train, "ab"), strict=True))
    ids |= dict(zip("cd", asyncio.run(tasks()), strict=True))
    assert {line["event"]: line["run_id"] for line in lines} == ids
