"""The laws of a tracking sink as tests, for those who write one."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from mlkit._digest import digest_bytes
from mlkit.errors import MlkitError
from mlkit.tracking import Record, RunInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mlkit.tracking import Sink

__all__ = ["SinkContract", "StoredRun"]


class StoredRun(NamedTuple):
    """What a backend holds of one run, in the words of the records that were sent.

    Attributes:
        metrics: Every stored point as (key, step, value), as often as it is stored. Non-finite
            numbers that the backend keeps in another place belong here, too.
        params: By name.
        tags: By name; what the sink adds on its own is left out.
        artifacts: The digest of each artifact's content, by name.
        status: The last status, such as `"FINISHED"`.
    """

    metrics: Sequence[tuple[str, int, float]]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    artifacts: Mapping[str, str]
    status: str


class SinkContract:
    """The laws of `mlkit.tracking.Sink`, to be inherited by a test class for pytest.

    Examples:
        ```python
        class TestMySink(SinkContract):
            def make_sink(self, place: Path) -> Sink:
                return MySink(place / "store")

            def stored(self, place: Path, run: RunInfo) -> StoredRun:
                ...
        ```
    """

    def make_sink(self, place: Path) -> Sink:
        """Return a new sink. Two made for one *place* are of one backend.

        Args:
            place: A temporary folder, empty for each test.
        """
        raise NotImplementedError

    def stored(self, place: Path, run: RunInfo) -> StoredRun:
        """Return what the backend of *place* holds of *run*, not by way of the sink.

        Args:
            place: As for `make_sink`.
            run: The run.
        """
        raise NotImplementedError

    def test_everything_arrives(self, tmp_path: Path) -> None:
        """Law 3: what `send` took is stored."""
        records = _records(tmp_path)
        self._send(tmp_path, [records])
        self._check(tmp_path, records)

    def test_replay_changes_nothing(self, tmp_path: Path) -> None:
        """Law 1: batches may come twice, overlapping, and after a new start."""
        records = _records(tmp_path)
        self._send(tmp_path, [records[:7], records[:7], records[3:]])
        self._send(tmp_path, [records])
        self._check(tmp_path, records)

    def test_order_does_not_matter(self, tmp_path: Path) -> None:
        """Law 2: metrics, params and artifacts may come in any order."""
        records = _records(tmp_path)
        free = [record for record in records if record.kind not in {"tag", "status"}]
        bound = [record for record in records if record.kind in {"tag", "status"}]
        self._send(tmp_path, [free[len(free) // 2 :], bound, free[: len(free) // 2]])
        self._check(tmp_path, records)

    def test_the_later_tag_and_status_win(self, tmp_path: Path) -> None:
        """Law 2: in one batch and across batches."""
        tags = [_record(index, "tag", "stage", f"v{index}") for index in range(3)]
        states = [
            _record(3, "status", "status", "RUNNING"),
            _record(4, "status", "status", "FAILED"),
        ]
        self._send(tmp_path, [tags[:2], [tags[2], states[0]], [states[1]]])
        self._check(tmp_path, [*tags, *states])

    def test_a_refused_record_harms_no_other(self, tmp_path: Path) -> None:
        """Law 3: when a batch is refused, its records may come again one by one.

        The culprit is a param that changes its value, which no backend need refuse; a sink that
        takes it shall keep one of the two.
        """
        good = _records(tmp_path)
        culprit = _record(900, "param", "lr", "another value")
        sink = self.make_sink(tmp_path)
        sink.open(_RUN)
        try:
            sink.send([*good, culprit])
        except (OSError, MlkitError):
            for record in [*good, culprit]:
                try:
                    sink.send([record])
                except (OSError, MlkitError):
                    assert record is culprit, f"{record} was refused, though only {culprit} is bad"
        finally:
            sink.close()
        held = self.stored(tmp_path, _RUN)
        wanted = {record.key: record.value for record in good if record.kind == "param"}
        assert {**held.params, "lr": wanted["lr"]} == wanted
        assert held.params["lr"] in {wanted["lr"], culprit.value}
        self._check(tmp_path, good, but_params=True)

    def test_numbers_are_exact(self, tmp_path: Path) -> None:
        """Law 4: no number becomes another, however large, small or not a number; zeros are equal."""
        values = [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf, 2**53]
        steps = [0, 1, -1, 2**40, -(2**40), 5, 6, 7]
        records = [
            _record(index, "metric", "m", float(value), step=step)
            for index, (value, step) in enumerate(zip(values, steps, strict=True))
        ]
        self._send(tmp_path, [records])
        self._check(tmp_path, records)

    def test_names_stay_different(self, tmp_path: Path) -> None:
        """Law 4: `loss@1` and `loss#1` are two metrics, whatever the backend's rules."""
        names = ["loss@1", "loss#1", "loss 1", "a/b", "a//b", "/a", "..", "é", "日本", "x" * 300]
        names += ["x" * 299 + "y", "a\nb", "loss_1-0123456789ab", "{}", '"', "'", "%s", "a:b"]
        records = [_record(i, "metric", name, float(i)) for i, name in enumerate(names)]
        self._send(tmp_path, [records])
        held = Counter(value for _, _, value in self.stored(tmp_path, _RUN).metrics)
        assert held == Counter(float(i) for i in range(len(names)))
        keys = {key for key, _, _ in self.stored(tmp_path, _RUN).metrics}
        assert len(keys) == len(names), f"{len(names)} names became {len(keys)}"

    def test_runs_do_not_mix(self, tmp_path: Path) -> None:
        """Law 5: a run is found again, and another one is another."""
        other = _RUN._replace(id="20260102-030405-ffffffff", name="other")
        for run, value in ((_RUN, 1.0), (other, 2.0), (_RUN, 3.0)):
            sink = self.make_sink(tmp_path)
            sink.open(run)
            sink.send([_record(int(value), "metric", "m", value, step=int(value))])
            sink.close()
        assert sorted(self.stored(tmp_path, _RUN).metrics) == [("m", 1, 1.0), ("m", 3, 3.0)]
        assert list(self.stored(tmp_path, other).metrics) == [("m", 2, 2.0)]

    def _send(self, place: Path, batches: Sequence[Sequence[Record]]) -> None:
        sink = self.make_sink(place)
        assert sink.max_records >= 1
        assert self.make_sink(place).uri == sink.uri, "the address of one backend changes"
        sink.open(_RUN)
        for batch in batches:
            sink.send(batch)
        sink.close()

    def _check(self, place: Path, records: Sequence[Record], *, but_params: bool = False) -> None:
        held = self.stored(place, _RUN)
        points = Counter(
            (record.key, record.step, _exactly(float(record.value)))
            for record in records
            if record.kind == "metric"
        )
        found = Counter((key, step, _exactly(value)) for key, step, value in held.metrics)
        assert found == points, f"stored {found - points}, missing {points - found}"
        for kind, entries in (
            ("param", held.params),
            ("tag", held.tags),
            ("artifact", held.artifacts),
        ):
            if kind == "param" and but_params:
                continue
            wanted = {record.key: record.value for record in records if record.kind == kind}
            assert dict(entries) == wanted, f"{kind}s differ"
        states = [record.value for record in records if record.kind == "status"]
        if states:
            assert held.status == states[-1]


_RUN = RunInfo("20260102-030405-0a1b2c3d", "contract", "first", None, 1_767_323_045.0)


def _exactly(value: float) -> str:
    return repr(value + 0.0)  # SQL has one zero


def _record(
    number: int,
    kind: str,
    key: str,
    value: float | str,
    *,
    step: int = 0,
    path: str = "",
) -> Record:
    time = _RUN.start_time + number / 1000
    return Record(f"0-1-aa:{number}:0", kind, key, value, step, time, path)  # type: ignore[arg-type]


def _records(place: Path) -> list[Record]:
    """Return a small run with everything in it."""
    content = b"weights"
    digest = digest_bytes(content)
    path = place / "contents" / digest.removeprefix("sha256:")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return [
        _record(0, "status", "status", "RUNNING"),
        _record(1, "param", "lr", "0.1"),
        _record(2, "param", "net.depth", "3"),
        _record(3, "tag", "stage", "trial"),
        _record(4, "metric", "loss", 0.5, step=1),
        _record(5, "metric", "loss", 0.25, step=2),
        _record(6, "metric", "loss", 0.25, step=2),  # an equal point, a millisecond later
        _record(7, "metric", "accuracy", 0.9, step=2),
        _record(8, "artifact", "model/weights.bin", digest, path=str(path)),
        _record(9, "tag", "stage", "done"),
        _record(10, "status", "status", "FINISHED"),
    ]
