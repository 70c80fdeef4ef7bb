"""The store that is wrapped: made when it is needed first, and asked only while it answers."""

from __future__ import annotations

import contextvars
import os
import re
import ssl
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar, final

from mlkit._clock import current
from mlkit._suggest import clip
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LET_GO_TAG", "RUN_TAG", "Backend", "is_ours"]

T = TypeVar("T")

RUN_TAG = "mlkit.run_id"
LET_GO_TAG = "mlkit.let_go"  # of a run that goes on though its process has ended
_PREFIX = "mlkit+"
_OURS = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_ANSWER_WITHIN = 2.0
_CREATE_WITHIN = 60.0  # seconds; what is late is made though nobody waits for it any more
_UP_FOR, _DOWN_FOR = 2.0, 5.0  # seconds for which an answer about the server's health holds


def is_ours(run_id: object) -> bool:
    """Return whether an id was given by us; MLflow's own are 32 hexadecimal digits."""
    return isinstance(run_id, str) and _OURS.fullmatch(run_id) is not None


@final
class Backend:
    """The store behind `mlkit+`, its health, and the ids that it has given to our runs.

    Thread-safe.

    Args:
        uri: The address, with `mlkit+`.
        artifact_uri: Where artifacts go, for a database.
    """

    def __init__(self, uri: str, artifact_uri: str | None = None) -> None:
        self.uri = uri.removeprefix(_PREFIX)
        if not uri.startswith(_PREFIX) or "://" not in self.uri:
            raise ConfigurationError(
                "mlflow.set_tracking_uri(uri)", uri, "an address such as 'mlkit+http://host:5000'"
            )
        self._artifact_uri = artifact_uri
        self._lock = threading.Lock()
        self._store: Any = None
        self._checked = -1e9
        self._trouble = ""
        self._theirs: dict[str, str] = {}
        self._ours: dict[str, str] = {}
        if self.is_http:
            # MLflow's own patience is minutes; here it would be the user's, in calls that cannot be journalled.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

    @property
    def is_http(self) -> bool:
        """Whether it is a server."""
        return self.uri.startswith(("http:", "https:"))

    @property
    def store(self) -> Any:
        """MLflow's own store of the address."""
        with self._lock:
            if self._store is None:
                self._store = self._make()
            return self._store

    def _make(self) -> Any:
        from mlflow.tracking._tracking_service.utils import _get_store

        from mlkit.integrations.mlflow._files import alone

        for _ in range(10):
            try:
                with alone(self.uri):
                    return _get_store(self.uri, self._artifact_uri)
            except Exception as error:
                # Two processes that find an empty database both make its tables.
                if self.is_http or "already exists" not in str(error):
                    raise
                current().sleep(0.5)
        return _get_store(self.uri, self._artifact_uri)

    def is_up(self) -> bool:
        """Return whether the server answers; a database always does."""
        if not self.is_http:
            return True
        now = current().monotonic()
        if now - self._checked >= (_DOWN_FOR if self._trouble else _UP_FOR):
            self._trouble = self._ask()
            self._checked = current().monotonic()
        return not self._trouble

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the store.

        Raises:
            MlflowException: If the server does not answer, or whatever the store raises.
        """
        return self.guard(name, lambda: getattr(self.store, name)(*args, **kwargs))

    def guard(self, what: str, call: Callable[[], T]) -> T:
        """Do *call*, which needs the server.

        Raises:
            MlflowException: If the server does not answer, or whatever the call raises.
        """
        from mlflow.exceptions import MlflowException

        if not self.is_up():
            raise self._away(what)
        try:
            return call()
        except MlflowException:
            self._checked = -1e9  # it may have died since it was asked
            raise

    def within(self, seconds: float, what: str, call: Callable[[], T]) -> T:
        """Do *call* as `guard` does, but come back after some seconds though a server hangs in the middle of it.

        Raises:
            MlflowException: If the server does not answer in time, or whatever the call raises.
        """
        if not self.is_http:
            return self.guard(what, call)
        done: Future[T] = Future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                done.set_result(context.run(self.guard, what, call))
            except Exception as error:  # noqa: BLE001 - it is the caller's to raise
                done.set_exception(error)

        # Left alone when it takes too long; the requests in it give up by themselves.
        threading.Thread(target=work, name="mlkit-mlflow", daemon=True).start()
        try:
            return done.result(seconds)
        except TimeoutError:
            if done.done():
                raise
            self._trouble = f"no answer within {seconds:g} s"
            self._checked = current().monotonic()
        raise self._away(what)

    def attempt(self, what: str, call: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """Do *call*, or, if the server does not answer, or stops answering on the way, *otherwise*.

        Raises:
            MlflowException: Whatever the call raises though the server answers.
        """
        from mlflow.exceptions import MlflowException

        if self.is_up():
            try:
                return self.guard(what, call)
            except MlflowException:
                if self.is_up():
                    raise
        return otherwise()

    def learn(self, ours: str, theirs: str) -> None:
        """Remember which run of MLflow is one of ours."""
        self._theirs[ours], self._ours[theirs] = theirs, ours

    def find(self, run_id: str, *, fresh: bool = False) -> str | None:
        """Return MLflow's id of a run, or None if it has none of ours with that id.

        Args:
            run_id: Our id, or MLflow's own.
            fresh: Whether to ask again, also if it is known.

        Raises:
            MlflowException: If the server does not answer.
        """
        if not is_ours(run_id):
            return run_id
        if run_id not in self._theirs or fresh:
            found = self.search(f"tags.`{RUN_TAG}` = '{run_id}'")
            if found is None:
                return None
            self.learn(run_id, found)
        return self._theirs[run_id]

    def create(self, endpoint: str, content: dict[str, Any]) -> dict[str, Any]:
        """Have a server make something, and ask it once only.

        MLflow's client repeats a request whose answer was lost, and whatever that had made is there twice then. Who calls this
        looks for it first.

        Raises:
            MlflowException: If the server does not answer, or refuses.
        """
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request, verify_rest_response

        path = f"/api/2.0/mlflow/{endpoint}"

        def ask() -> Any:
            answer = http_request(
                get_default_host_creds(self.uri),
                path,
                "POST",
                json={key: one for key, one in content.items() if one is not None},
                max_retries=0,
                retry_codes=(),
                timeout=_CREATE_WITHIN,
                raise_on_status=False,
            )
            return verify_rest_response(answer, path).json()

        found: dict[str, Any] = self.guard(endpoint, ask)
        return found

    def search(self, condition: str) -> str | None:
        """Return the id of a run, the first one if there are several."""
        from mlflow.entities import ViewType

        runs = self.call(
            "search_runs", self.experiment_ids(), condition, ViewType.ALL, max_results=10
        )
        return min((str(run.info.run_id) for run in runs), default=None)

    def experiment_ids(self) -> list[str]:
        """Return the ids of all experiments, also of deleted ones."""
        from mlflow.entities import ViewType

        found: list[str] = []
        token = None
        while True:
            page = self.call(
                "search_experiments", view_type=ViewType.ALL, max_results=1000, page_token=token
            )
            found += [one.experiment_id for one in page]
            token = page.token
            if not token:
                return found

    def ours(self, run_id: str | None, tags: dict[str, str] | None = None) -> str | None:
        """Return the id under which a run of MLflow is known here: ours if it is one, else its own.

        Args:
            run_id: MLflow's id.
            tags: The run's tags, if they are at hand.
        """
        if run_id is None or is_ours(run_id):
            return run_id
        if run_id not in self._ours:
            if tags is None:
                try:
                    tags = self.call("get_run", run_id).data.tags
                except Exception:  # noqa: BLE001 - deleted for good, say
                    return run_id
            ours = (tags or {}).get(RUN_TAG, run_id)
            if ours == run_id:
                self._ours[run_id] = run_id
            else:
                self.learn(ours, run_id)
        return self._ours[run_id]

    def location(self, uri: str) -> str:
        """Return an artifact location that does not depend on the tracking address being one of MLflow's own."""
        if not self.is_http or not uri.startswith("mlflow-artifacts:"):
            return uri
        from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

        return str(MlflowArtifactsRepository.resolve_uri(uri, self.uri))

    def _away(self, what: str) -> Exception:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

        error: Exception = MlflowException(
            f"{clip(_shown(self.uri))} does not answer ({self._trouble}), and {what!r} cannot be done without it. What is "
            "logged to runs goes into the journal meanwhile and is delivered later.",
            error_code=TEMPORARILY_UNAVAILABLE,
        )
        return error

    def _ask(self) -> str:
        """Return why the server cannot be asked, or nothing.

        Its page `/health` says nothing about its database, so a question of the interface is put that is cheap.
        """
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        try:
            answer = http_request(
                get_default_host_creds(self.uri),
                "/api/2.0/mlflow/experiments/get",
                "GET",
                params={"experiment_id": "0"},
                max_retries=0,
                retry_codes=(),
                timeout=_ANSWER_WITHIN,
                raise_on_status=False,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody answers
            return _cause(error)
        status = int(answer.status_code)
        if status == 429 or status >= 500:
            return f"status {status}"
        if status in {401, 403}:
            return ""  # the call itself says it better
        try:
            return (
                ""
                if isinstance(answer.json(), dict)
                else f"status {status} and no answer of MLflow"
            )
        except ValueError:
            return f"status {status} and no answer of MLflow"


def _shown(uri: str) -> str:
    """Return an address without what may be a password."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _cause(error: BaseException) -> str:
    """Return what has kept an answer away, of which MLflow's own error tells at great length."""
    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(below)
    for one in chain:
        if isinstance(one, ssl.SSLError):
            return f"TLS: {clip(str(one), 200)}; see MLFLOW_TRACKING_SERVER_CERT_PATH"
        if isinstance(one, TimeoutError):
            return f"no answer within {_ANSWER_WITHIN:g} s"
    return f"{type(chain[-1]).__name__}: {clip(str(chain[-1]), 120)}"
