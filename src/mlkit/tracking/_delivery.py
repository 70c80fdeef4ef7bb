"""How far each sink has come: on disk, so that every process can say it and none needs to ask another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit.tracking._folder import Folder, replace_text
from mlkit.tracking._frames import MAGIC
from mlkit.tracking._records import count_from

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Cursor", "Delivery", "delivery_of", "given_up", "merged", "settled", "shortfall"]


class Delivery(NamedTuple):
    """What has become of the records of a run and of those nested in it.

    A record is one point, param, tag, artifact or status.

    With several sinks the totals are those of the sink that is furthest behind. Always
    `acked == delivered + pending + dead_lettered` when there is a sink.

    Attributes:
        acked: Records in the journal: the calls that logged them have returned, and they survive
            the process.
        delivered: Records that every sink has stored.
        pending: Records that some sink has not stored yet; `mlkit.tracking.sync` goes on with them.
        dead_lettered: Records that a sink refused, with its reasons in `sinks/<sink>/dead.jsonl` of
            the run.
        lost: Records of this process that could not be written to the journal (disk full, folder
            gone).
        reason: Why something is pending, as far as it is known.
        sinks: The same for each sink alone, by address.
    """

    acked: int
    delivered: int
    pending: int
    dead_lettered: int
    lost: int = 0
    reason: str = ""
    sinks: Mapping[str, Delivery] = {}

    @property
    def complete(self) -> bool:
        """Whether every record is where it should be."""
        return not (self.pending or self.dead_lettered or self.lost)


@final
class Cursor:
    """One sink's place in each file of a run's journal.

    Args:
        folder: `sinks/<sink>` of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cursor.json"
        self.places: dict[str, tuple[int, int]] = {}
        """By file, the offset up to which the sink is done, and the records before it."""
        self.dead = 0
        """Records that were set aside."""
        self.status = ""
        """The run's status as the sink knows it."""
        self.error = ""
        """Why the sink does not go on at the moment."""
        self.load()

    def load(self) -> None:
        """Read it again. One that cannot be read is as if it were new: replays are harmless."""
        import json

        try:
            content: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
            places = {name: (int(at), int(n)) for name, (at, n) in content["places"].items()}
            self.places, self.dead = places, int(content["dead"])
            self.status, self.error = content["status"], content["error"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.places, self.dead, self.status, self.error = {}, 0, "", ""

    def save(self) -> None:
        """Write it down."""
        import json

        content = {name: getattr(self, name) for name in ("places", "dead", "status", "error")}
        replace_text(self.path, json.dumps(content))

    def done(self, name: str) -> int:
        """Return the offset up to which the sink is done with a file."""
        return self.places.get(name, (0, 0))[0]


def delivery_of(
    folder: Folder, uris: Sequence[str], keys: Sequence[str], *, lost: int = 0, reason: str = ""
) -> Delivery:
    """Return how the sinks stand to the journal as it is on disk now.

    Args:
        folder: The run.
        uris: Addresses of its sinks.
        keys: Their names in the folder.
        lost: Records of this process that never came into the journal.
        reason: What else may keep records from being delivered.
    """
    writers = folder.writers()
    if not uris:
        return Delivery(sum(count_from(path, 0) for path in writers), 0, 0, 0, lost, reason)
    each = {}
    for uri, key in zip(uris, keys, strict=True):
        cursor = Cursor(folder.sinks / key)
        pending = sum(count_from(path, cursor.done(path.name)) for path in writers)
        done = sum(records for _, records in cursor.places.values())
        why = (cursor.error or reason) if pending else ""
        each[uri] = Delivery(done + pending, done - cursor.dead, pending, cursor.dead, lost, why)
    return merged(each, worst=True)


def merged(each: Mapping[str, Delivery], *, worst: bool) -> Delivery:
    """Return one delivery for many.

    Args:
        each: By address of the sink, or by run.
        worst: Whether they are of the same records, so that the one furthest behind counts;
            otherwise they are added.
    """
    parts = list(each.values())
    if worst:
        behind = max(parts, key=lambda part: (part.pending, part.dead_lettered))
        return behind._replace(reason=_reasons(parts), sinks=dict(each))
    return Delivery(
        acked=sum(part.acked for part in parts),
        delivered=sum(part.delivered for part in parts),
        pending=sum(part.pending for part in parts),
        dead_lettered=sum(part.dead_lettered for part in parts),
        lost=sum(part.lost for part in parts),
        reason=_reasons(parts),
        sinks=_by_sink(parts),
    )


def given_up(folder: Folder, key: str) -> Path:
    """Return the file that is there when a sink's lane has ended with work left, until another takes it up."""
    return folder.sinks / key / "given_up"


def settled(root: Folder, keys: Sequence[str], own: Path | None) -> bool:
    """Return whether waiting is no use: every sink has, or has given up, what is written to a run and those in it.

    Args:
        root: The run.
        keys: Names of its sinks in the folder.
        own: The caller's journal file, which is looked at first: while it is not delivered, this is
            cheap.
    """
    if own:
        try:
            size = own.stat().st_size
        except FileNotFoundError:
            size = 0
        for key in keys:
            done = Cursor(root.sinks / key).done(own.name)
            behind = not size or (size > len(MAGIC) and done < size)  # one just begun holds nothing
            if behind and not given_up(root, key).exists():
                return False
    return not any(
        count_from(path, cursor.done(path.name))
        for folder in root.family()
        for key in keys
        if not given_up(folder, key).exists()
        for cursor in [Cursor(folder.sinks / key)]
        for path in folder.writers()
    )


def shortfall(delivery: Delivery, run_id: str, place: Path) -> str:
    """Return in words what of a run is not where it should be, and what to do."""
    parts = [f"{delivery.pending} records pending"] if delivery.pending else []
    if delivery.dead_lettered:
        parts.append(f"{delivery.dead_lettered} refused (see {place}/sinks)")
    if delivery.lost:
        parts.append(f"{delivery.lost} lost")
    reason = f" ({delivery.reason})" if delivery.reason else ""
    hint = f"; finish with mlkit.tracking.sync({str(place)!r})" if delivery.pending else ""
    return f"run {run_id}: {', '.join(parts)}{reason}{hint}"


def _reasons(parts: Iterable[Delivery]) -> str:
    return "; ".join(sorted({part.reason for part in parts if part.reason}))


def _by_sink(parts: Iterable[Delivery]) -> Mapping[str, Delivery]:
    found: dict[str, list[Delivery]] = {}
    for part in parts:
        for uri, one in part.sinks.items():
            found.setdefault(uri, []).append(one)
    return {
        uri: merged({str(index): one for index, one in enumerate(ones)}, worst=False)
        for uri, ones in found.items()
    }
