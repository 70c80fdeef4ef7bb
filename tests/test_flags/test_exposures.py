"""Exposures: once for each unit and variant, the same id everywhere, and never the unit itself."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from mlkit.errors import ConfigurationError, DegradedWarning
from mlkit.flags import Flags
from mlkit.telemetry import collect, listen
from mlkit.testing import record_events

FLAG = {
    "state": "ENABLED",
    "variants": {"v1": "m:/1", "v2": "m:/2"},
    "defaultVariant": "v1",
    "targeting": {"fractional": [["v1", 1], ["v2", 1]]},
}
DOCUMENT = {"flags": {"m": FLAG, "fixed": {**FLAG, "targeting": {}}}}
SECRET = b"0123456789abcdef"


@pytest.fixture
def flags():
    return Flags.from_dict(DOCUMENT)


def said(flags, work, **options):
    """Return the events while *work* runs."""
    with record_events("flags.flag.exposed") as events, flags.record_exposures(**options):
        work()
    return events


def test_nothing_is_said_unless_it_was_asked_for(flags):
    model = flags.model("m", default="v1")
    assert said(flags, lambda: None) == []
    with record_events("flags.flag.exposed") as events:
        model("ann")
    assert events == []


@pytest.mark.parametrize("key", ["m", "fixed"])
def test_a_unit_is_said_once_however_it_is_asked(flags, key):
    model = flags.model(key, default="v1")

    def work():
        for _ in range(3):
            model("ann"), model.details("ann"), model.assign(["ann"] * 20), model.assign(["ann"])

    (event,) = said(flags, work)
    assert event.name == key
    assert event.fields["variant"] == model.details("ann").variant
    assert event.fields["reason"] == model.details("ann").reason
    assert len(event.fields["id"]) == 32


def test_every_unit_is_said_and_as_the_vectorised_answer_has_it(flags):
    import numpy as np

    model = flags.model("m", default="v1")
    one = said(flags, lambda: [model(n) for n in range(200)])
    many = said(flags, lambda: model.assign(np.arange(200)))
    assert len({event.fields["id"] for event in one}) == 200
    assert [event.fields for event in one] == [event.fields for event in many]


def test_the_id_is_the_same_in_every_process_and_for_every_other_flag_of_the_file(flags):
    code = f"""
from mlkit.flags import Flags
from mlkit.telemetry import listen
flags = Flags.from_dict({ {"flags": {"m": FLAG}}!r})
listen(lambda event: print(event.fields.get("id"), end=""))
flags.record_exposures()
flags.model("m", default="v1")("ann")
"""
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (here,) = said(flags, lambda: flags.model("m", default="v1")("ann"))
    assert there.stdout.removeprefix("None") == here.fields["id"]


def test_a_changed_definition_is_another_exposure_and_another_flag_is_not(flags):
    model = flags.model("m", default="v1")

    def work():
        model("ann")
        flags.replace({"flags": {**DOCUMENT["flags"], "more": FLAG}})
        model("ann")
        flags.replace({"flags": {"m": {**FLAG, "metadata": {"owner": "ranking"}}}})
        model("ann")

    one, two = said(flags, work)
    assert one.fields["id"] != two.fields["id"]
    assert one.fields["digest"] != two.fields["digest"]


def test_what_is_no_exposure_is_not_said(flags):
    model, absent = flags.model("m", default="v1"), flags.model("gone", default="v1")

    def work():
        model(), model(None), absent("ann"), model(1.5), model(object())
        with flags.override({"m": "v2"}):
            model("ann")
        flags.replace({"flags": {"m": {**FLAG, "state": "DISABLED"}}})
        model("ann")

    assert said(flags, work) == []


def test_a_unit_is_never_in_an_event_but_its_keyed_hash_may_be(flags):
    model = flags.model("m", default="v1")
    unit = "ann@example.org"
    (plain,) = said(flags, lambda: model(unit))
    (keyed,) = said(flags, lambda: model(unit), secret=SECRET)
    (other,) = said(flags, lambda: model(unit), secret=SECRET[::-1])
    assert "unit" not in plain.fields
    assert len({event.fields["id"] for event in (plain, keyed, other)}) == 3
    assert keyed.fields["unit"] != other.fields["unit"]
    assert "ann" not in json.dumps([dict(event.fields) for event in (plain, keyed, other)])
    two = flags.model("fixed", default="v1")
    events = said(flags, lambda: (model(unit), two(unit)), secret=SECRET)
    assert len({event.fields["unit"] for event in events}) == 1  # what flags are joined by


def test_memory_is_bounded_and_what_is_forgotten_has_its_old_id(flags):
    model = flags.model("m", default="v1")

    def work():
        for _ in range(2):
            for n in range(100):
                model(n)

    events = said(flags, work, max_units=10)
    assert len(events) == 200
    assert len({event.fields["id"] for event in events}) == 100
    assert len(said(flags, work, max_units=100)) == 100

    def hot():
        for n in range(500):
            model(n), model("hot")

    assert (
        sum(1 for event in said(flags, hot, max_units=50)) == 501
    )  # who is in use is not forgotten


def test_threads_that_ask_at_once_say_it_once(flags):
    model, barrier, events = flags.model("m", default="v1"), threading.Barrier(8), []

    def work():
        barrier.wait()
        for n in range(300):
            model(n)

    with listen(events.append), flags.record_exposures():
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len([one for one in events if one.kind == "flags.flag.exposed"]) == 300


def test_a_listener_that_fails_changes_no_answer(flags):
    model = flags.model("m", default="v1")
    with flags.record_exposures() as exposures, listen(lambda _: 1 / 0, scope="context"):
        with pytest.warns(DegradedWarning):
            assert model.details("ann").error is None
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert model.details("bob").error is None
    assert exposures.total == 2


def test_it_is_counted_and_ends(flags):
    model = flags.model("m", default="v1")
    first = flags.record_exposures()
    second = flags.record_exposures()
    model("ann")
    first.close()  # it is no longer the one
    model("bob")
    second.close()
    second.close()
    model("cem")
    assert (first.total, second.total) == (0, 2)
    totals = [one.value for one in collect() if one.name == "flags_exposures_total"]
    assert sum(totals) >= 2


@pytest.mark.parametrize(
    "options",
    [{"max_units": 0}, {"max_units": 1.5}, {"secret": "text"}, {"secret": b"short"}, {"secret": b"x" * 65}],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_are_refused(flags, options):
    with pytest.raises(ConfigurationError) as caught:
        flags.record_exposures(**options)
    assert "short" not in str(caught.value)
