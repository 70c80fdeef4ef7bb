"""The official SDK drives the provider: the specification's numbered requirements, and flagd's answers."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from datetime import UTC, datetime

import pytest
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEvent
from openfeature.exception import ErrorCode, GeneralError, ProviderFatalError
from openfeature.flag_evaluation import FlagEvaluationOptions, Reason
from openfeature.hook import Hook
from openfeature.provider import ProviderStatus
from openfeature.track import TrackingEventDetails
from openfeature.transaction_context import (
    ContextVarsTransactionContextPropagator,
    clear_transaction_context_propagator,
    set_transaction_context,
    set_transaction_context_propagator,
)

from mlkit.errors import ConfigurationError, DegradedWarning
from mlkit.flags import Flags
from mlkit.integrations.openfeature import Provider
from mlkit.testing import record_events, virtual_time

TEMPLATE = {"showImages": True, "title": "Check out these pics!", "imagesPerPage": 100}
IS_BALLMER = {"==": ["ballmer@macrosoft.com", {"var": ["email"]}]}


def flag(default, variants, **more):
    return {"state": "ENABLED", "variants": variants, "defaultVariant": default, **more}


def targeted(variants):
    return flag("zero", variants, targeting={"if": [{"$ref": "is_ballmer"}, "zero"]})


DOCUMENT = {
    "$evaluators": {"is_ballmer": IS_BALLMER},
    "metadata": {"set": "s", "string": "overridden"},
    "flags": {
        "boolean-flag": flag("on", {"on": True, "off": False}),
        "string-flag": flag("greeting", {"greeting": "hi", "parting": "bye"}),
        "integer-flag": flag("ten", {"one": 1, "ten": 10}),
        "float-flag": flag("half", {"tenth": 0.1, "half": 0.5}),
        "integral-float-flag": flag("ten", {"ten": 10.0}),
        "huge-integer-flag": flag("max", {"max": 2**53 - 1}),
        "object-flag": flag("template", {"empty": {}, "template": TEMPLATE}),
        "list-flag": flag("some", {"none": [], "some": [1, {"a": [2]}]}),
        "boolean-zero-flag": flag("zero", {"zero": False, "other": True}),
        "string-zero-flag": flag("zero", {"zero": "", "other": "str"}),
        "integer-zero-flag": flag("zero", {"zero": 0, "other": 1}),
        "float-zero-flag": flag("zero", {"zero": 0.0, "other": 1.0}),
        "object-zero-flag": flag("zero", {"zero": {}, "other": TEMPLATE}),
        "boolean-targeted-zero-flag": targeted({"zero": False, "other": True}),
        "string-targeted-zero-flag": targeted({"zero": "", "other": "str"}),
        "integer-targeted-zero-flag": targeted({"zero": 0, "other": 1}),
        "float-targeted-zero-flag": targeted({"zero": 0.0, "other": 1.0}),
        "object-targeted-zero-flag": targeted({"zero": {}, "other": TEMPLATE}),
        "null-default-flag": flag(None, {"on": True, "off": False}),
        "disabled-flag": flag("on", {"on": True, "off": False}, state="DISABLED"),
        "disabled-object-flag": flag("on", {"on": TEMPLATE}, state="DISABLED"),
        "wrong-flag": flag("one", {"one": "uno", "two": "dos"}),
        "metadata-flag": flag("on", {"on": True}, metadata={"string": "a", "integer": 1, "float": 1.2, "boolean": True}),
        "targeting-key-flag": flag("miss", {"miss": "miss", "hit": "hit"}, targeting={"if": [{"==": [{"var": "targetingKey"}, "5c3d"]}, "hit", None]}),
        "split-flag": flag("a", {"a": "a", "b": "b"}, targeting={"fractional": [["a", 50], ["b", 50]]}),
        "nested-flag": flag("no", {"no": "no", "yes": "yes"}, targeting={"if": [{"==": [{"var": "user.tags.1.name"}, "x"]}, "yes"]}),
        "date-flag": flag("no", {"no": "no", "yes": "yes"}, targeting={"if": [{"starts_with": [{"var": "when"}, "2026-01-02T03"]}, "yes"]}),
        "missing-variant-flag": flag("one", {"one": 1}, targeting={"if": [True, "three"]}),
        "error-targeting-flag": flag("one", {"one": 1}, targeting={"invalid": ["not a rule"]}),
        "context-aware": flag("external", {"internal": "INTERNAL", "external": "EXTERNAL"}, targeting={"if": [{"and": [
            {"==": [{"var": ["fn"]}, "Sulisław"]}, {"==": [{"var": ["age"]}, 29]}, {"==": [{"var": ["customer"]}, False]}]}, "internal", "external"]}),
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _clean_api():
    yield
    api.shutdown()
    api.clear_providers()
    api.clear_hooks()
    api.set_evaluation_context(EvaluationContext())
    clear_transaction_context_propagator()


@pytest.fixture
def client():
    api.set_provider_and_wait(Provider(Flags.from_dict(DOCUMENT)))
    return api.get_client()


TYPES = {
    "boolean": (bool, False, True),
    "string": (str, "bye", "x"),
    "integer": (int, 1, 2),
    "float": (float, 0.1, 0.2),
    "object": (dict, {"a": 1}, {"b": 2}),
}


def ask(client, kind, key, default, *args):
    """Ask in all four ways, which must agree, and return the details."""
    details = getattr(client, f"get_{kind}_details")(key, default, *args)
    later = asyncio.run(getattr(client, f"get_{kind}_details_async")(key, default, *args))
    assert details == later
    assert getattr(client, f"get_{kind}_value")(key, default, *args) == details.value
    assert type(later.value) is type(details.value)
    return details


@pytest.mark.parametrize(
    ("kind", "key", "value", "variant"),
    [
        ("boolean", "boolean-flag", True, "on"),
        ("string", "string-flag", "hi", "greeting"),
        ("integer", "integer-flag", 10, "ten"),
        ("float", "float-flag", 0.5, "half"),
        ("object", "object-flag", TEMPLATE, "template"),
        ("object", "list-flag", [1, {"a": [2]}], "some"),
        ("boolean", "boolean-zero-flag", False, "zero"),
        ("string", "string-zero-flag", "", "zero"),
        ("integer", "integer-zero-flag", 0, "zero"),
        ("float", "float-zero-flag", 0.0, "zero"),
        ("object", "object-zero-flag", {}, "zero"),
        ("integer", "huge-integer-flag", 2**53 - 1, "max"),
        ("float", "integer-flag", 10.0, "ten"),
        ("float", "integral-float-flag", 10.0, "ten"),
        ("integer", "integral-float-flag", 10, "ten"),
    ],
)
def test_a_static_flag_gives_its_default_variant(client, kind, key, value, variant):
    """2.2.3, 2.2.4, 2.2.5, 2.2.6, 2.3.2."""
    details = ask(client, kind, key, TYPES[kind][1])
    assert (details.value, details.variant, details.reason) == (value, variant, Reason.STATIC)
    assert type(details.value) is type(value)
    assert (details.error_code, details.error_message) == (None, None)
    assert details.flag_key == key


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("email", "reason"),
    [
        ("ballmer@macrosoft.com", Reason.TARGETING_MATCH),
        ("ballmer@none.com", Reason.DEFAULT),
        (None, Reason.DEFAULT),
    ],
)
def test_a_rule_decides(client, kind, email, reason):
    zero = {"boolean": False, "string": "", "integer": 0, "float": 0.0, "object": {}}[kind]
    context = EvaluationContext(attributes={"email": email})
    details = ask(client, kind, f"{kind}-targeted-zero-flag", TYPES[kind][2], context)
    assert (details.value, details.variant, details.reason) == (zero, "zero", reason)


@pytest.mark.parametrize("kind", TYPES)
def test_a_flag_that_is_not_there(client, kind):
    """2.2.7: an error code, and the caller's default."""
    details = ask(client, kind, "missing-flag", TYPES[kind][1])
    assert (details.value, details.variant, details.reason) == (TYPES[kind][1], None, Reason.ERROR)
    assert details.error_code is ErrorCode.FLAG_NOT_FOUND
    assert "missing-flag" in details.error_message


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (kind, f"{other}-flag")
        for kind in TYPES
        for other in TYPES
        if kind != other and (kind, other) != ("float", "integer")
    ],
)
def test_a_flag_of_another_type(client, kind, key):
    """A bool is no number, 0.5 no integer, nothing is text that is not."""
    details = ask(client, kind, key, TYPES[kind][1])
    assert (details.value, details.reason) == (TYPES[kind][1], Reason.ERROR)
    assert details.error_code is ErrorCode.TYPE_MISMATCH


@pytest.mark.parametrize("default", [True, False])
def test_without_a_default_variant_the_caller_decides(client, default):
    details = ask(client, "boolean", "null-default-flag", default)
    assert (details.value, details.variant, details.reason) == (default, None, Reason.DEFAULT)
    assert details.error_code is None


def test_a_disabled_flag_gives_the_callers_default(client):
    details = ask(client, "boolean", "disabled-flag", False)
    assert (details.value, details.variant, details.reason) == (False, None, Reason.DISABLED)
    assert details.error_code is None
    assert ask(client, "object", "disabled-object-flag", {"x": 1}).value == {"x": 1}


@pytest.mark.parametrize(
    ("kind", "key", "code"),
    [
        ("integer", "error-targeting-flag", ErrorCode.PARSE_ERROR),
        ("integer", "missing-variant-flag", ErrorCode.GENERAL),
    ],
)
def test_a_rule_that_fails(client, kind, key, code):
    details = ask(client, kind, key, 3)
    assert (details.value, details.reason, details.error_code) == (3, Reason.ERROR, code)


@pytest.mark.parametrize("key", [None, 7, "", ["a"], "\ud800", "a" * 10_000])
def test_a_key_that_is_none_raises_nothing(client, key):
    details = client.get_boolean_details(key, False)
    assert (details.value, details.reason) == (False, Reason.ERROR)
    assert details.error_code in {ErrorCode.FLAG_NOT_FOUND, ErrorCode.INVALID_CONTEXT}


def test_keys_that_callers_make_up_are_not_remembered():
    from mlkit import telemetry

    provider = Provider(Flags.from_dict(DOCUMENT))
    for n in range(100):
        provider.resolve_boolean_details(f"made-up-{n}", False)
    assert not [sample for sample in telemetry.collect() if "made-up" in str(sample)]


def test_asking_for_another_type_leaves_handles_and_overrides_alone():
    flags = Flags.from_dict(DOCUMENT)
    provider = Provider(flags)
    provider.resolve_integer_details("string-flag", 1)
    with flags.override({"string-flag": "text"}):
        assert provider.resolve_string_details("string-flag", "").value == "text"
        assert provider.resolve_string_details("string-flag", "").reason == "OVERRIDE"
    handle = flags.str("string-flag", default="")
    provider.resolve_object_details("string-flag", {})
    with flags.override({"string-flag": "text"}):
        assert handle() == "text"


def test_metadata_of_the_set_and_the_flag(client):
    """2.2.9, 2.2.10; the flag's own wins."""
    details = client.get_boolean_details("metadata-flag", False)
    assert details.flag_metadata == {
        "set": "s",
        "string": "a",
        "integer": 1,
        "float": 1.2,
        "boolean": True,
    }
    assert client.get_boolean_details("boolean-flag", False).flag_metadata == {
        "set": "s",
        "string": "overridden",
    }
    details.flag_metadata["set"] = "changed"
    assert client.get_boolean_details("metadata-flag", False).flag_metadata["set"] == "s"
    api.set_provider_and_wait(Provider(Flags.in_memory({"f": True})))
    assert client.get_boolean_details("f", False).flag_metadata == {}


def test_an_object_is_the_callers_own(client):
    first = client.get_object_value("list-flag", [])
    first[1]["a"].append("mine")
    first.clear()
    assert client.get_object_value("list-flag", []) == [1, {"a": [2]}]


def test_context(client):
    def value(key, *args):
        return client.get_string_value(key, "none", EvaluationContext(*args))

    assert value("targeting-key-flag", "5c3d") == "hit"
    assert value("targeting-key-flag", "other") == "miss"
    assert (
        value("targeting-key-flag", None, {"targetingKey": "5c3d"}) == "miss"
    )  # as flagd: the key is the key
    assert value("nested-flag", None, {"user": {"tags": [{}, {"name": "x"}]}}) == "yes"
    assert value("date-flag", None, {"when": datetime(2026, 1, 2, 3, 4, tzinfo=UTC)}) == "yes"
    assert (
        value("context-aware", None, {"fn": "Sulisław", "age": 29, "customer": False}) == "INTERNAL"
    )
    assert value("context-aware") == "EXTERNAL"
    assert value("split-flag", "user-1") in {"a", "b"}
    attributes = {"fn": "x"}
    value("context-aware", "unit", attributes)
    assert attributes == {"fn": "x"}


def test_a_split_is_a_targeting_match_as_for_flagd(client):
    details = client.get_string_details("split-flag", "", EvaluationContext("user-1"))
    assert details.reason == Reason.TARGETING_MATCH
    details = client.get_string_details("split-flag", "")
    assert (details.value, details.reason) == ("a", Reason.DEFAULT)  # nobody to place


@pytest.mark.parametrize(
    "context",
    [EvaluationContext(object()), EvaluationContext(attributes=3), EvaluationContext(3.5)],
    ids=["object", "attributes", "number"],
)
def test_a_context_that_is_none(client, context):
    provider = (
        api.get_client().provider
    )  # the SDK itself stumbles over attributes that are no mapping
    details = provider.resolve_string_details("targeting-key-flag", "fallback", context)
    assert (details.value, details.error_code) == ("fallback", ErrorCode.INVALID_CONTEXT)


def test_an_attribute_that_is_no_data(client):
    context = EvaluationContext(attributes={"fn": object()})
    details = client.get_string_details("context-aware", "fallback", context)
    assert (details.value, details.error_code) == ("fallback", ErrorCode.INVALID_CONTEXT)


def test_contexts_merge(client):
    """3.2.3: API, transaction, client, invocation, hooks; later ones win."""

    class Enrich(Hook):
        def before(self, hook_context, hints):
            return EvaluationContext(attributes={"customer": False})

    api.set_evaluation_context(EvaluationContext(attributes={"fn": "Sulisław", "age": 1}))
    set_transaction_context_propagator(ContextVarsTransactionContextPropagator())
    set_transaction_context(EvaluationContext(attributes={"age": 29}))
    api.set_provider_and_wait(Provider(Flags.from_dict(DOCUMENT), hooks=[Enrich()]))
    assert client.get_string_value("context-aware", "") == "INTERNAL"
    wrong = EvaluationContext(attributes={"age": 30})
    assert client.get_string_value("context-aware", "", wrong) == "EXTERNAL"


def test_domains_have_their_own_flags(client):
    """1.1.3: a provider may be bound to a domain; clients of no known domain get the default one."""
    seen = []
    api.set_provider_and_wait(Provider(other := Flags.in_memory({"boolean-flag": False})), "trial")
    trial, unknown = api.get_client("trial"), api.get_client("nobody")
    answers = [one.get_boolean_value("boolean-flag", False) for one in (client, trial, unknown)]
    assert answers == [True, False, True]
    for one in (client, trial):
        name = one.domain
        one.add_handler(
            ProviderEvent.PROVIDER_CONFIGURATION_CHANGED,
            lambda details, name=name: seen.append((name, details.flags_changed)),
        )
    other.replace({"flags": {}})
    until(lambda: seen)
    assert seen == [("trial", ["boolean-flag"])]


def test_hooks_see_all_stages(client):
    seen = []

    class Note(Hook):
        def before(self, hook_context, hints):
            seen.append(("before", hook_context.provider_metadata.name))

        def after(self, hook_context, details, hints):
            seen.append(("after", details.variant))

        def error(self, hook_context, exception, hints):
            seen.append(("error", type(exception).__name__))

        def finally_after(self, hook_context, details, hints):
            seen.append(("finally", details.reason))

    api.set_provider_and_wait(Provider(Flags.from_dict(DOCUMENT), hooks=[Note()]))
    client.get_boolean_value("boolean-flag", False)
    client.get_boolean_value("missing", False, None, FlagEvaluationOptions())
    assert seen == [
        ("before", "mlkit"), ("after", "on"), ("finally", Reason.STATIC),
        ("before", "mlkit"), ("error", "FlagNotFoundError"), ("finally", Reason.ERROR),
    ]  # fmt: skip


# --- life cycle ------------------------------------------------------------------------------------------------------


def test_the_provider_has_a_name():
    """2.1.1."""
    assert Provider(Flags.in_memory()).get_metadata().name == "mlkit"
    assert Provider(Flags.in_memory()).get_provider_hooks() == []


def test_given_flags_are_ready_at_once_and_stay_open(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(DOCUMENT))
    flags = Flags.from_file(path, watch=True, interval=0.005)
    provider = Provider(flags)
    assert provider.resolve_boolean_details("boolean-flag", False).value is True
    api.set_provider_and_wait(provider)
    api.shutdown()
    provider.shutdown()
    document = json.loads(json.dumps(DOCUMENT))
    document["flags"]["boolean-flag"]["defaultVariant"] = "off"
    path.write_text(json.dumps(document))
    until(lambda: flags.bool("boolean-flag", default=True)() is False)
    flags.close()


def test_flags_of_its_own_are_made_in_initialize_and_closed_in_shutdown(tmp_path):
    """2.4.1, 2.5.1, 2.5.2."""
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(DOCUMENT))
    provider = Provider(lambda: Flags.from_file(path, watch=True, interval=0.005))
    for _ in range(2):
        before = provider.resolve_boolean_details("boolean-flag", False)
        assert (before.value, before.error_code) == (False, ErrorCode.PROVIDER_NOT_READY)
        api.set_provider_and_wait(provider)
        client = api.get_client()
        assert client.get_provider_status() is ProviderStatus.READY
        assert client.get_boolean_value("boolean-flag", False) is True
        api.shutdown()
        after = provider.resolve_boolean_details("boolean-flag", False)
        assert after.error_code is ErrorCode.PROVIDER_NOT_READY
        until(lambda: not any(thread.name == "mlkit-flags" for thread in threading.enumerate()))


def test_an_sdk_may_tell_the_domain():
    provider = Provider(lambda: Flags.in_memory({"ranker": "v2"}))
    provider.initialize(EvaluationContext(), domain="search")
    assert provider.resolve_string_details("ranker", "v1").value == "v2"
    provider.shutdown()


def test_a_provider_that_cannot_begin_says_so(tmp_path):
    """2.4.2.1, 5.3.2, 5.1.4."""
    provider = Provider(lambda: Flags.from_file(tmp_path / "absent.json"))
    events = Events()
    api.add_handler(ProviderEvent.PROVIDER_ERROR, events)
    with pytest.raises(GeneralError):
        api.set_provider_and_wait(provider)
    (event,) = events.wait(1)
    assert "absent.json" in event.message
    assert event.provider_name == "mlkit"
    client = api.get_client()
    assert client.get_provider_status() is ProviderStatus.ERROR
    details = client.get_boolean_details("boolean-flag", False)
    assert (details.value, details.error_code) == (False, ErrorCode.PROVIDER_NOT_READY)
    api.remove_handler(ProviderEvent.PROVIDER_ERROR, events)


@pytest.mark.parametrize(
    "make", [lambda: Flags.from_url("ftp://x"), lambda: {"flags": {}}], ids=["wrong", "none"]
)
def test_a_provider_that_never_will_is_fatal(make):
    with pytest.raises(ProviderFatalError):
        api.set_provider_and_wait(Provider(make))
    details = api.get_client().get_boolean_details("boolean-flag", False)
    assert details.error_code is ErrorCode.PROVIDER_FATAL


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((None,), {}),
        (({"flags": {}},), {}),
        ((Flags.in_memory(),), {"grace": -1}),
        ((Flags.in_memory(),), {"on_track": 3}),
    ],
    ids=["nothing", "document", "grace", "track"],
)
def test_arguments_are_checked(args, options):
    with pytest.raises(ConfigurationError, match="Provider"):
        Provider(*args, **options)


# --- events ----------------------------------------------------------------------------------------------------------


class Events(list):
    def __call__(self, details):
        self.append(details)

    def wait(self, n):
        until(lambda: len(self) >= n)
        return self


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_change_is_an_event_with_its_keys(client):
    """5.1.1, 5.1.2, 5.1.3."""
    flags, other = Flags.in_memory({"a": 1, "b": 1}), Flags.in_memory({"c": 1})
    api.set_provider_and_wait(Provider(flags))
    api.set_provider_and_wait(Provider(other), domain="other")
    here, there = Events(), Events()
    api.get_client().add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, here)
    api.get_client("other").add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, there)
    document = {"flags": {key: flag("v", {"v": 2}) for key in "bd"}}
    flags.replace(document)
    (event,) = here.wait(1)
    assert event.flags_changed == ["a", "b", "d"]
    assert (
        api.get_client().get_integer_value("d", 0) == 2
    )  # the new flags answer when the event comes
    flags.replace(document)
    other.replace(document)
    assert there.wait(1)[0].flags_changed == ["b", "c", "d"]
    assert len(here) == 1


def test_ready_stale_error_ready(tmp_path):
    """The life of a source that fails and comes back; 1.7.5, 5.1.4, 5.3.1, 5.3.3."""
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(DOCUMENT))
    with virtual_time(autojump=False) as clock:
        flags = Flags.from_file(path)
        api.set_provider_and_wait(Provider(flags, grace=5))
        client = api.get_client()
        events = {event: Events() for event in ProviderEvent}
        for event, noted in events.items():
            client.add_handler(event, noted)
        events[ProviderEvent.PROVIDER_READY].wait(1)

        def look():
            try:
                flags.reload()
            except ValueError:
                pass

        path.write_text("{")
        look()
        (stale,) = events[ProviderEvent.PROVIDER_STALE].wait(1)
        assert "not JSON" in stale.message
        assert client.get_provider_status() is ProviderStatus.STALE
        details = client.get_boolean_details("boolean-flag", False)
        assert (details.value, details.reason) == (True, Reason.STATIC)
        clock.advance(4)
        look()
        assert client.get_provider_status() is ProviderStatus.STALE
        clock.advance(1)
        look()
        look()
        (error,) = events[ProviderEvent.PROVIDER_ERROR].wait(1)
        assert error.error_code is ErrorCode.GENERAL
        assert "not JSON" in error.message
        assert client.get_provider_status() is ProviderStatus.ERROR
        assert (
            client.get_boolean_value("boolean-flag", False) is True
        )  # the last good flags answer on
        path.write_text(json.dumps(DOCUMENT))
        look()
        events[ProviderEvent.PROVIDER_READY].wait(2)
        assert client.get_provider_status() is ProviderStatus.READY
        assert len(events[ProviderEvent.PROVIDER_STALE]) == 1
        assert not events[ProviderEvent.PROVIDER_CONFIGURATION_CHANGED]


def test_events_come_from_the_watcher_and_end_with_shutdown(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(DOCUMENT))
    with Flags.from_file(path, watch=True, interval=0.005) as flags:
        provider = Provider(flags, grace=0)
        api.set_provider_and_wait(provider)
        stale, error, ready = Events(), Events(), Events()
        client = api.get_client()
        client.add_handler(ProviderEvent.PROVIDER_STALE, stale)
        client.add_handler(ProviderEvent.PROVIDER_ERROR, error)
        path.unlink()
        stale.wait(1)
        error.wait(1)
        client.add_handler(ProviderEvent.PROVIDER_READY, ready)
        path.write_text(json.dumps(DOCUMENT))
        ready.wait(1)
        provider.shutdown()
        path.unlink()
        until(lambda: flags.problems)
        time.sleep(0.02)
        assert len(stale) == 1


def test_a_handler_that_fails_stops_no_reload(caplog):
    flags = Flags.in_memory({"a": 1})
    api.set_provider_and_wait(Provider(flags))
    good = Events()
    client = api.get_client()
    client.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, lambda _: 1 / 0)
    client.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, good)
    assert flags.replace({"flags": {}}).removed == ("a",)
    good.wait(1)


# --- tracking --------------------------------------------------------------------------------------------------------


def test_tracking(client):
    """2.7.1."""
    seen = []
    provider = Provider(Flags.in_memory(), on_track=lambda *args: seen.append(args))
    api.set_provider_and_wait(provider)
    with record_events("flags.tracked") as events:
        client.track("bought", EvaluationContext("user-1"), TrackingEventDetails(9.5, {"sku": "x"}))
        client.track("seen")
    assert [(event.name, dict(event.fields)) for event in events] == [
        ("bought", {"value": 9.5}),
        ("seen", {"value": None}),
    ]
    assert seen[0][0] == "bought"
    assert seen[0][1].targeting_key == "user-1"
    assert seen[0][2].attributes == {"sku": "x"}
    provider = Provider(Flags.in_memory(), on_track=lambda *_: 1 / 0)
    with pytest.warns(DegradedWarning, match="on_track"):
        provider.track("bought")


def test_many_threads_and_reloads_never_mix_two_documents():
    """A reload is seen entirely or not at all, through the SDK too."""

    def document(n):
        return {"metadata": {"n": n}, "flags": {"f": flag("v", {"v": n})}}

    flags = Flags.from_dict(document(0))
    api.set_provider_and_wait(Provider(flags))
    client, wrong, done = api.get_client(), [], threading.Event()

    def read():
        while not done.is_set():
            details = client.get_integer_details("f", -1)
            if details.error_code is not None or details.flag_metadata != {"n": details.value}:
                wrong.append(details)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(1, 150):
        flags.replace(document(n))
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
