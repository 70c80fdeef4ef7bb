"""One rollout in several processes: real ones, which race, die and start again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings

import pytest

from mlkit.errors import ConfigurationError, DegradedWarning, FlagFileError
from mlkit.flags import Audit, ErrorRate, Flags, Guard, verify_audit
from mlkit.telemetry import listen
from mlkit.testing import record_events, virtual_time

FLAG = {
    "state": "ENABLED",
    "variants": {"v1": "m:/1", "v2": "m:/2"},
    "defaultVariant": "v1",
}
GUARD = Guard(ErrorRate(max_rate=0.05))
START = f"""
import sys
from mlkit.flags import Audit, ErrorRate, Flags, Guard
FLAG = {FLAG!r}
def made(folder, **options):
    model = Flags.from_dict({{"flags": {{"m": FLAG}}}}).model("m", default="v1")
    options = {{"steps": [0.1, 0.2, 0.3, 0.5, 1.0], "guard": Guard(ErrorRate(max_rate=0.05)), **options}}
    return model, model.rollout("v2", folder=folder, **options)
"""


def made(folder, **options):
    flags = Flags.from_dict({"flags": {"m": FLAG}})
    model = flags.model("m", default="v1")
    options = {"steps": [0.1, 0.2, 0.3, 0.5, 1.0], "guard": GUARD, **options}
    return model, model.rollout("v2", folder=folder, **options)


def start(code, *args):
    return subprocess.Popen(
        [sys.executable, "-c", START + textwrap.dedent(code), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def go(processes):
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def ready(process):
    assert process.stdout.readline() == "ready\n"


def finish(process):
    out, _ = process.communicate("go\n", timeout=300)
    assert process.returncode == 0
    return out


# --- through a folder ----------------------------------------------------------------------------------------------


def test_what_one_process_decides_the_others_follow(tmp_path):
    model, one = made(tmp_path)
    other_model, other = made(tmp_path)
    one.advance()
    other.sync()
    assert (other.status, other.share) == ("ramping", 0.1)
    assert other.history[-1].action == "followed"
    assert "advance was called" in other.history[-1].reason
    users = range(300)
    assert model.assign(users).variants == other_model.assign(users).variants
    other.rollback("they said so")
    one.sync()
    assert (one.status, model.assign(users).counts()) == ("rolled_back", {"v1": 300})
    assert one.advance().action == "held"
    other.kill("all of it")
    one.sync()
    assert (one.status, model.details("u").reason) == ("killed", "DISABLED")
    report = verify_audit(tmp_path / "audit.jsonl")
    assert report.ok
    assert report.n_entries == 6


def test_a_step_is_taken_once_whoever_asks_and_lasts_as_long_as_it_must(tmp_path):
    with virtual_time() as clock:
        _, one = made(tmp_path, min_step=60)
        _, other = made(tmp_path, min_step=60)
        assert one.advance().share == 0.1
        clock.advance(30)
        held = other.advance()
        assert (held.action, other.share) == ("held", 0.1)
        assert "30 s of 60 s" in held.reason
        clock.advance(30)
        assert other.advance().share == 0.2
        assert one.advance().action == "held"
        clock.advance(59)
        _, again = made(tmp_path, min_step=60)  # a restart goes on where it was, in time too
        assert (again.share, again.advance().action) == (0.2, "held")
        clock.advance(1)
        assert again.advance().share == 0.3


def test_processes_that_advance_at_once_take_one_step_each(tmp_path):
    code = """
        model, rollout = made(sys.argv[1])
        print("ready", flush=True); sys.stdin.readline()
        print(rollout.advance().share)
    """
    processes = [start(code, tmp_path) for _ in range(3)]
    for process in processes:
        ready(process)
    go(processes)
    assert sorted(float(finish(process)) for process in processes) == [0.1, 0.2, 0.3]
    assert verify_audit(tmp_path / "audit.jsonl").ok


def test_evidence_of_all_processes_rolls_all_of_them_back(tmp_path):
    """None has seen enough alone."""
    code = """
        import mlkit.flags._witness
        mlkit.flags._witness._SYNC_EVERY = 3600.0  # none looks at the others before it is told to
        model, rollout = made(sys.argv[1])
        print("ready", flush=True); sys.stdin.readline()
        for n in range(3):
            rollout.observe("v2", ok=n > 1, unit=f"{sys.argv[2]}-{n}")
        assert rollout.status == "ramping"
        rollout.sync()
        print("ready", flush=True); sys.stdin.readline()
        rollout.sync()
        print(rollout.status, model.assign(range(100)).counts())
    """
    _, one = made(tmp_path)
    one.advance()
    processes = [start(code, tmp_path, worker) for worker in range(3)]
    for process in processes:
        ready(process)
    go(processes)
    for process in processes:
        ready(process)
    one.sync()
    assert one.status == "rolled_back"
    decided = [
        entry for entry in entries(tmp_path / "audit.jsonl") if entry["action"] == "rolled_back"
    ]
    assert decided[0]["evidence"]["error_rate.candidate_n"] in {6, 9}  # of more than one process
    for process in processes:
        assert finish(process) == "rolled_back {'v1': 100}\n"


def test_a_killed_process_leaves_its_evidence_and_a_restart_goes_on(tmp_path):
    code = """
        model, rollout = made(sys.argv[1])
        rollout.advance()
        for n in range(3):
            rollout.observe("v2", ok=n > 1, unit=n)
        rollout.sync()
        print("ready", flush=True); sys.stdin.readline()
    """
    process = start(code, tmp_path)
    ready(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, rollout = made(tmp_path)
    assert (rollout.status, rollout.share) == ("ramping", 0.1)
    assert rollout.evidence["error_rate.candidate_sum"] == 2
    rollout.observe("v2", ok=False, unit=0)  # known from before
    assert rollout.evidence["error_rate.n_bets"] == 3
    for n in range(3, 8):
        rollout.observe("v2", ok=False, unit=n)
    assert rollout.status == "rolled_back"
    assert made(tmp_path)[1].status == "rolled_back"


def test_observing_shares_by_itself_at_most_once_a_second(tmp_path):
    with virtual_time() as clock:
        _, one = made(tmp_path)
        _, other = made(tmp_path)
        one.advance()
        other.observe("v1", ok=True)
        assert other.status == "ready"
        clock.advance(1.5)
        other.observe("v1", ok=True)
        assert other.status == "ramping"


def test_a_forked_child_is_one_more_process(tmp_path):
    _, rollout = made(tmp_path)
    rollout.advance()
    rollout.observe("v2", ok=False)  # without a unit: counted, not kept
    rollout.sync()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            rollout.observe("v2", ok=False)
            rollout.sync()
            evidence = rollout.evidence
            os.write(writing, json.dumps(dict(evidence)).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        theirs = json.loads(pipe.read())
    rollout.sync()
    ours = rollout.evidence
    assert theirs["error_rate.candidate_n"] == ours["error_rate.candidate_n"] == 2
    assert theirs["error_rate.e_value"] == pytest.approx(ours["error_rate.e_value"])


def test_a_folder_in_trouble_is_a_warning_and_stops_no_rollback(tmp_path):
    folder = tmp_path / "rollout"
    model, rollout = made(folder)
    rollout.advance()
    (own,) = (path for path in folder.iterdir() if path.is_dir())
    (own / "evidence-0123.json").write_text("{ torn")
    (own / "evidence-4567.json").write_text(json.dumps({"guard": "another"}))
    with pytest.warns(DegradedWarning, match="evidence"):
        rollout.sync()
    for path in own.iterdir():
        path.unlink()
    own.rmdir()
    (folder / "audit.jsonl").unlink()
    folder.rmdir()
    with pytest.warns(DegradedWarning) as caught:
        assert rollout.rollback("now").action == "rolled_back"
    assert len(caught) == 2  # the others, and the audit, do not know
    assert model.assign(range(100)).counts() == {"v1": 100}


@pytest.mark.parametrize("content", [b"", b"{ torn", b"[]", b"\xff", b'{"status": ["x"]}'])
def test_a_state_that_says_nothing_begins_no_rollout_anew_and_stops_no_rollback(tmp_path, content):
    _, rollout = made(tmp_path)
    rollout.advance()
    (own,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (own / "state.json").write_bytes(content)
    if not content.startswith(b'{"'):
        with pytest.raises(FlagFileError, match=r"state.json: .* remove it"):
            made(tmp_path)
        with pytest.raises(FlagFileError, match=r"state.json"):
            rollout.advance()
        assert rollout.share == 0.1
    assert rollout.rollback("v2 is broken").action == "rolled_back"
    model, restarted = made(tmp_path)  # whom the rollback was told
    assert restarted.status == "rolled_back"
    assert model.assign(range(100)).counts() == {"v1": 100}


def test_rollouts_of_other_flags_and_candidates_share_a_folder(tmp_path):
    flag = {**FLAG, "variants": {**FLAG["variants"], "v3": "m:/3"}}
    flags = Flags.from_dict({"flags": {"m": flag, "n": flag}})
    rollouts = [
        flags.model(key, default="v1").rollout(name, folder=tmp_path)
        for key, name in (("m", "v2"), ("n", "v2"), ("n", "v3"))
    ]
    rollouts[0].advance()
    for rollout in rollouts:
        rollout.sync()
    assert [rollout.status for rollout in rollouts] == ["ramping", "ready", "ready"]


# --- through the file ----------------------------------------------------------------------------------------------


def in_file(path, **options):
    flags = Flags.from_file(path)
    model = flags.model("m", default="v1")
    return flags, model, model.rollout("v2", steps=[0.1, 0.5, 1.0], **options)


def test_a_file_that_is_further_is_followed_and_one_that_is_not_is_not(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"m": FLAG}}))
    one_flags, one_model, one = in_file(path)
    two_flags, _, two = in_file(path)
    one.advance()
    one.save()
    with record_events("flags.rollout.followed") as events:
        two_flags.reload()
    assert (two.status, two.share, len(events)) == ("ramping", 0.1, 1)
    one.advance()
    two_flags.reload()
    assert one.share == 0.5
    two.save()  # less than what `one` has
    one_flags.reload()
    assert one.share == 0.5
    two.rollback("no good")
    two.save()
    one_flags.reload()
    assert one.status == "rolled_back"
    assert one.history[-1].action == "followed"
    assert one_model.assign(range(200)).counts() == {"v1": 200}


def test_the_seed_stays_with_the_rollout(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"m": FLAG}}))
    _, model, rollout = in_file(path, seed="wave 7")
    rollout.advance()
    rollout.save()
    before = model.assign(range(500)).variants
    assert json.loads(path.read_text())["flags"]["m"]["metadata"]["rollout.seed"] == "wave 7"
    _, again, resumed = in_file(path)  # whoever restarts need not know it
    assert again.assign(range(500)).variants == before
    resumed.advance()
    after = again.assign(range(500)).variants
    assert all(new == "v2" for old, new in zip(before, after, strict=True) if old == "v2")
    with pytest.raises(ValueError, match="wave 7"):
        in_file(path, seed="wave 8")


def test_processes_that_save_at_once_undo_nothing_of_each_other(tmp_path):
    path = tmp_path / "flags.json"
    keys = [f"m{n}" for n in range(4)]
    path.write_text(json.dumps({"flags": dict.fromkeys(keys, FLAG)}))
    code = """
        flags = Flags.from_file(sys.argv[1])
        rollout = flags.model(sys.argv[2], default="v1").rollout("v2", steps=[n / 20 for n in range(1, 21)])
        print("ready", flush=True); sys.stdin.readline()
        for _ in range(20):
            rollout.advance(); rollout.save()
    """
    processes = [start(code, path, key) for key in keys]
    for process in processes:
        ready(process)
    go(processes)
    for process in processes:
        finish(process)
    flags = json.loads(path.read_text())["flags"]
    assert [flags[key]["metadata"]["rollout.share"] for key in keys] == [1.0] * 4
    assert [file.name for file in tmp_path.iterdir()] == ["flags.json"]


# --- the record ----------------------------------------------------------------------------------------------------


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_decisions_and_reloads_are_recorded_with_their_evidence(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit, seen = Audit(path, actor="ann"), []
    flags = Flags.from_dict({"flags": {"m": FLAG}})
    flags.on_change(audit.record)
    rollout = flags.model("m", default="v1").rollout("v2", steps=[1.0], guard=GUARD, audit=audit)
    before = flags.digest
    with listen(seen.append, scope="context"):
        rollout.advance()
        for n in range(10):
            rollout.observe("v2", ok=False, unit=n)
    done = entries(path)
    assert [entry["action"] for entry in done] == ["changed", "advanced", "changed", "rolled_back"]
    assert done[1]["before"] == before
    assert done[3]["after"] == flags.digest
    assert done[3]["keys"] == ["m"]
    assert done[3]["evidence"]["error_rate.e_value"] >= done[3]["evidence"]["error_rate.threshold"]
    assert {entry["actor"] for entry in done} == {"ann"}
    last = [event for event in seen if event.kind == "flags.rollout.rolled_back"][-1]
    assert last.fields["audit"] == done[3]["digest"]
    report = verify_audit(path, head=last.fields["audit"])
    assert (report.ok, report.n_entries, report.head) == (True, 4, done[3]["digest"])


def forged(lines, how):
    if how == "changed":
        lines[1] = lines[1].replace(b'"why 1"', b'"why not"')
    elif how == "removed":
        del lines[1]
    elif how == "swapped":
        lines[1], lines[2] = lines[2], lines[1]
    elif how == "repeated":
        lines.insert(2, lines[1])
    elif how == "redigested":
        entry = json.loads(lines[1])
        entry["reason"] = "why not"
        del entry["digest"]
        from mlkit._digest import digest

        lines[1] = json.dumps({**entry, "digest": digest(entry)}).encode() + b"\n"
    elif how == "cut":
        del lines[-1]
    return b"".join(lines)


@pytest.mark.parametrize("how", ["changed", "removed", "swapped", "repeated", "redigested", "cut"])
def test_what_was_forged_is_found(tmp_path, how):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    heads = [audit.append("noted", reason=f"why {n}") for n in range(4)]
    assert verify_audit(path, head=heads[-1]).ok
    path.write_bytes(forged(path.read_bytes().splitlines(keepends=True), how))
    report = verify_audit(path, head=heads[-1])
    assert not report.ok
    assert verify_audit(path).ok is (how == "cut")  # nobody can see that without the head


@pytest.mark.parametrize("size", [1, 40, 10_000])
def test_a_torn_last_line_is_reported_and_the_chain_goes_on(tmp_path, size):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    audit.append("noted", reason="x" * 200_000)
    audit.append("noted", reason="y" * size)
    whole = path.read_bytes()
    for torn in (whole[:-1], whole[: -len(whole.splitlines()[-1]) // 2]):
        path.write_bytes(torn)
        report = verify_audit(path)
        assert report.torn
        assert report.ok
        audit.append("went on")
        report = verify_audit(path)
        assert report.ok
        assert entries_that_read(path)[-1]["n"] == report.n_entries - 1


def entries_that_read(path):
    made = []
    for line in path.read_text().splitlines():
        try:
            made.append(json.loads(line))
        except ValueError:
            continue
    return made


def test_any_reason_is_written_and_any_line_is_read(tmp_path):
    path = tmp_path / "audit.jsonl"
    # As Python names a file whose name is in Latin-1.
    Audit(path).append("killed", reason="no such file: 'mod\udce9l'")
    with path.open("ab") as file:
        file.write(b"[" * 200_000 + b"\n")
    head = Audit(path).append("restored")
    report = verify_audit(path, head=head)
    assert (report.n_entries, report.torn, report.ok) == (2, (2,), True)


def test_processes_that_write_at_once_make_one_chain(tmp_path):
    code = """
        audit = Audit(sys.argv[1], actor=sys.argv[2])
        print("ready", flush=True); sys.stdin.readline()
        for n in range(25):
            audit.append("noted", evidence={"n": n})
    """
    path = tmp_path / "audit.jsonl"
    processes = [start(code, path, f"worker {n}") for n in range(3)]
    for process in processes:
        ready(process)
    go(processes)
    for process in processes:
        finish(process)
    report = verify_audit(path)
    assert (report.ok, report.n_entries, report.torn) == (True, 75, ())


def test_an_entry_that_is_no_data_is_refused(tmp_path):
    audit = Audit(tmp_path / "audit.jsonl")
    with pytest.raises(ValueError, match=r"Audit\.append"):
        audit.append("noted", evidence={"x": object()})
    for wrong in ((3, None), ("x", ""), ("x", 3)):
        with pytest.raises(ValueError, match="Audit"):
            Audit(wrong[0], actor=wrong[1])


# --- evidence of processes that are gone -----------------------------------------------------------------------


def _age(folder, seconds=4000):
    for path in folder.rglob("evidence-*.json"):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def _names(folder):
    return sorted(path.name for path in folder.rglob("evidence-*.json"))


def _saw(rollout, units, *, every=7):
    """Some units with a name, some requests without; too few failures to decide anything."""
    for unit in units:
        bad = unit % every == 0
        rollout.observe("v2" if unit % 2 else "v1", ok=not bad, unit=unit if unit % 3 else None)
    rollout.sync()


def _counts(rollout):
    return {name: value for name, value in rollout.evidence.items() if "threshold" not in name}


def test_evidence_of_the_gone_is_one_file_and_counts_as_before(tmp_path):
    guard = Guard(ErrorRate(max_rate=0.5))
    crowd = [made(tmp_path, guard=guard, steps=[0.5, 1.0])[1] for _ in range(4)]
    crowd[0].advance()
    for index, rollout in enumerate(crowd):
        _saw(rollout, range(index * 30, index * 30 + 60))  # each unit is seen by two
    for rollout in crowd:
        rollout.sync()
    everything = _counts(crowd[0])
    assert len(_names(tmp_path)) == 4
    _age(tmp_path)
    _, after = made(tmp_path, guard=guard, steps=[0.5, 1.0])
    assert _names(tmp_path) == ["evidence-gone.json"]
    assert _counts(after) == pytest.approx(everything)
    for rollout in crowd:  # who is alive after all has seen it already
        rollout.sync()
    assert _counts(crowd[0]) == pytest.approx(everything)
    _saw(crowd[1], range(200, 230))  # and goes on
    after.sync()
    _, last = made(tmp_path, guard=guard, steps=[0.5, 1.0])
    assert _counts(after) == pytest.approx(_counts(crowd[1]))
    assert _counts(after) == pytest.approx(_counts(last))
    assert _counts(after)["error_rate.candidate_n"] == everything["error_rate.candidate_n"] + 15
    _age(tmp_path)
    _, again = made(tmp_path, guard=guard, steps=[0.5, 1.0])
    assert _names(tmp_path) == ["evidence-gone.json"]
    assert _counts(again) == pytest.approx(_counts(last))


def test_restarts_do_not_fill_the_folder(tmp_path):
    guard = Guard(ErrorRate(max_rate=0.5))
    sizes = []
    for _ in range(6):
        _, rollout = made(tmp_path, guard=guard, steps=[0.5, 1.0])
        _saw(rollout, range(50))  # the same units come back
        _age(tmp_path)
        made(tmp_path, guard=guard, steps=[0.5, 1.0])
        assert _names(tmp_path) == ["evidence-gone.json"]
        (path,) = tmp_path.rglob("evidence-gone.json")
        sizes.append(path.stat().st_size)
    assert sizes[-1] - sizes[0] < 5 * 2_500  # a unit is kept once


_NAN = [["a", True, float("nan"), 0.0, 0.0]]
_DAMAGE = {
    "without metrics": {"metrics": {}},
    "a negative number": {"n": -1},
    "a number of 400 digits": {"n": 10**400},
    "a value that is none": {"whole": {"units": _NAN, "loose": []}},
    "a share above 1": {"whole": {"units": [["a", True, 1.0, 2.0, 0.0]], "loose": []}},
    "too many": {"whole": {"units": [], "loose": [[10**400, True, 1.0, 0.0, 0.0]]}},
    "less than nothing": {"whole": {"units": [], "loose": [[-(10**6), True, 1.0, 0.0, 0.0]]}},
    "half of it": {"recent": None},
    "a short tally": {"tally": [[1]]},
    "a tally that is no number": {"tally": [[1, float("nan")], [1, 1.0]]},
    "a tally of text": {"tally": [["a", "b"], ["c", "d"]]},
}


@pytest.mark.parametrize("damage", _DAMAGE.values(), ids=_DAMAGE.keys())
def test_of_evidence_that_is_damaged_nothing_counts(tmp_path, damage):
    _, far = made(tmp_path / "far")
    far.advance()
    far.observe("v2", ok=False, unit="bob")
    state = far.state()
    part = state if damage.keys() <= state.keys() else state["metrics"]["error_rate"]
    part |= damage
    model, rollout = made(tmp_path / "here")
    rollout.advance()
    rollout.observe("v2", ok=True, unit="ann")
    before = rollout.evidence
    with pytest.raises(ConfigurationError, match="the state of an equal guard"):
        rollout.merge(state)
    (own,) = (path for path in (tmp_path / "here").iterdir() if path.is_dir())
    (own / f"evidence-{state['origin']}.json").write_text(json.dumps(state))
    with pytest.warns(DegradedWarning, match="evidence of another process"):
        rollout.sync()
    assert rollout.evidence == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        for unit in range(20):  # the guard still sees what there is to be seen
            rollout.observe("v2", ok=False, unit=unit)
    assert rollout.status == "rolled_back"
    assert model.assign(range(100)).counts() == {"v1": 100}


def test_a_file_that_is_no_evidence_stops_nothing(tmp_path):
    _, rollout = made(tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    (folder / "evidence-zzz.json").write_text("{")
    (folder / "evidence-yyy.json").write_text('{"origin": "yyy"}')
    with pytest.warns(DegradedWarning, match="evidence of another process"):
        rollout.sync()
    _age(tmp_path)
    with pytest.warns(DegradedWarning, match="evidence of another process"):
        _, other = made(tmp_path)
    rollout.advance()
    for unit in range(3):
        other.observe("v2", ok=False, unit=unit)
    other.sync()
    assert other.status == "rolled_back"
