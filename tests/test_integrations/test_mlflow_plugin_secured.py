"""The MLflow plug-in before a server that wants TLS and a password, that traces are sent to, and that goes and comes back."""

from __future__ import annotations

import base64
import datetime as dt
import importlib.util
import ipaddress
import shutil
import ssl
import sys
import time
import warnings
from pathlib import Path

import pytest

from mlkit.integrations import mlflow_plugin
from mlkit.tracking import find_runs

mlflow = pytest.importorskip("mlflow")
from mlflow.exceptions import MlflowException  # noqa: E402

_spec = importlib.util.spec_from_file_location(
    "mlkit_tests_plugin", Path(__file__).with_name("test_mlflow_plugin.py")
)
plugin = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plugin)
pytestmark = plugin.pytestmark
_clean = plugin._clean
servers = plugin.servers
ask_again, delivered, use = plugin.ask_again, plugin.delivered, plugin.use


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate for 127.0.0.1 that its own key has signed, and the key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    day = dt.timedelta(days=1)
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def secured(servers, certificate, monkeypatch):
    """A real server behind TLS that asks who is there."""
    faults = sys.modules["mlkit_tests_faults"]

    class Guarded(faults.Handler):
        def answer(self) -> None:
            if self.headers.get("Authorization") in self.server.welcome:
                super().answer()
            else:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.say(401, b"who are you?")

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    proxy = servers.proxy("secured", "refuse")
    proxy.RequestHandlerClass = Guarded
    proxy.welcome = {
        "Bearer a token",
        "Basic " + base64.b64encode(b"ada:enchantress").decode(),
    }
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    proxy.socket = context.wrap_socket(
        proxy.socket, server_side=True, do_handshake_on_connect=False
    )
    for name in ("TOKEN", "USERNAME", "PASSWORD", "SERVER_CERT_PATH", "INSECURE_TLS"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    proxy.heal()
    mlflow.set_tracking_uri(f"mlkit+https://127.0.0.1:{proxy.server_port}")
    return proxy


def log(name: str) -> str:
    mlflow.set_experiment("secured")
    with mlflow.start_run(run_name=name) as run:
        mlflow.log_metric("loss", 0.5, step=3)
        mlflow.log_text("kept", "deep/note.txt")
    return run.info.run_id


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("how", ["token", "password", "insecure"])
def test_a_server_behind_tls_that_asks_for_a_password(
    secured, servers, certificate, monkeypatch, how
):
    if how == "insecure":
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    if how == "password":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "enchantress")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a token")
    run_id = log(how)
    delivered()
    there = servers.stored("secured", run_id)
    assert there.points == [("loss", 3, 0.5)]
    assert there.files == {"deep/note.txt": b"kept"}
    # What MLflow alone has is asked over the same connection.
    assert mlflow.search_runs(filter_string=f"run_name = '{how}'")["run_id"].tolist() == [run_id]
    folder = find_runs("runs")[0]
    for part in ("artifacts", "journal"):
        shutil.rmtree(folder / part)
    (folder / "artifacts").mkdir()
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/deep/note.txt") == "kept"


def test_a_certificate_nobody_vouches_for_is_told_and_loses_nothing(
    secured, servers, certificate, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a token")
    run_id = log("unvouched")  # as while the server is away
    with pytest.raises(MlflowException, match="certificate"):
        mlflow.search_runs(search_all_experiments=True)
    assert mlflow_plugin.flush(0).pending
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    ask_again()
    delivered()
    assert servers.stored("secured", run_id).points == [("loss", 3, 0.5)]


def test_a_password_that_is_refused_is_told_and_loses_nothing(
    secured, servers, certificate, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "an old token")
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 0.25)
    with pytest.raises(MlflowException, match="401"):
        mlflow.search_runs(search_all_experiments=True)
    left = mlflow_plugin.flush(3.0)
    assert left.pending
    assert not left.dead_lettered
    assert "401" in left.reason
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a token")
    delivered()
    assert servers.stored("secured", run.info.run_id).points == [("loss", 0, 0.25)]


@pytest.fixture
def traced():
    """A function that is traced, and how long its calls take."""

    @mlflow.trace
    def double(number: int) -> int:
        return 2 * number

    def call(n_calls: int) -> float:
        longest = 0.0
        for number in range(n_calls):
            start = time.perf_counter()
            assert double(number) == 2 * number
            longest = max(longest, time.perf_counter() - start)
        return longest

    yield call
    mlflow.flush_trace_async_logging()
    mlflow.tracing.reset()


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_traced_function_neither_fails_nor_waits_for_a_server_that_hangs(
    servers, traced, monkeypatch, asynchronous
):
    from mlkit.integrations.mlflow_plugin import _backend, _store

    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", asynchronous)
    proxy = servers.proxy("traced")
    use(proxy)
    mlflow.set_experiment(f"traced {asynchronous}")
    experiment = mlflow.get_experiment_by_name(f"traced {asynchronous}").experiment_id
    with mlflow.start_run() as run:
        traced(1)
        before = mlflow.get_last_active_trace_id()
        mlflow.flush_trace_async_logging()
        proxy.mode = "hang"
        with monkeypatch.context() as impatient:
            impatient.setattr(_store, "_TRACE", 1.0)
            impatient.setattr(_backend, "_ANSWER_WITHIN", 1.0)
            longest = traced(20)
            start = time.perf_counter()
            mlflow.flush_trace_async_logging()  # what the end of the interpreter does
            longest = max(longest, time.perf_counter() - start)
    assert longest < 20  # a second or two, and MLflow's own waits for more than a minute
    proxy.mode = "ok"
    proxy.healed.set()
    ask_again()
    traced(1)
    after = mlflow.get_last_active_trace_id()
    mlflow.flush_trace_async_logging()
    found = mlflow.search_traces(locations=[experiment], return_type="list")
    assert {before, after} <= {one.info.trace_id for one in found}
    # MLflow has them of the run that it knows by another id.
    delivered()
    theirs = servers.stored("traced", run.info.run_id).id
    for uri, run_id in (
        (mlflow.get_tracking_uri(), run.info.run_id),
        (f"http://127.0.0.1:{proxy.server_port}", theirs),
    ):
        mlflow.set_tracking_uri(uri)
        found = mlflow.search_traces(locations=[experiment], run_id=run_id, return_type="list")
        told = {one.info.trace_id: one.info.trace_metadata for one in found}
        assert told[before]["mlflow.sourceRun"] == run_id
        assert after not in told


def test_an_answer_that_is_lost_makes_no_second_run_and_no_second_model(servers, tmp_path):
    faults = sys.modules["mlkit_tests_faults"]

    class Forgetful(faults.Handler):
        def answer(self) -> None:
            makes = self.path.endswith(("/runs/create", "/mlflow/logged-models"))
            first = makes and self.command == "POST" and self.path not in self.server.lost
            if first and self.server.mode == "ok":
                self.server.lost.add(self.path)
                self.server.mode = "drop"  # it is done, and nobody hears of it
                super().answer()
                self.server.mode = "ok"
            else:
                super().answer()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    proxy = servers.proxy("lost")
    proxy.RequestHandlerClass, proxy.lost = Forgetful, set()
    use(proxy)
    experiment = mlflow.set_experiment("lost").experiment_id
    proxy.mode = "500"
    ask_again()
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 0.5, step=1)
        model = client.create_logged_model(experiment, "m", source_run_id=run.info.run_id)
        (tmp_path / "weights").write_text("w")
        client.log_model_artifact(model.model_id, str(tmp_path / "weights"))
        client.finalize_logged_model(model.model_id, "READY")
    proxy.mode = "ok"
    ask_again()
    delivered()
    there = servers.stored("lost", run.info.run_id)  # which says so if there are two
    plain = mlflow.MlflowClient(f"http://127.0.0.1:{proxy.server_port}")
    (made,) = plain.search_logged_models([experiment])
    assert (made.source_run_id, str(made.status)) == (there.id, "READY")
    assert [one.path for one in plain.list_logged_model_artifacts(made.model_id)] == ["weights"]
    assert proxy.lost == {"/api/2.0/mlflow/runs/create", "/api/2.0/mlflow/logged-models"}


def test_autologging_of_sklearn_while_the_server_dies_and_comes_back(servers):
    from sklearn.linear_model import Ridge

    proxy = servers.proxy("sklearn-dies")
    use(proxy)
    mlflow.set_experiment("sklearn")
    mlflow.sklearn.autolog(silent=True, log_input_examples=False)
    run_ids = []
    try:
        for fit in range(2):
            if fit == 1:
                servers.kill("sklearn-dies")
            with mlflow.start_run() as run:
                Ridge(alpha=fit + 1).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
            run_ids.append(run.info.run_id)
    finally:
        mlflow.sklearn.autolog(disable=True)
    servers.start("sklearn-dies")
    ask_again()
    delivered()
    client = mlflow.MlflowClient(f"http://127.0.0.1:{proxy.server_port}")
    for fit, run_id in enumerate(run_ids):
        there = servers.stored("sklearn-dies", run_id)
        assert (there.status, there.params["alpha"]) == ("FINISHED", str(fit + 1))
        assert {key for key, *_ in there.points} >= {"training_score", "training_r2_score"}
        (output,) = client.get_run(there.id).outputs.model_outputs
        model = client.get_logged_model(output.model_id)
        assert (str(model.status), model.params["alpha"]) == ("READY", str(fit + 1))
        assert "MLmodel" in {one.path for one in client.list_logged_model_artifacts(model.model_id)}


def test_autologging_of_lightning_while_the_server_dies_and_comes_back(servers, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
    import torch

    proxy = servers.proxy("lightning-dies")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 1)

        def training_step(self, batch, index):
            if index == 0 and self.current_epoch == 1:
                servers.kill("lightning-dies")
            if index == 0 and self.current_epoch == 2:
                servers.start("lightning-dies")
            loss = self.linear(batch[0]).square().mean()
            self.log("loss", loss, on_epoch=True, on_step=False)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    use(proxy)
    mlflow.set_experiment("lightning")
    rows = torch.utils.data.TensorDataset(torch.ones(8, 2))
    mlflow.pytorch.autolog(log_models=False, checkpoint_save_best_only=False, silent=True)
    try:
        with mlflow.start_run() as run, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(
                max_epochs=3, logger=False, enable_progress_bar=False, accelerator="cpu",
                enable_model_summary=False, enable_checkpointing=True, default_root_dir=tmp_path,
            )  # fmt: skip
            trainer.fit(Model(), torch.utils.data.DataLoader(rows, batch_size=4))
    finally:
        mlflow.pytorch.autolog(disable=True)
    delivered()
    there = servers.stored("lightning-dies", run.info.run_id)
    assert [step for key, step, _ in there.points if key == "loss"] == [0, 1, 2]
    assert (there.status, there.params["optimizer_name"]) == ("FINISHED", "SGD")
    assert len([name for name in there.files if name.endswith(".pth")]) == 3
