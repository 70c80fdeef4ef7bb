"""`mlkit.flags` as a provider of OpenFeature. Needs its SDK: `pip install 'mlkit-blocks[openfeature]'`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, final

from mlkit._arguments import seconds
from mlkit._clock import current
from mlkit._optional import require
from mlkit.errors import ConfigurationError, DegradedWarning, FlagFileError
from mlkit.flags import Flags
from mlkit.flags._evaluator import Evaluator, thaw
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from openfeature.evaluation_context import EvaluationContext
    from openfeature.event import ProviderEvent, ProviderEventDetails
    from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType
    from openfeature.hook import Hook
    from openfeature.provider import FeatureProvider, Metadata
    from openfeature.track import TrackingEventDetails

    from mlkit.flags import Change, Problem

    Structure = Sequence[FlagValueType] | Mapping[str, FlagValueType]
    OnTrack = Callable[[str, EvaluationContext | None, TrackingEventDetails | None], object]

__all__ = ["Provider"]


@final
class Provider:
    """Lets OpenFeature's SDK ask flags of `mlkit.flags`.

    An evaluation never raises and never waits. It gives the value, variant, reason, error code and metadata (of the
    set and of the flag) of `Flag.details`; on any trouble, for a disabled flag and where the file names no variant, the
    caller's default. Numbers are converted if nothing is lost: 10 is a float and 10.0 an integer, a bool is neither.
    Objects and lists are the caller's own copies. The targeting key is the unit, the other attributes are what rules see.

    Events: `PROVIDER_CONFIGURATION_CHANGED` with the changed keys after each change; `PROVIDER_STALE` when the source
    cannot be read or used any more, while the last good flags go on answering; `PROVIDER_ERROR` if that lasts longer
    than *grace*; `PROVIDER_READY` when it is good again. They come with a look at the source, so from flags that watch
    it or are reloaded.

    Thread-safe. Given flags stay their owner's: `shutdown` ends the events and closes nothing. Flags that the provider
    makes by itself in `initialize` it closes in `shutdown`. A forked child has its parent's flags and answers as it does;
    the SDK's own threads, which run event handlers, do not survive a fork.

    Args:
        flags: The flags, or a function without arguments that makes them. A function is called in `initialize`, where
            time and failures are the SDK's to handle: `api.set_provider` does it in the background.
        hooks: Hooks that the SDK shall run with each evaluation.
        grace: Seconds that a source may fail before that is an error, at least 0.
        on_track: Called with the name, context and details of each tracking event. Without it, an event is only
            reported to `mlkit.telemetry`, as `flags.tracked`, with its name and value.

    Raises:
        ConfigurationError: If an argument is wrong.
        MissingDependencyError: If openfeature-sdk is not installed.

    Examples:
        >>> from openfeature import api
        >>> api.set_provider_and_wait(Provider(Flags.in_memory({"ranker": "v2"})))
        >>> api.get_client().get_string_value("ranker", "v1")
        'v2'
        >>> api.shutdown()
    """

    def __init__(
        self,
        flags: Flags | Callable[[], Flags],
        *,
        hooks: Sequence[Hook] = (),
        grace: float = 5.0,
        on_track: OnTrack | None = None,
    ) -> None:
        if not isinstance(flags, Flags) and not callable(flags):
            raise ConfigurationError(
                "Provider(flags)", flags, "flags, or a function that makes them"
            )
        if on_track is not None and not callable(on_track):
            raise ConfigurationError("Provider(on_track=...)", on_track, "a callable or None")
        self._grace = seconds("Provider(grace=...)", grace, zero=True, endless=True)
        self._sdk = _Sdk()
        self._source, self._hooks, self._on_track = flags, list(hooks), on_track
        self._metadata: Metadata = self._sdk.metadata(name="mlkit")
        self._own: Flags | None = None
        self._evaluator = Evaluator(flags) if isinstance(flags, Flags) else None
        self._stops: list[Callable[[], None]] = []
        self._emit: Callable[[FeatureProvider, ProviderEvent, ProviderEventDetails], None] | None
        self._emit = None
        self._state, self._since = "READY", 0.0

    # --- life cycle ----------------------------------------------------------------------------------------------

    def get_metadata(self) -> Metadata:
        """Return the provider's name, `"mlkit"`."""
        return self._metadata

    def get_provider_hooks(self) -> list[Hook]:
        """Return the hooks it was made with."""
        return self._hooks

    def attach(
        self, on_emit: Callable[[FeatureProvider, ProviderEvent, ProviderEventDetails], None]
    ) -> None:
        """Take the function that events are given to; the SDK calls this.

        Args:
            on_emit: A callable of the provider, the event and its details.
        """
        self._emit = on_emit

    def detach(self) -> None:
        """Give events to nobody any more; the SDK calls this."""
        self._emit = None

    def initialize(self, evaluation_context: EvaluationContext, domain: str | None = None) -> None:
        """Make the flags, if a function was given for that, and begin with the events.

        Args:
            evaluation_context: The global context; it is not used, as each evaluation brings its own.
            domain: The domain that the provider is bound to, for an SDK that tells it; it answers all alike.

        Raises:
            GeneralError: If there are no flags to be had now.
            ProviderFatalError: If there never will be.
        """
        del evaluation_context, domain
        self.shutdown()
        flags = self._source
        if not isinstance(flags, Flags):
            make: Callable[[], object] = flags
            try:
                made = make()
            except FlagFileError as error:
                raise self._sdk.exception.GeneralError(str(error)) from error
            except ConfigurationError as error:
                raise self._sdk.exception.ProviderFatalError(str(error)) from error
            if not isinstance(made, Flags):
                reason = f"Provider(flags) gave no flags but {type(made).__name__}"
                raise self._sdk.exception.ProviderFatalError(reason)
            flags = self._own = made
        self._evaluator = Evaluator(flags)
        self._state = "READY"
        self._stops = [flags.on_change(self._changed), self._evaluator.observe(self._looked)]

    def shutdown(self) -> None:
        """End the events, and close the flags if they are the provider's own; it may be called more than once."""
        stops, self._stops = self._stops, []
        for stop in stops:
            stop()
        own, self._own = self._own, None
        if own is not None:
            self._evaluator = None
            own.close()

    # --- events --------------------------------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        keys = list(change.keys)
        self._send("PROVIDER_CONFIGURATION_CHANGED", flags_changed=keys)

    def _looked(self, problem: Problem | None) -> None:
        now = current().monotonic()
        if problem is None:
            if self._state != "READY":
                self._state = "READY"
                self._send("PROVIDER_READY")
            return
        if self._state == "READY":
            self._state, self._since = "STALE", now
            self._send("PROVIDER_STALE", message=problem.message)
        if self._state == "STALE" and now - self._since >= self._grace:
            self._state = "ERROR"
            code = self._sdk.codes["GENERAL"]
            self._send("PROVIDER_ERROR", message=problem.message, error_code=code)

    def _send(self, event: str, **details: Any) -> None:
        send = self._emit
        if send is not None:
            send(self, self._sdk.event.ProviderEvent[event], self._sdk.event_details(**details))

    # --- evaluation ----------------------------------------------------------------------------------------------

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,  # noqa: FBT001 - the SDK's signature
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        """Return the value of a flag that is true or false.

        Args:
            flag_key: The flag.
            default_value: What to give where the flag has nothing to say.
            evaluation_context: Whom to decide for, and what rules may ask.
        """
        return self._resolve("bool", flag_key, default_value, evaluation_context)

    async def resolve_boolean_details_async(
        self,
        flag_key: str,
        default_value: bool,  # noqa: FBT001 - the SDK's signature
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        """As `resolve_boolean_details`, which never waits.

        Args:
            flag_key: The flag.
            default_value: As there.
            evaluation_context: As there.
        """
        return self._resolve("bool", flag_key, default_value, evaluation_context)

    def resolve_string_details(
        self,
        flag_key: str,
        default_value: str,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[str]:
        """Return the value of a flag that is text.

        Args:
            flag_key: The flag.
            default_value: As for `resolve_boolean_details`.
            evaluation_context: As there.
        """
        return self._resolve("str", flag_key, default_value, evaluation_context)

    async def resolve_string_details_async(
        self,
        flag_key: str,
        default_value: str,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[str]:
        """As `resolve_string_details`, which never waits.

        Args:
            flag_key: The flag.
            default_value: As for `resolve_boolean_details`.
            evaluation_context: As there.
        """
        return self._resolve("str", flag_key, default_value, evaluation_context)

    def resolve_integer_details(
        self,
        flag_key: str,
        default_value: int,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[int]:
        """Return the value of a flag that is a whole number.

        Args:
            flag_key: The flag.
            default_value: As for `resolve_boolean_details`.
            evaluation_context: As there.
        """
        return self._resolve("int", flag_key, default_value, evaluation_context)

    async def resolve_integer_details_async(
        self,
        flag_key: str,
        default_value: int,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[int]:
        """As `resolve_integer_details`, which never waits.

        Args:
            flag_key: The flag.
            default_value: As for `resolve_boolean_details`.
            evaluation_context: As there.
        """
        return self._resolve("int", flag_key, default_value, evaluation_context)

    def resolve_float_details(
        self,
        flag_key: str,
        default_value: float,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[float]:
        """Return the value of a flag that is a number, as a float.

        Args:
            flag_key: The flag.
            default_value: As for `resolve_boolean_details`.
            evaluation_context: As there.
        """
        return self._resolve("float", flag_key, default_value, evaluation_context)

    async def resolve_float_details_async(
        self,
        flag_key: str,
        default_value: float,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[float]:
        """As `resolve_float_details`, which never waits.

        Args:
            flag_key: The flag.
            default_value: As for `resolve_boolean_details`.
            evaluation_context: As there.
        """
        return self._resolve("float", flag_key, default_value, evaluation_context)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Structure,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Structure]:
        """Return the value of a flag that is an object or a list: a copy of the caller's own.

        Args:
            flag_key: The flag.
            default_value: As for `resolve_boolean_details`.
            evaluation_context: As there.
        """
        return self._resolve("json", flag_key, default_value, evaluation_context)

    async def resolve_object_details_async(
        self,
        flag_key: str,
        default_value: Structure,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Structure]:
        """As `resolve_object_details`, which never waits.

        Args:
            flag_key: The flag.
            default_value: As for `resolve_boolean_details`.
            evaluation_context: As there.
        """
        return self._resolve("json", flag_key, default_value, evaluation_context)

    def _resolve(
        self, kind: str, key: str, default: Any, context: EvaluationContext | None
    ) -> FlagResolutionDetails[Any]:
        sdk, evaluator = self._sdk, self._evaluator
        if evaluator is None:
            code = sdk.codes["PROVIDER_NOT_READY"]
            return sdk.details(default, code, "initialize was not called, or failed", sdk.error)
        if context is None:
            answer = evaluator.details(key, kind, None, {})
        else:
            answer = evaluator.details(key, kind, context.targeting_key, context.attributes)
        value, variant, reason, error, message, _, metadata = answer
        if error is not None:
            return sdk.details(default, sdk.codes[error], message, sdk.error, None, dict(metadata))
        if value is None:
            value = default
        elif kind == "json":
            value = thaw(value)
        return sdk.details(
            value, None, None, sdk.reasons.get(reason, reason), variant, dict(metadata)
        )

    # --- tracking ------------------------------------------------------------------------------------------------

    def track(
        self,
        tracking_event_name: str,
        evaluation_context: EvaluationContext | None = None,
        tracking_event_details: TrackingEventDetails | None = None,
    ) -> None:
        """Pass a tracking event on; a failure of `on_track` is reported as a `DegradedWarning`.

        Args:
            tracking_event_name: What happened.
            evaluation_context: To whom.
            tracking_event_details: A value and further facts.
        """
        value = None if tracking_event_details is None else tracking_event_details.value
        emit("flags.tracked", tracking_event_name, value=value)
        if self._on_track is None:
            return
        try:
            self._on_track(tracking_event_name, evaluation_context, tracking_event_details)
        except Exception as error:  # noqa: BLE001 - tracking must not break what it tracks
            message = f"Provider(on_track=...) failed: {type(error).__name__}: {error}"
            warnings.warn(message, DegradedWarning, stacklevel=2)

    def __repr__(self) -> str:
        return f"<Provider of {self._own or self._source!r}>"


@final
class _Sdk:
    """The names of the SDK that are needed, looked up once: importing this module needs no SDK."""

    def __init__(self) -> None:
        def part(name: str) -> Any:
            return require(f"openfeature.{name}", extra="openfeature", feature="Provider")

        evaluation, self.exception, self.event = (
            part("flag_evaluation"),
            part("exception"),
            part("event"),
        )
        self.metadata: Any = part("provider").Metadata
        self.details: Callable[..., FlagResolutionDetails[Any]] = evaluation.FlagResolutionDetails
        self.event_details: Any = self.event.ProviderEventDetails
        self.error = evaluation.Reason.ERROR
        self.reasons: dict[str, Any] = {reason.value: reason for reason in evaluation.Reason}
        self.codes: dict[str, Any] = {code.value: code for code in self.exception.ErrorCode}
