"""The same calls on MLflow's own store and through the plug-in: equal answers, equal errors, an equal store afterwards."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from mlkit.integrations import mlflow_plugin

mlflow = pytest.importorskip("mlflow")
from mlflow.entities import (  # noqa: E402
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunStatus,
    RunTag,
    ViewType,
)
from mlflow.store.entities.paged_list import PagedList  # noqa: E402

_spec = importlib.util.spec_from_file_location(
    "mlkit_tests_plugin", Path(__file__).with_name("test_mlflow_plugin.py")
)
plugin = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plugin)
pytestmark = plugin.pytestmark
_clean, template = plugin._clean, plugin.template

_ID = re.compile(r"\b(?:\d{8}-\d{6}-[0-9a-f]{8}|(?:m-|tr-|a-|d-)?[0-9a-f]{32})\b")
_NAME = re.compile(r"\b[a-z]+-[a-z]+-\d{1,3}\b")  # those that MLflow makes up
_NOT_SAME = {"artifact_uri", "artifact_location", "artifact_path", "span_id", "digest"}


class Answers:
    """What calls gave, in a form that does not depend on ids, clocks and places."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, object]] = []
        self._ids: dict[str, str] = {}

    def __call__(self, label: str, call):
        try:
            answer = call()
        except Exception as error:
            answer = None
            code = getattr(error, "error_code", None)
            told = self._plain(getattr(error, "message", str(error)))[:200]
            self.rows.append((label, (type(error).__name__, code, told)))
        else:
            self.rows.append((label, self._plain(answer)))
        return answer

    def _plain(self, value):
        if isinstance(value, str):
            return _NAME.sub("<name>", _ID.sub(self._numbered, value))
        if value is None or isinstance(value, (bool, float)):
            return repr(value)
        if isinstance(value, int):
            return "<time>" if 10**12 < value < 2**60 else value
        if isinstance(value, PagedList):
            return [self._plain(one) for one in value], bool(value.token)
        if isinstance(value, (list, tuple, set)):
            return [self._plain(one) for one in value]
        if isinstance(value, dict):
            return {key: self._plain(value[key]) for key in sorted(value) if key not in _NOT_SAME}
        fields = {key.lstrip("_"): one for key, one in vars(value).items()}
        return type(value).__name__, self._plain(fields)

    def _numbered(self, found: re.Match[str]) -> str:
        return self._ids.setdefault(found[0], f"<id {len(self._ids)}>")


def data(name: str, *tags: tuple[str, str]) -> DatasetInput:
    return DatasetInput(Dataset(name, "d", "local", "{}"), [InputTag(*tag) for tag in tags])


def experiments(say, client) -> None:
    made = say("create", lambda: client.create_experiment("a", tags={"t": "1"}))
    for name in ("a", "", None, 123, "x" * 501):
        say(f"create {name!s:.9}", lambda: client.create_experiment(name))
    say("get", lambda: client.get_experiment(made))
    for unknown in ("999", "nope"):
        say(f"get {unknown}", lambda: client.get_experiment(unknown))
        say(f"run in {unknown}", lambda: client.create_run(unknown))
        say(f"delete {unknown}", lambda: client.delete_experiment(unknown))
    say("by name", lambda: client.get_experiment_by_name("a"))
    say("no such name", lambda: client.get_experiment_by_name("z"))
    say("tag", lambda: client.set_experiment_tag(made, "k", "v"))
    say("tag too long", lambda: client.set_experiment_tag(made, "k" * 300, "v"))
    say("rename", lambda: client.rename_experiment(made, "b"))
    say("renamed", lambda: client.get_experiment(made))
    say("search", lambda: client.search_experiments(order_by=["name DESC"]))
    say("page", lambda: client.search_experiments(max_results=1))
    say("no filter", lambda: client.search_experiments(filter_string="foo = 'b'"))
    run_id = client.create_run(made, run_name="r").info.run_id
    say("delete", lambda: client.delete_experiment(made))
    say("deleted", lambda: client.get_experiment(made))
    say("run in deleted", lambda: client.create_run(made))
    say("its run", lambda: client.get_run(run_id).info)
    say("log to its run", lambda: client.log_metric(run_id, "m", 1.0))
    say("name of deleted", lambda: client.create_experiment("b"))
    say("set deleted", lambda: mlflow.set_experiment("b"))
    say("restore", lambda: client.restore_experiment(made))
    say("its run again", lambda: client.get_run(run_id).info)
    say("log again", lambda: client.log_metric(run_id, "m", 1.0, timestamp=1))


RUN_CALLS = {
    "metric": lambda client, run: client.log_metric(run, "a", 1.0),
    "param": lambda client, run: client.log_param(run, "a", 1),
    "tag": lambda client, run: client.set_tag(run, "a", 1),
    "delete tag": lambda client, run: client.delete_tag(run, "a"),
    "batch": lambda client, run: client.log_batch(run, [Metric("a", 1.0, 1, 1)]),
    "inputs": lambda client, run: client.log_inputs(run, [data("x")]),
    "terminate": lambda client, run: client.set_terminated(run),
    "rename": lambda client, run: client.update_run(run, name="t"),
    "start": lambda client, run: mlflow.start_run(run_id=run),
}


def runs(say, client) -> None:
    store = client._tracking_client.store
    made = say("create", lambda: client.create_run("0", 5, {"a": "1", "mlflow.user": "u"}, "r"))
    run_id = made.info.run_id
    for _ in range(2):
        say("get", lambda: client.get_run(run_id))
        say("info", lambda: client.get_run(run_id).info == made.info)
        mlflow_plugin.flush(60)
    say("two names", lambda: client.create_run("0", tags={"mlflow.runName": "q"}, run_name="r"))
    for unknown in ("0" * 32, "no/such run", "", None):
        say(f"get {unknown}", lambda: client.get_run(unknown))
    for what, call in RUN_CALLS.items():
        say(f"{what} of none", lambda: call(client, "0" * 32))
    say("bad id", lambda: client.log_batch("no/such run", [Metric("a", 1.0, 1, 1)]))
    say("end", lambda: client.set_terminated(run_id, "KILLED", end_time=77))
    say("again", lambda: client.set_terminated(run_id))
    say("store", lambda: store.update_run_info(run_id, RunStatus.FINISHED, 99, None))
    say("keep", lambda: store.update_run_info(run_id, None, None, None))
    say("go on", lambda: store.update_run_info(run_id, RunStatus.RUNNING, None, ""))
    say("ended once", lambda: client.get_run(run_id).info)
    say("no status", lambda: client.update_run(run_id, status="NOPE"))
    client.log_param(run_id, "p", "1")
    say("delete", lambda: client.delete_run(run_id))
    say("deleted", lambda: client.get_run(run_id))
    for what, call in RUN_CALLS.items():
        say(f"{what} of deleted", lambda: call(client, run_id))
    for view in (ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY, ViewType.ALL):
        say(f"search {view}", lambda: client.search_runs(["0"], "params.p = '1'", view))
    say("restore", lambda: client.restore_run(run_id))
    say("log again", lambda: client.log_metric(run_id, "m", 2.0, timestamp=4))
    say("restored", lambda: client.get_run(run_id))


KEYS = ("a//b", "/a", "../a", "", "a" * 251, None, 5, "a[b]", "a/b c.d-e_f", "ü", "a:b", "a\nb", "%",
        "of-0123456789ab")  # fmt: skip


def logging(say, client) -> None:
    run_id = client.create_run("0", run_name="x").info.run_id
    store = client._tracking_client.store
    for number, value in enumerate([1, float("nan"), -1e308, 5e-324, 2**60, "x", None, [1]]):
        say(f"value {value}", lambda: client.log_metric(run_id, f"k{number}", value, timestamp=1))
    for key in KEYS:
        say(f"metric {key!s:.9}", lambda: client.log_metric(run_id, key, 1.0, timestamp=1))
        say(f"param {key!s:.9}", lambda: client.log_param(run_id, key, 1))
        say(f"tag {key!s:.9}", lambda: client.set_tag(run_id, key, "1"))
    for moment in ("x", None, -1):
        say(
            f"time {moment}", lambda: store.log_batch(run_id, [Metric("v", 1.0, moment, 0)], [], [])
        )
        say(
            f"step {moment}", lambda: store.log_batch(run_id, [Metric("v", 1.0, 1, moment)], [], [])
        )
    for value in (1, "1", "2", None, {"a": [1]}, ""):
        say(f"param {value}", lambda: client.log_param(run_id, "p", value))
        say(f"tag {value}", lambda: client.set_tag(run_id, "t", value))
    clash = [Param("p", "3"), Param("new", "1")]
    mixed = [Metric("no", 1.0, 1, 1)], clash, [RunTag("no", "1")]
    say("clash", lambda: store.log_batch(run_id, *mixed))
    for second in ("1", "2"):
        pair = [Param("d", "1"), Param("d", second)]
        say(f"twice {second}", lambda: store.log_batch(run_id, [], pair, []))
    say("tags", lambda: store.log_batch(run_id, [], [], [RunTag("d", "1"), RunTag("d", "2")]))
    say("points", lambda: store.log_batch(run_id, [Metric("d", 1.0, 1, 1)] * 2, [], []))
    say("history", lambda: client.get_metric_history(run_id, "d"))
    say("long param", lambda: client.log_param(run_id, "long", "x" * 6001))
    say("long tag", lambda: client.set_tag(run_id, "long", "y" * 9000))
    for n_metrics, n_params, n_tags in ((1001, 0, 0), (0, 101, 0), (0, 0, 101), (999, 1, 1)):
        many = (
            [Metric(f"m{one}", 1.0, 1, 1) for one in range(n_metrics)],
            [Param(f"m{one}", "1") for one in range(n_params)],
            [RunTag(f"m{one}", "1") for one in range(n_tags)],
        )
        say(f"{n_metrics} {n_params} {n_tags}", lambda: store.log_batch(run_id, *many))
    say("no lists", lambda: store.log_batch(run_id, None, None, None))
    for _ in range(2):
        say("untag", lambda: client.delete_tag(run_id, "t"))
    say(
        "later",
        lambda: client.log_batch(run_id, [Metric("l", 1.0, 1, 1)], synchronous=False).wait(),
    )
    for _ in range(2):
        say("all", lambda: client.get_run(run_id).to_dictionary()["data"])
        mlflow_plugin.flush(60)


def histories(say, client) -> None:
    run_id = client.create_run("0", run_name="x").info.run_id
    store = client._tracking_client.store
    nan = float("nan")
    for step, moment, value in ((2, 10, 1.0), (1, 10, 2.0), (1, 10, 1.0), (0, 50, 9.0), (-3, 5, 4.0), (2, 10, nan), (5, 1, nan)):  # fmt: skip
        client.log_metric(run_id, "m", value, timestamp=moment, step=step)
    for _ in range(2):
        say("all", lambda: client.get_metric_history(run_id, "m"))
        say("none", lambda: client.get_metric_history(run_id, "z"))
        first = say("page", lambda: store.get_metric_history(run_id, "m", 3))
        say("next", lambda: store.get_metric_history(run_id, "m", 3, first.token))
        say("no token", lambda: store.get_metric_history(run_id, "m", 3, "zzz"))
        say("bulk", lambda: store.get_metric_history_bulk([run_id], "m", 100))
        say("most", lambda: store.get_max_step_for_metric(run_id, "m"))
        for steps in ((None, None), (0, 3)):
            say(
                f"{steps}", lambda: store.get_metric_history_bulk_interval([run_id], "m", 3, *steps)
            )
        say(
            "steps",
            lambda: store.get_metric_history_bulk_interval_from_steps(run_id, "m", [1, 2], 9),
        )
        say("latest", lambda: client.get_run(run_id))
        mlflow_plugin.flush(60)


FILTERS = (
    "metrics.m > 2", "params.p = '1'", "tags.t = '0'", "attributes.status = 'FINISHED'",
    "run_name LIKE 'r%'", "metrics.m != 3 AND params.p != '1'", "start_time > 3", "tags.no IS NULL",
    "run_id = '{0}'", "attributes.run_id IN ('{0}', '{1}')", "run_id != '{0}'", "x = 1", "params.p = 1",
    "tags.mlflow.parentRunId = '{0}'", "user_id != 'a'", "",
)  # fmt: skip


def searches(say, client) -> None:
    experiment = client.create_experiment("s")
    run_ids: list[str] = []
    for number in range(5):
        tags = {"t": str(number % 2), **({"mlflow.parentRunId": run_ids[0]} if number > 2 else {})}
        run_ids.append(client.create_run(experiment, number, tags, f"r{number}").info.run_id)
        client.log_param(run_ids[-1], "p", number % 3)
        client.log_metric(run_ids[-1], "m", float("nan") if number == 3 else number, timestamp=1)
        client.set_terminated(run_ids[-1], end_time=100 - number)
    for condition in FILTERS:
        text = condition.format(*run_ids)
        say(condition, lambda: client.search_runs([experiment], text))
    for order in ("metrics.m DESC", "params.p", "start_time", "attributes.end_time ASC", "bogus"):
        say(order, lambda: client.search_runs([experiment], order_by=[order]))
    page = say("page", lambda: client.search_runs([experiment], max_results=2))
    say("next", lambda: client.search_runs([experiment], max_results=2, page_token=page.token))
    for n_results in (-1, 50_001):
        say(f"{n_results}", lambda: client.search_runs([experiment], max_results=n_results))
    say("columns", lambda: sorted(mlflow.search_runs([experiment]).columns))
    say("parent", lambda: client.get_parent_run(run_ids[4]).info.run_id == run_ids[0])


def inputs(say, client) -> None:
    experiment = client.create_experiment("i")
    run_id = client.create_run(experiment, run_name="x").info.run_id
    say(
        "log",
        lambda: client.log_inputs(run_id, [data("a", ("mlflow.data.context", "t")), data("b")]),
    )
    say("again", lambda: client.log_inputs(run_id, [data("a", ("x", "y"))]))
    for bad in (data("a" * 600), data("c", ("k" * 300, "v"))):
        say("bad", lambda: client.log_inputs(run_id, [bad]))
    about = {"source_run_id": run_id, "tags": {"a": "b"}, "params": {"p": "1"}, "model_type": "t"}
    model = say("model", lambda: client.create_logged_model(experiment, "mm", **about))
    say("out", lambda: client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 3)]))
    say("in", lambda: client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)]))
    linked = {"model_id": model.model_id, "dataset_name": "a", "dataset_digest": "d"}
    say("metric", lambda: client.log_metric(run_id, "lm", 0.5, timestamp=1, **linked))
    for _ in range(2):
        say("run", lambda: client.get_run(run_id))
        say("history", lambda: client.get_metric_history(run_id, "lm"))
        say("model", lambda: client.get_logged_model(model.model_id))
        mlflow_plugin.flush(60)
    say("ready", lambda: client.finalize_logged_model(model.model_id, "READY"))
    say("tag", lambda: client.set_logged_model_tags(model.model_id, {"z": "1"}))
    for _ in range(2):
        say("untag", lambda: client.delete_logged_model_tag(model.model_id, "z"))
    for condition in ("name = 'mm' AND metrics.lm > 0.1", f"source_run_id = '{run_id}'"):
        say("search", lambda: client.search_logged_models([experiment], condition))
    say("unknown run", lambda: client.create_logged_model(experiment, "k", source_run_id="0" * 32))
    say("none", lambda: client.get_logged_model("m-" + "0" * 32))
    say("delete", lambda: client.delete_logged_model(model.model_id))
    say("deleted", lambda: client.get_logged_model(model.model_id))
    say("no model", lambda: client._tracking_client.store.record_logged_model(run_id, "x"))


def artifacts(say, client) -> None:
    run_id = client.create_run("0", run_name="x").info.run_id
    say("text", lambda: client.log_text(run_id, "t", "d/t.txt"))
    for path in ("../t.txt", "/t.txt", "a/../../t.txt"):
        say(f"text to {path}", lambda: client.log_text(run_id, "t", path))
        say(f"file to {path}", lambda: client.log_artifact(run_id, __file__, path))
    say("no file", lambda: client.log_artifact(run_id, "/no/such/file"))
    say("no folder", lambda: client.log_artifacts(run_id, "/no/such/folder"))
    for _ in range(2):
        for path in (None, "", "d", "d/t.txt", "nope"):
            say(f"list {path}", lambda: client.list_artifacts(run_id, path))
        for path in ("nope.txt", "../x"):
            say(f"get {path}", lambda: type(mlflow.artifacts.load_text(f"runs:/{run_id}/{path}")))
        say("load", lambda: mlflow.artifacts.load_text(f"runs:/{run_id}/d/t.txt"))
        mlflow_plugin.flush(60)


def registry(say, client) -> None:
    run_id = client.create_run("0", run_name="x").info.run_id
    client.log_text(run_id, "m", "model/MLmodel")
    say("create", lambda: client.create_registered_model("M", {"a": "1"}, "d"))
    say("again", lambda: client.create_registered_model("M"))
    made = say(
        "version", lambda: client.create_model_version("M", f"runs:/{run_id}/model", run_id).version
    )
    say("its run", lambda: client.get_model_version("M", made).run_id == run_id)
    say("alias", lambda: client.set_registered_model_alias("M", "best", made))
    say("aliased", lambda: client.get_model_version_by_alias("M", "best").run_id == run_id)
    say("of run", lambda: len(client.search_model_versions(f"run_id = '{run_id}'")))
    say(
        "models",
        lambda: [
            one.latest_versions[0].run_id == run_id for one in client.search_registered_models()
        ],
    )
    say("copy", lambda: client.copy_model_version("models:/M/1", "N").run_id == run_id)
    made = client.create_logged_model("0", "mm", run_id)
    about = {"source": f"models:/{made.model_id}", "model_id": made.model_id}
    say("of model", lambda: client.create_model_version("M", **about).run_id == run_id)
    say("and of run", lambda: len(client.search_model_versions(f"run_id = '{run_id}'")))
    say("none", lambda: client.get_model_version("M", "9"))
    say("fluent", lambda: mlflow.register_model(f"runs:/{run_id}/model", "P").version)


def others(say, client) -> None:
    store, experiment = client._tracking_client.store, client.create_experiment("o")
    run_id = client.create_run(experiment).info.run_id
    say("archival", lambda: store.supports_trace_archival)
    say("workspaces", lambda: store.supports_workspaces)
    say(
        "issue",
        lambda: (
            store.create_issue(experiment, "n", "d", source_run_id=run_id).source_run_id == run_id
        ),
    )
    say("secrets", lambda: store.list_secret_infos())
    say("endpoints", lambda: store.list_gateway_endpoints())
    say("servers", lambda: store.create_mcp_server("io.example/s").name)
    say("scorer", lambda: store.register_scorer(experiment, "s", "{}").scorer_version)
    say("datasets", lambda: store.search_datasets([experiment]))
    with mlflow.start_run(run_id=run_id):
        mlflow.trace(lambda: 1, name="f")()
    mlflow.flush_trace_async_logging()
    traces = {"locations": [experiment], "return_type": "list"}
    (trace,) = mlflow.search_traces(run_id=run_id, **traces)
    say("of run", lambda: trace.info.trace_metadata["mlflow.sourceRun"] == run_id)
    condition = f"metadata.`mlflow.sourceRun` = '{run_id}'"
    say("filter", lambda: len(mlflow.search_traces(filter_string=condition, **traces)))
    say("unlink", lambda: client.unlink_traces_from_run([trace.info.trace_id], run_id))
    say(
        "feedback",
        lambda: mlflow.log_feedback(trace_id=trace.info.trace_id, name="q", value=1.0).name,
    )


SCRIPTS = (experiments, runs, logging, histories, searches, inputs, artifacts, registry, others)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_the_same_calls_give_the_same_answers(template, tmp_path, script):
    answers = {}
    for scheme in ("", "mlkit+"):
        database = tmp_path / f"{scheme}mlflow.db"
        shutil.copy(template, database)
        mlflow.set_tracking_uri(f"{scheme}sqlite:///{database}")
        answers[scheme] = Answers()
        script(answers[scheme], mlflow.MlflowClient())
        while mlflow.active_run():
            mlflow.end_run()
    delivered = mlflow_plugin.flush(60)
    assert (delivered.pending, delivered.dead_lettered) == (0, 0), delivered
    for plain, ours in zip(answers[""].rows, answers["mlkit+"].rows, strict=True):
        assert ours == plain
    assert len(answers[""].rows) > 10
