"""What has cost people their runs with other trackers; each test names where it was told."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from math import inf

import pytest

from mlkit.errors import ConfigurationError, SinkUnavailableError
from mlkit.tracking import read, start_run, sync


def test_a_shipper_that_is_frozen_holds_up_nothing(tmp_path):
    """A process of its own does not help if the hand-over to it can block (allenai/open-instruct #1841).

    More is logged here than any pipe or socket buffer would take.
    """
    run = start_run("frozen", root=tmp_path / "r", sinks=[f"jsonl:{tmp_path}/out"])
    assert run.flush(timeout=60).complete
    shipper = run._shipper._process
    shipper.send_signal(signal.SIGSTOP)
    try:
        for step in range(20_000):
            run.log_metrics({"loss": step, "acc": step, "lr": step}, step=step)
        start = time.monotonic()
        delivery = run.close(timeout=0.2)
        assert time.monotonic() - start < 60
        assert delivery.pending == delivery.acked - 1 == 60_001
    finally:
        shipper.send_signal(signal.SIGCONT)
    assert run.close(timeout=60).complete


def test_a_backend_that_never_answers_bounds_no_wait(tmp_path, memory):
    """`flush_async_logging` returns as if all were well; `wandb.log` waited for twelve hours."""
    never = threading.Event()
    memory.send = lambda batch: never.wait()
    with start_run("hangs", root=tmp_path, sinks=[memory], shipper="thread") as run:
        run.log_metric("loss", 1)
        start = time.monotonic()
        for wait in (run.flush, run.flush, lambda timeout: run.close(timeout=timeout)):
            delivery = wait(timeout=0.2)
            assert not delivery.complete
            assert delivery.delivered == 0
        assert time.monotonic() - start < 60
    never.set()


def test_a_run_in_progress_can_be_read_and_delivered(tmp_path):
    """A buffer that is not flushed cannot be synced (wandb #2919, #5561): from a copy, while it is written to."""
    with start_run("live", root=tmp_path / "r") as run:
        for step in range(7):
            run.log_metrics({"loss": step}, step=step)
            shutil.copytree(run.dir, tmp_path / f"copy{step}")
            assert [point.step for point in read(run.dir).metrics["loss"]] == list(range(step + 1))
            delivery = sync(tmp_path / f"copy{step}", sinks=[f"jsonl:{tmp_path}/out"])
            assert (delivery.delivered, delivery.pending) == (step + 2, 0)


def test_after_an_outage_at_most_one_batch_is_sent_again(tmp_path, memory_sink):
    """Whole replays collide, and the retries collide again (mlflow #20807, #24577, #24683)."""
    with start_run("storm", root=tmp_path) as run:
        for step in range(500):
            run.log_metric("loss", step, step=step)
    sent = []
    for _ in range(6):  # six shippers, each of which dies in its third batch
        memory = memory_sink("memory:one", max_records=50)

        def send(batch, memory=memory):
            sent.extend(record.id for record in batch)
            if len(memory.sent) == 2:
                raise SystemExit  # as if it were killed: the batch may be stored, nobody noted it
            memory.sent.append(len(batch))

        memory.send = send
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("threading.excepthook", lambda _: None)
            sync(run.dir, sinks=[memory], timeout=60)
    assert len(set(sent)) == 502
    assert len(sent) <= 502 + 6 * 50


def test_a_resumed_run_may_go_back_in_its_steps(tmp_path):
    """From a checkpoint; elsewhere the new points are dropped (wandb #4482, #2234, #5913, #10628, #9449)."""
    with start_run("again", root=tmp_path / "r") as run:
        for step in range(10):
            run.log_metric("loss", step, step=step)
    with start_run("again", root=tmp_path / "r", resume=run.id) as run:
        for step in range(4, 12):
            run.log_metric("loss", -step, step=step)
    expected = [*range(10), *range(4, 12)]
    assert [point.step for point in read(run.dir).metrics["loss"]] == expected
    assert sync(run.dir, sinks=[f"jsonl:{tmp_path}/out"]).complete
    lines = (tmp_path / "out" / f"{run.id}.jsonl").read_text().splitlines()
    assert sum('"loss"' in line for line in lines) == len(expected)


def test_equal_points_stay_apart_when_the_clock_goes_back(tmp_path, monkeypatch):
    """A backend that knows points by their millisecond would keep one of them."""

    class Clock:
        now = 2e9

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("mlkit.tracking._journal.current", lambda: clock)
    with start_run("clock", root=tmp_path) as run:
        for jump in (0, -3600, 0.0001, 7200, -0.5, 0, -1e9):
            clock.now += jump
            run.log_metric("loss", 1.0, step=3)
            run.set_tag("last", jump)
    data = read(run.dir)
    assert len({round(point.time * 1e6) // 1000 for point in data.metrics["loss"]}) == 7
    assert data.tags["last"] == str(-1e9)


def test_workers_of_a_data_loader_log_into_the_run(tmp_path):
    """They hang, or what they log is gone (wandb #12079, aim #2540; Comet and MLflow's queue lose it in silence)."""
    pytest.importorskip("torch")
    code = """
        import sys
        from torch.utils.data import DataLoader, Dataset
        from mlkit.tracking import start_run
        class Rows(Dataset):
            def __len__(self):
                return 40
            def __getitem__(self, index):
                run.log_metric("read", index, step=index)
                return index
        with start_run("loader", root=sys.argv[1]) as run:
            for batch in DataLoader(Rows(), batch_size=4, num_workers=2, multiprocessing_context="fork"):
                run.log_metric("seen", batch.sum().item(), step=int(batch[0]))
        print(run.dir)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), tmp_path],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = read(done.stdout.strip())
    assert sorted(point.step for point in data.metrics["read"]) == list(range(40))
    assert len(data.metrics["seen"]) == 10
    assert (data.status, data.torn_bytes) == ("FINISHED", 0)


@pytest.mark.parametrize("value", [10**400, "0.5", None, [1.0], 1j, {}])
def test_what_is_no_number_is_said_at_once(tmp_path, value):
    """Others take anything and lose it later: {} is stored for it, or the call fails in the backend."""
    with start_run("types", root=tmp_path) as run, pytest.raises(ConfigurationError):
        run.log_metric("loss", value)
    assert read(run.dir).metrics == {}


@pytest.mark.parametrize("step", [1.5, "3", None, True, 2**63, -(2**63) - 1])
def test_a_step_is_an_integer_of_64_bits(tmp_path, step):
    """MLflow stores 1.5 in a database and fails over HTTP."""
    with start_run("steps", root=tmp_path) as run:
        with pytest.raises(ConfigurationError):
            run.log_metric("loss", 1, step=step)
        for good in (2**63 - 1, -(2**63)):
            run.log_metric("loss", 1, step=good)
    assert [point.step for point in read(run.dir).metrics["loss"]] == [2**63 - 1, -(2**63)]


def test_names_of_files_are_not_taken_from_names_of_metrics(tmp_path):
    """DVCLive's key is a file name: one of 300 characters raises, and `../x` leaves the folder."""
    keys = [
        "x" * 1000,
        "../../x",
        "/etc/x",
        "a/../../b",
        "nul\0",
        "a\nb",
        "ü" * 300,
        ".",
        "con",
        " ",
    ]
    with start_run("keys", root=tmp_path / "r") as run:
        run.log_metrics(dict.fromkeys(keys, 1.0))
        run.log_params(dict.fromkeys(keys, "v"))
        run.set_tags(dict.fromkeys(keys, "v"))
    for sink in (f"jsonl:{tmp_path}/out", f"tensorboard:{tmp_path}/board"):
        assert sync(run.dir, sinks=[sink]).complete
    data = read(run.dir)
    assert set(data.metrics) == set(data.params) == set(data.tags) == set(keys)
    assert {path.name for path in tmp_path.iterdir()} == {"r", "out", "board"}


def test_ten_thousand_params_are_one_call(tmp_path):
    params = {f"layer.{number}.width": number for number in range(10_000)}
    with start_run("wide", root=tmp_path / "r") as run:
        run.log_params(params)
        run.log_params(params)  # again is fine, and adds nothing
    assert read(run.dir).params == params
    assert sync(run.dir, sinks=[f"jsonl:{tmp_path}/out"]).acked == 10_002


def test_two_processes_on_one_run_mix_nothing(tmp_path):
    code = """
        import sys
        from mlkit.tracking import start_run
        root, number = sys.argv[1], int(sys.argv[2])
        with start_run("two", root=root, run_id="job") as run:
            run.log_param("lr", 0.1)
            sys.stdin.read(1)
            for step in range(500):
                run.log_metrics({"loss": number, f"own{number}": step}, step=step)
    """
    workers = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), tmp_path, str(number)], stdin=subprocess.PIPE)
        for number in (1, 2)
    ]  # fmt: skip
    for worker in workers:
        worker.communicate(b".", timeout=300)
        assert worker.returncode == 0
    data = read(tmp_path / "job")
    assert sorted(p.value for p in data.metrics["loss"]) == [1.0] * 500 + [2.0] * 500
    for number in (1, 2):
        assert [p.value for p in data.metrics[f"own{number}"]] == list(range(500))
    assert (data.params, data.status) == ({"lr": 0.1}, "FINISHED")


def test_an_outage_is_told_once_and_its_end_once(tmp_path, memory):
    """A log line for each of a hundred thousand failures hides what matters; none at all hides the outage."""
    from mlkit.testing import record_events, virtual_time

    def away(batch):
        if len(tries) < 8:
            tries.append(len(batch))
            raise SinkUnavailableError("HTTP 503")

    tries: list[int] = []
    memory.send = away
    with start_run("told", root=tmp_path) as run:
        run.log_metric("loss", 1)
    with virtual_time(), record_events("tracking.sink.") as events:
        assert sync(run.dir, sinks=[memory], timeout=inf).complete
    assert [event.kind for event in events] == [
        "tracking.sink.unavailable", "tracking.sink.recovered",
    ]  # fmt: skip


@pytest.mark.parametrize(("wish", "waited"), [(0.0, 0.2), (30.0, 30.0), (10.0**9, 60.0)])
def test_a_backend_that_asks_for_time_gets_some(tmp_path, memory, wish, waited):
    """A client that obeys a Retry-After of an hour is gone for an hour; one that ignores it makes things worse."""
    from mlkit.testing import virtual_time
    from mlkit.tracking._folder import Folder
    from mlkit.tracking._lane import Lane

    asked: list[object] = []

    def busy(batch):
        if not asked:
            asked.append(batch)
            raise SinkUnavailableError("HTTP 429", retry_after=wish)

    with start_run("busy", root=tmp_path) as run:
        run.log_metric("loss", 1)
    memory.send = busy
    with virtual_time() as clock:  # without the thread of `sync`, whose own waiting would count
        start = clock.monotonic()
        Lane(Folder(run.dir), "memory", lambda: memory, once=True).run()
        assert waited * 0.7 <= clock.monotonic() - start < waited + 5
