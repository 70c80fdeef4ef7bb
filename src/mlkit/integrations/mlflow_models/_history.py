"""The history of a model in MLflow, which keeps none: one write-once param of one run for each change.

MLflow sets an alias, whatever it was, and forgets what it was. But it never lets the value of a param be changed. So the
params `mlkit.change.000001`, `...000002`, ... of a run are an append-only list, and to write the next one is a
compare-and-swap: of several writers that have all read n changes, MLflow lets one write change n + 1 and refuses the
others. The run is the only one of its kind in the experiment `mlkit-models/<model>`; MLflow lets one writer create that
experiment, and that one creates the run.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._clock import current
from mlkit._digest import digest_bytes
from mlkit.errors import IntegrityError, ModelStoreError
from mlkit.integrations.mlflow_models._server import error_code
from mlkit.models import Change

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlkit._clock import Clock
    from mlkit.integrations.mlflow_models._server import Server

__all__ = ["History", "Past", "without"]

EXPERIMENT = "mlkit-models/"
_FORMAT = 1
_KEY = "mlkit.change."
_TAG = "mlkit.history"
_MAX_PARAM = 5500  # MLflow's own limit is 6000
_WAIT = 10.0  # seconds for another writer to create the run of an experiment that it has created
_POLL = 0.05


class Past(NamedTuple):
    """What a history adds up to."""

    changes: tuple[Change, ...]
    holders: Mapping[str, tuple[int, ...]]
    """Who held each alias, the present holder last."""
    pins: Mapping[int, str]
    """Digests of the artifacts of versions that others made, as they were when they were promoted."""

    def holder(self, alias: str) -> int | None:
        """Return the version that an alias should point at.

        Args:
            alias: The alias.
        """
        return (self.holders.get(alias) or (None,))[-1]

    def last_move(self, alias: str) -> Change | None:
        """Return the last change that moved an alias.

        Args:
            alias: The alias.
        """
        return next((one for one in reversed(self.changes) if moves(one, alias)), None)


@final
class History:
    """The changes of one registered model.

    Args:
        server: Where.
        name: The model.
        clock: For waiting.
    """

    def __init__(self, server: Server, name: str, clock: Clock | None) -> None:
        self._server, self._name, self._clock = server, name, clock
        self._run: str | None = None

    @property
    def experiment(self) -> str:
        """The name of the experiment that it lies in, beside the runs of the versions."""
        return EXPERIMENT + self._name

    def read(self) -> Past:
        """Return what has happened so far."""
        run_id = self._run or self._find_run(self._find_experiment())
        if run_id is None:
            return Past((), {}, {})
        self._run = run_id
        with self._server.asked():
            params = self._server.client.get_run(run_id).data.params
        texts = sorted((key, text) for key, text in params.items() if key.startswith(_KEY))
        events = [self._event(run_id, place, *one) for place, one in enumerate(texts, 1)]
        return _add_up(events)

    def append(self, n_changes: int, event: Mapping[str, Any]) -> Change | None:
        """Write the next change, if no other writer has meanwhile.

        Args:
            n_changes: How many changes the caller has read.
            event: What happened.

        Returns:
            The change, or None if another writer was faster: read again and decide anew.
        """
        run_id = self._run = self._run or self.open()
        key = f"{_KEY}{n_changes + 1:06}"
        # Two writers never write equal texts, which MLflow would both let pass.
        content = {**event, "v": _FORMAT, "nonce": os.urandom(8).hex()}
        text = self._fit(run_id, json.dumps(content, sort_keys=True, separators=(",", ":")))
        client = self._server.client
        with self._server.asked():
            try:
                client.log_param(run_id, key, text)
            except Exception as error:
                if error_code(error) is None:
                    raise
                # Refused, or it cannot be told: what is there now decides.
                written = client.get_run(run_id).data.params.get(key)
                if written is None:
                    raise
                if written != text:
                    return None
        return _change(content, n_changes + 1)

    def open(self) -> str:
        """Return the id of the run, made if need be, by one writer only."""
        client = self._server.client
        with self._server.asked():
            experiment = self._find_experiment()
            is_ours = experiment is None
            if experiment is None:
                try:
                    place = self._server.artifacts_of_new()
                    client.create_experiment(self.experiment, artifact_location=place)
                except Exception as error:
                    if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                        raise
                    is_ours = False  # another writer was faster
                experiment = self._find_experiment()
            if experiment is None:
                raise ModelStoreError(f"MLflow has lost the experiment {self.experiment!r}")
            clock = current(self._clock)
            until = clock.monotonic() + _WAIT
            while not is_ours:
                found = self._find_run(experiment)
                if found is not None:
                    return found
                if clock.monotonic() >= until:
                    break  # whoever was to make it has died
                clock.sleep(_POLL)
            tags = {_TAG: self._name, "mlflow.source.name": "mlkit"}
            run = client.create_run(experiment, tags=tags, run_name="history")
            client.update_run(run.info.run_id, status="FINISHED")  # it takes params all the same
            # Where two writers took a third for dead, both read which run it is now.
            return self._find_run(experiment) or str(run.info.run_id)

    def experiment_id(self) -> str:
        """Return the id of the experiment, which exists."""
        self._run = self._run or self.open()
        return str(self._find_experiment())

    def _find_experiment(self) -> str | None:
        with self._server.asked():
            found = self._server.client.get_experiment_by_name(self.experiment)
        if found is not None and found.lifecycle_stage != "active":
            raise ModelStoreError(
                f"experiment {self.experiment!r}, the history of {self._name!r}, was deleted in MLflow: restore it "
                f"there, or save under another name"
            )
        return None if found is None else str(found.experiment_id)

    def _find_run(self, experiment: str | None) -> str | None:
        if experiment is None:
            return None
        with self._server.asked():
            runs = self._server.client.search_runs(
                [experiment], f"tags.`{_TAG}` = '{self._name}'", order_by=["start_time ASC"]
            )
        found = [(run.info.start_time, str(run.info.run_id)) for run in runs]
        return min(found)[1] if found else None

    def _fit(self, run_id: str, text: str) -> str:
        """Return a text that a param can hold: one that is too long becomes an artifact, and its digest the param."""
        if len(text) <= _MAX_PARAM:
            return text
        digest = digest_bytes(text.encode("ascii"))
        path = f"mlkit/changes/{digest.partition(':')[2]}.json"
        with self._server.asked():
            self._server.client.log_text(run_id, text, path)
        return json.dumps({"v": _FORMAT, "artifact": path, "digest": digest})

    def _event(self, run_id: str, place: int, key: str, text: str) -> tuple[Change, Any]:
        where = f"param {key} of run {run_id} in MLflow"
        try:
            event = json.loads(text)
            if isinstance(event["v"], int) and event["v"] > _FORMAT:
                raise ModelStoreError(f"{where} was written by a newer mlkit: upgrade mlkit-blocks")
            if "artifact" in event:
                event = json.loads(self._whole(run_id, event["artifact"], event["digest"]))
            if key != f"{_KEY}{place:06}":
                raise ValueError("gap")
            return _change(event, place), event.get("artifacts")
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ModelStoreError):
                raise
            raise IntegrityError(where, expected=f"change {place}", got="something else") from None

    def _whole(self, run_id: str, path: str, digest: str) -> str:
        from pathlib import Path
        from tempfile import TemporaryDirectory

        with self._server.asked(), TemporaryDirectory() as folder:
            local = self._server.client.download_artifacts(run_id, path, folder)
            content = Path(local).read_bytes()
        if (got := digest_bytes(content)) != digest:
            raise IntegrityError(f"{path} of run {run_id} in MLflow", expected=digest, got=got)
        return content.decode("ascii")


def moves(change: Change, alias: str) -> bool:
    """Return whether a change moved an alias.

    Args:
        change: The change.
        alias: The alias.
    """
    return change.alias == alias and change.kind in {"promoted", "rolled_back", "alias_removed"}


def without(held: tuple[int, ...], gone: int) -> tuple[int, ...]:
    """Return the holders of an alias without a deleted version, and without a version following itself.

    Args:
        held: The holders.
        gone: The version.
    """
    kept: list[int] = []
    for number in held:
        if number != gone and kept[-1:] != [number]:
            kept.append(number)
    return tuple(kept)


def _change(event: Mapping[str, Any], sequence: int) -> Change:
    return Change(
        sequence,
        event["kind"],
        int(event["version"]),
        event.get("alias"),
        event.get("previous"),
        str(event["who"]),
        float(event["time"]),
        str(event["why"]),
        dict(event.get("evidence", {})),
    )


def _add_up(events: list[tuple[Change, Any]]) -> Past:
    holders: dict[str, tuple[int, ...]] = {}
    pins: dict[int, str] = {}
    for change, pinned in events:
        held = holders.get(change.alias or "", ())
        if isinstance(pinned, str):
            pins[change.version] = pinned
        if change.kind == "deleted":
            holders = {alias: without(one, change.version) for alias, one in holders.items()}
        elif change.alias is None or change.kind == "refused":
            continue
        elif change.kind == "promoted":
            holders[change.alias] = (*held, change.version)
        elif change.kind == "rolled_back":
            holders[change.alias] = held[: _last_index(held, change.version) + 1]
        elif change.kind == "alias_removed":
            holders[change.alias] = ()
    return Past(tuple(change for change, _ in events), holders, pins)


def _last_index(held: tuple[int, ...], version: int) -> int:
    return max((place for place, number in enumerate(held) if number == version), default=-1)
