"""MLflow's registry as a store of versions: the same laws, seen by MLflow's own client too, on a file and a server."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from mlkit.cli import main
from mlkit.errors import (
    AliasConflictError,
    ConfigurationError,
    IntegrityError,
    MissingDependencyError,
    ModelStoreError,
    RebuildError,
    SignatureError,
    StoreUnavailableError,
    UntrustedFormatError,
    VersionNotFoundError,
)
from mlkit.integrations.mlflow_models import MlflowModelStore
from mlkit.models import Evidence, ModelStore, VersionStore, signed_by
from mlkit.testing import VersionStoreContract, VirtualTime

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A migrated database, which costs seconds to make and nothing to copy."""
    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """No progress bars."""
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@pytest.fixture
def place(template, tmp_path) -> Path:
    shutil.copy(template, tmp_path / "mlflow.db")
    return tmp_path


def open_store(place: Path, who: str = "ada") -> MlflowModelStore:
    return MlflowModelStore(f"sqlite:///{place}/mlflow.db", cache=place / "cache", who=who)


def client_of(store: MlflowModelStore):
    return mlflow.MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)


def use(store: MlflowModelStore) -> None:
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)


def artifacts_of(place: Path, name: str) -> list[Path]:
    return sorted((place / "mlartifacts").rglob(name))


class TestContract(VersionStoreContract):
    n_calls = 20

    @pytest.fixture(autouse=True)
    def _database(self, template, tmp_path):
        shutil.copy(template, tmp_path / "mlflow.db")

    def make_store(self, place: Path) -> VersionStore:
        return open_store(place)

    def damage(self, place: Path) -> None:
        shutil.rmtree(place / "cache", ignore_errors=True)
        for path in artifacts_of(place, "weights.*"):
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def test_it_is_a_store(tmp_path):
    assert isinstance(open_store(tmp_path), VersionStore)
    assert list(tmp_path.iterdir()) == []  # building one asks for nothing


class TestMlflowsOwnClient:
    def test_sees_versions_aliases_tags_metrics_and_files(self, place):
        store = open_store(place)
        version = store.save(
            "ranker", {"w": np.ones(3)}, spec={"k": 3}, manifest={"seed": 1},
            signature={"inputs": []}, metrics={"ndcg": 0.61}, tags={"team": "search"}, why="first",
        )  # fmt: skip
        store.promote("ranker", version)
        client = client_of(store)
        seen = client.get_model_version_by_alias("ranker", "champion")
        assert (seen.version, seen.status, seen.description) == (1, "READY", "first")
        assert seen.tags["team"] == "search"
        assert seen.tags["mlkit.digest"] == version.digest
        assert client.get_run(seen.run_id).data.metrics == {"ndcg": 0.61}
        use(store)
        listed = {one.path for one in mlflow.artifacts.list_artifacts("models:/ranker/1")}
        assert listed == {
            "MLmodel", "document.json", "manifest.json", "signature.json", "spec.json",
            "weights.safetensors",
        }  # fmt: skip
        info = mlflow.models.get_model_info("models:/ranker@champion")
        assert info.flavors["mlkit"]["digest"] == version.digest
        # And what it shows is what a folder store would have kept.
        folder = ModelStore(place / "folder")
        same = folder.save(
            "ranker",
            {"w": np.ones(3)},
            spec={"k": 3},
            manifest={"seed": 1},
            signature={"inputs": []},
        )
        assert same.digest == version.digest

    def test_the_files_belong_to_the_run_that_made_it(self, place):
        store = open_store(place)
        client = client_of(store)
        experiment = client.create_experiment(
            "training", artifact_location=(place / "mlartifacts").as_uri()
        )
        ours = client.create_run(experiment, tags={"mlkit.run_id": "run-17"}).info.run_id
        theirs = client.create_run(experiment).info.run_id
        for number, (run, expected) in enumerate(
            [("run-17", ours), (theirs, theirs), ("unknown", None), ("it's", None)], 1
        ):
            assert store.save("ranker", f"{number}".encode(), run=run).run == run
            seen = client.get_model_version("ranker", str(number))
            assert (seen.run_id == expected) if expected else seen.run_id not in (ours, theirs)
            assert store.load(f"ranker@{number}") == f"{number}".encode()

    def test_aliases_that_others_set_are_what_counts(self, place):
        # Whether another writer of ours is about to finish is waited for, in this clock's time.
        clock = VirtualTime()
        store = MlflowModelStore(f"sqlite:///{place}/mlflow.db", cache=place / "cache", clock=clock)
        for content in (b"1", b"2", b"3"):
            store.save("ranker", content)
        store.promote("ranker", 1)
        store.promote("ranker", 2)
        client_of(store).set_registered_model_alias("ranker", "champion", "3")
        assert store.load("ranker@champion") == b"3"
        with pytest.raises(AliasConflictError):
            store.promote("ranker", 1, expect=2)
        change = store.rollback("ranker", why="3 is bad")
        assert (change.previous, change.version) == (3, 2)
        found = store.history("ranker")[-2]
        assert (found.kind, found.previous, found.version) == ("promoted", 2, 3)
        assert (found.who, found.why) == ("not by mlkit", "found at version 3")
        client_of(store).delete_registered_model_alias("ranker", "champion")
        with pytest.raises(VersionNotFoundError):
            store.rollback("ranker")
        assert store.promote("ranker", 3, expect=None).previous is None
        assert [one.kind for one in store.history("ranker")][-2:] == ["alias_removed", "promoted"]

    def test_a_version_that_others_deleted_is_passed_over(self, place):
        store = open_store(place)
        for number in (1, 2, 3):
            store.save("ranker", b"%d" % number)
        for number in (1, 2, 1, 3):
            store.promote("ranker", number)
        before = len(store.history("ranker"))
        client_of(store).delete_model_version("ranker", "2")
        assert store.rollback("ranker").version == 1
        with pytest.raises(VersionNotFoundError, match="no version that still exists"):
            store.rollback("ranker")
        assert store.aliases("ranker") == {"champion": 1}
        assert len(store.history("ranker")) == before + 1

    def test_a_copied_version_is_still_ours(self, place):
        store = open_store(place)
        store.save("ranker", b"1", spec={"a": 1})
        use(store)
        client_of(store).copy_model_version("models:/ranker/1", "prod-ranker")
        copy = store.get("prod-ranker@1")
        assert (copy.digest, copy.spec) == (store.get("ranker@1").digest, {"a": 1})
        assert store.load("prod-ranker@1") == b"1"


class TestTampering:
    def test_every_file_is_checked_and_named(self, place):
        store = open_store(place)
        store.save("ranker", {"w": np.zeros(9)}, spec={"k": 3})
        for name in ("document.json", "weights.safetensors"):
            (path,) = artifacts_of(place, name)
            whole = path.read_bytes()
            path.chmod(0o644)
            shutil.rmtree(place / "cache", ignore_errors=True)
            path.write_bytes(whole[:-1] + b"!")
            with pytest.raises(IntegrityError, match=name):
                store.load("ranker@1")
            path.unlink()
            shutil.rmtree(place / "cache")
            with pytest.raises(IntegrityError, match=name):
                store.load("ranker@1")
            path.write_bytes(whole)
            assert store.load("ranker@1")["w"].sum() == 0

    def test_a_damaged_cache_heals(self, place):
        store = open_store(place)
        store.save("ranker", b"x" * 100)
        store.load("ranker@1")
        for path in (place / "cache").rglob("*"):
            if path.is_file():
                path.chmod(0o644)
                path.write_bytes(b"y" * 100)
        assert store.load("ranker@1") == b"x" * 100

    def test_tags_decide_nothing(self, place):
        store = open_store(place)
        version = store.save("ranker", b"1", metrics={"a": 1.0})
        client = client_of(store)
        client.set_model_version_tag("ranker", "1", "mlkit.digest", "sha256:" + "0" * 64)
        assert store.get("ranker@1").digest == version.digest
        client.delete_model_version_tag("ranker", "1", "mlkit.facts")
        assert store.load("ranker@1") == b"1"
        client.set_model_version_tag("ranker", "1", "mlkit.facts", "not json")
        with pytest.raises(IntegrityError, match=r"mlkit\.facts"):
            store.get("ranker@1")

    def test_mlflow_keeps_the_history_as_it_was_written(self, place):
        store = open_store(place)
        store.save("ranker", b"1")
        store.promote("ranker", 1, why="go")
        client = client_of(store)
        experiment = client.get_experiment_by_name("mlkit-models/ranker")
        (run,) = client.search_runs([experiment.experiment_id], "tags.`mlkit.history` = 'ranker'")
        assert set(run.data.params) == {"mlkit.change.000001", "mlkit.change.000002"}
        with pytest.raises(mlflow.MlflowException, match="not allowed"):
            client.log_param(run.info.run_id, "mlkit.change.000002", "nothing happened")
        client.log_param(run.info.run_id, "mlkit.change.000004", "{}")
        with pytest.raises(IntegrityError, match=r"mlkit\.change\.000004"):
            open_store(place).history("ranker")
        client.delete_experiment(experiment.experiment_id)
        with pytest.raises(ModelStoreError, match="was deleted in MLflow"):
            open_store(place).history("ranker")

    def test_evidence_of_any_length_is_kept(self, place):
        store = open_store(place)
        store.save("ranker", b"1")

        def check(_version):
            return Evidence(
                passed=True, why="w" * 300, facts={f"fact {i}": "é" * 99 for i in range(40)}
            )

        change = store.promote("ranker", 1, checks=[check] * 8, why="y" * 1000)
        assert open_store(place).history("ranker")[-1] == change
        assert len(change.evidence) == 8


class TestTravels:
    def test_between_a_folder_and_mlflow_and_back(self, place):
        folder, store = ModelStore(place / "folder", who="bob"), open_store(place)
        version = folder.save("ranker", {"w": np.ones(3)}, spec={"k": 3}, metrics={"ndcg": 0.6})
        store.save("ranker", b"another")
        there = store.import_(folder.export("ranker@1", place / "one.tar"), why="ship it")
        assert (there.ref, there.digest, there.who) == ("ranker@2", version.digest, "bob")
        assert there.metrics == version.metrics
        assert store.load("ranker@2")["w"].tolist() == [1, 1, 1]
        change = store.history("ranker")[-1]
        assert (change.kind, change.version, change.who, change.why) == (
            "imported", 2, "ada", "ship it",
        )  # fmt: skip
        shutil.rmtree(place / "cache")
        back = ModelStore(place / "other").import_(store.export("ranker@2", place / "two"))
        assert (back.ref, back.digest) == ("ranker@2", version.digest)
        assert ModelStore(place / "other").load(back)["w"].tolist() == [1, 1, 1]

    def test_all_is_verified_at_its_source(self, place):
        store = open_store(place)
        for name in ("a", "b"):
            store.save(name, name.encode() * 50)
            store.load(f"{name}@1")  # the cache is whole
        assert store.verify() == (2, 4, ())
        (path,) = (p for p in artifacts_of(place, "weights.bin") if p.read_bytes()[:1] == b"b")
        path.write_bytes(b"c" * 50)
        (broken,) = store.verify().broken
        assert broken.ref == "b@1"
        assert broken.file.endswith("weights.bin")
        assert store.verify("a").broken == ()


class TestSignatures:
    @pytest.fixture
    def key(self):
        return pytest.importorskip(
            "cryptography.hazmat.primitives.asymmetric.ed25519"
        ).Ed25519PrivateKey.generate()

    def test_a_store_gives_out_what_is_signed_and_nothing_else(self, place, key):
        theirs = open_store(place)
        theirs.save("ranker", b"1", metrics={"a": 0.1 + 0.2}, tags={"t": "é"}, sign=key)
        theirs.save("ranker", b"2")
        ours = signed_by(key.public_key())
        store = MlflowModelStore(theirs.uri, cache=place / "cache", require=ours)
        assert store.load("ranker@1") == b"1"
        theirs.promote("ranker", 2)
        theirs.promote("ranker", 1)
        for refused in (
            lambda: store.load("ranker@2", require=None),
            lambda: store.get("ranker@2"),
            lambda: store.card("ranker@2"),
            lambda: store.promote("ranker", 2),
            lambda: store.rollback("ranker"),
            lambda: store.compare("ranker@1", "ranker@2"),
            lambda: store.export("ranker@2", place / "out"),
            lambda: theirs.load("ranker@2", require=ours),
            lambda: pickle.loads(pickle.dumps(store)).load("ranker@2"),
        ):
            with pytest.raises(SignatureError, match="ranker@2"):
                refused()
        assert store.aliases("ranker") == {"champion": 1}
        (broken,) = store.verify().broken
        assert broken.ref == "ranker@2"
        change = theirs.sign("ranker@2", key, why="looked at")
        assert (change.kind, change.version, change.why) == ("signed", 2, "looked at")
        assert theirs.sign("ranker@2", key) == change
        assert store.load("ranker@2") == b"2"
        assert store.rollback("ranker").version == 2

    def test_what_was_signed_is_the_name_the_number_and_the_facts(self, place, key):
        store = open_store(place)
        ours = signed_by(key.public_key())
        for _ in range(2):  # equal content lies at one place, if it is of one run
            store.save("ranker", b"same", tags={"t": "1"})
        store.sign("ranker@1", key)
        with pytest.raises(SignatureError):
            store.load("ranker@2", require=ours)
        use(store)
        client_of(store).copy_model_version("models:/ranker/1", "other")
        with pytest.raises(SignatureError, match="other@1"):
            store.load("other@1", require=ours)
        client_of(store).set_model_version_tag("ranker", "1", "t", "2")
        with pytest.raises(SignatureError, match="ranker@1"):
            store.load("ranker@1", require=ours)
        client_of(store).create_model_version("ranker", (place / "theirs").as_uri())
        with pytest.raises(SignatureError, match="ranker@3"):
            store.load("ranker@3", require=ours, trust="pickle")

    def test_signatures_travel_under_their_number(self, place, key):
        folder, store = ModelStore(place / "folder"), open_store(place)
        for content in (b"1", b"2"):
            folder.save("ranker", content, sign=key)
        ours = signed_by(key.public_key())
        store.import_(folder.export("ranker@1", place / "1.tar"), require=ours)
        assert store.load("ranker@1", require=ours) == b"1"
        store.save("ranker", b"between")
        assert store.import_(folder.export("ranker@2", place / "2.tar"), require=ours).number == 3
        with pytest.raises(SignatureError):
            store.load("ranker@3", require=ours)
        back = ModelStore(place / "back", require=ours)
        assert back.load(back.import_(store.export("ranker@1", place / "out"))) == b"1"


def test_our_downloads_show_no_progress_bar_and_others_still_do(place, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "true")
    store = open_store(place)
    store.save("ranker", b"1")
    capfd.readouterr()
    assert store.load("ranker@1") == b"1"
    assert capfd.readouterr().err == ""
    use(store)
    mlflow.artifacts.download_artifacts("models:/ranker/1", dst_path=str(place / "theirs"))
    assert "Downloading" in capfd.readouterr().err


class TestOthersModels:
    @pytest.fixture
    def store(self, place):
        store = open_store(place)
        use(store)
        client_of(store).create_experiment(
            "theirs", artifact_location=(place / "mlartifacts").as_uri()
        )
        mlflow.set_experiment("theirs")
        return store

    def log_function(self, place, name="theirs", factor=2):
        code = place / f"model{factor}.py"
        code.write_text(
            textwrap.dedent(f"""
            import mlflow

            class Times(mlflow.pyfunc.PythonModel):
                def predict(self, model_input: list[float]) -> list[float]:
                    return [x * {factor} for x in model_input]

            mlflow.models.set_model(Times())
            """)
        )
        mlflow.pyfunc.log_model(
            name="model", python_model=str(code), registered_model_name=name, pip_requirements=[]
        )

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_are_found_promoted_and_loaded_by_decision(self, store, place):
        self.log_function(place)
        self.log_function(place, factor=3)
        assert store.names() == ["theirs"]
        first, second = store.versions("theirs")
        assert (first.number, first.format, first.digest) == (1, "mlflow", "")
        assert (first.spec, first.manifest) == (None, None)
        for ref in ("theirs@1", "models:/theirs/1"):
            with pytest.raises(UntrustedFormatError, match="trust='pickle'"):
                store.load(ref)
            assert store.load(ref, trust="pickle").predict([1.0]) == [2.0]
        client_of(store).set_registered_model_alias("theirs", "champion", "1")
        assert store.load("models:/theirs@champion", trust="pickle").predict([1.0])[0] == 2
        store.promote("theirs", second, expect=1)
        assert store.rollback("theirs").version == 1
        with pytest.raises(ConfigurationError, match="no build"):
            store.load("theirs@2", build=dict)
        # What was promoted here is what is loaded from then on.
        assert store.load("theirs@2", trust="pickle").predict([1.0])[0] == 3
        for path in artifacts_of(place, "model3.py"):
            path.write_text(path.read_text().replace("* 3", "* 4"))
        with pytest.raises(IntegrityError, match="theirs@2"):
            store.load("theirs@2", trust="pickle")

    def test_files_that_are_no_model_to_mlflow_are_said_to_be_none(self, store, place):
        (place / "files").mkdir()
        (place / "files" / "notes.txt").write_text("none")
        client = client_of(store)
        client.create_registered_model("notes")
        client.create_model_version("notes", (place / "files").as_uri())
        with pytest.raises(RebuildError, match=r"notes@1 .* MLmodel"):
            store.load("notes@1", trust="pickle")

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_come_as_their_library_has_them(self, store):
        linear_model = pytest.importorskip("sklearn.linear_model")
        fitted = linear_model.LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])
        mlflow.sklearn.log_model(
            fitted, name="model", registered_model_name="line", pip_requirements=[],
            serialization_format="cloudpickle",
        )  # fmt: skip
        with pytest.raises(UntrustedFormatError):
            store.load("line@1")
        loaded = store.load("line@1", trust="pickle")
        assert isinstance(loaded, linear_model.LinearRegression)
        assert loaded.predict([[3.0]])[0] == pytest.approx(6.0)


class TestWriters:
    def test_a_writer_that_died_before_it_set_the_alias_changed_nothing(self, place):
        store = open_store(place)
        for content in (b"1", b"2", b"3"):
            store.save("ranker", content)
        store.promote("ranker", 1)
        # The entry of a writer that died before its second request.
        event = {"v": 1, "kind": "promoted", "version": 2, "alias": "champion", "previous": 1}
        event |= {"who": "bob", "time": time.time() - 60, "why": ""}
        client = client_of(store)
        experiment = client.get_experiment_by_name("mlkit-models/ranker").experiment_id
        (run,) = client.search_runs([experiment], "tags.`mlkit.history` = 'ranker'")
        client.log_param(run.info.run_id, "mlkit.change.000005", json.dumps(event))
        assert store.load("ranker@champion") == b"1"
        assert store.promote("ranker", 3, expect=1).previous == 1
        assert store.rollback("ranker").version == 1
        with pytest.raises(VersionNotFoundError):
            store.rollback("ranker")
        kinds = [(one.kind, one.who) for one in store.history("ranker") if one.alias]
        assert ("rolled_back", "not by mlkit") in kinds

    def test_a_writer_that_stalls_is_told_that_it_lost(self, place, monkeypatch):
        slow, fast = open_store(place, "slow"), open_store(place, "fast")
        for content in (b"1", b"2", b"3"):
            slow.save("ranker", content)
        slow.promote("ranker", 1)
        set_alias = mlflow.MlflowClient.set_registered_model_alias

        def stall(client, *args):
            monkeypatch.undo()
            time.sleep(2.1)  # longer than anybody waits
            assert fast.promote("ranker", 3, expect=1).previous == 1
            set_alias(client, *args)

        monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_alias", stall)
        with pytest.raises(AliasConflictError) as caught:
            slow.promote("ranker", 2, expect=1)
        assert (caught.value.expected, caught.value.got) == (2, 3)
        assert slow.aliases("ranker") == {"champion": 3}
        assert slow.history("ranker") == fast.history("ranker")

    def test_processes_at_once_leave_one_line_of_history(self, place):
        store = open_store(place)
        store.save("ranker", b"0")
        store.promote("ranker", 1)
        code = """
            import os, sys
            import mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store
            from mlkit.integrations.mlflow_models import MlflowModelStore, _writer
            from mlkit.errors import VersionNotFoundError
            _writer._GRACE = 100.0  # none of them dies, however long a busy machine holds it up

            def write(who):
                store = MlflowModelStore(sys.argv[1], cache=sys.argv[2], who=who)
                for turn in range(2):
                    version = store.save("ranker", f"{who} {turn}".encode())
                    store.promote("ranker", version)
                    if turn % 2:
                        try:
                            store.rollback("ranker")
                        except VersionNotFoundError:
                            pass

            # Importing MLflow takes seconds, so one process does and the writers are forked from it.
            writers = []
            for who in ("w0", "w1", "w2"):
                writers.append(os.fork())
                if not writers[-1]:
                    write(who)
                    os._exit(0)
            sys.exit(any([os.waitpid(writer, 0)[1] for writer in writers]))
        """
        command = [sys.executable, "-c", textwrap.dedent(code), store.uri, place / "cache"]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        changes = store.history("ranker")
        assert sorted(one.version for one in changes if one.kind == "saved") == list(range(1, 8))
        holder = None
        for change in changes:
            if change.alias:
                assert change.previous == holder  # nobody moved it from where it was not
                holder = change.version
        assert store.aliases("ranker") == {"champion": holder}
        assert not [one for one in changes if one.who == "not by mlkit"]
        assert sum(one.kind == "promoted" for one in changes) == 7


@pytest.fixture
def server(place):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{place}/mlflow.db",
        "--artifacts-destination", str(place / "mlartifacts"), "--workers", "1",
    ]  # fmt: skip
    with (place / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
    import signal
    from urllib.request import urlopen

    try:
        for _ in range(3000):
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=60).close()
                break
            except OSError:
                assert process.poll() is None, (place / "server.log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(1200)
def test_a_server_over_http_does_the_same(server, place, capsys):
    store = MlflowModelStore(server, cache=place / "cache", who="ada")
    version = store.save("ranker", {"w": np.arange(3.0)}, spec={"k": 3}, metrics={"a": 0.5})
    store.save("ranker", {"w": np.arange(4.0)})
    store.promote("ranker", 1, expect=None)
    store.promote("ranker", 2, expect=1)
    with pytest.raises(AliasConflictError):
        store.promote("ranker", 1, expect=1)
    assert store.rollback("ranker").version == 1
    assert store.load("models:/ranker@champion")["w"].tolist() == [0, 1, 2]
    assert store.get("ranker@1").spec == {"k": 3}
    seen = client_of(store).get_model_version_by_alias("ranker", "champion")
    assert (seen.version, seen.tags["mlkit.digest"]) in ((1, version.digest), ("1", version.digest))
    assert [one.kind for one in store.history("ranker")] == [
        "saved", "saved", "promoted", "promoted", "rolled_back",
    ]  # fmt: skip
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    key = ed25519.Ed25519PrivateKey.generate()
    ours = signed_by(key.public_key())
    with pytest.raises(SignatureError, match="it has none"):
        store.load("ranker@2", require=ours)
    store.sign("ranker@2", key)
    assert store.load("ranker@2", require=ours)["w"].tolist() == [0, 1, 2, 3]
    assert capsys.readouterr().out == ""  # which may be somebody's JSON
    shutil.rmtree(place / "cache")
    for path in artifacts_of(place, "weights.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match=r"weights\.safetensors"):
        store.load("ranker@1")
    for path in artifacts_of(place, "weights.safetensors"):
        path.unlink()
    with pytest.raises(IntegrityError, match=r"weights\.safetensors"):
        store.load("ranker@2")


def test_the_command_line_does_the_same(place, capsys, monkeypatch):
    def run(*words):
        status = main(["models", *map(str, words)])
        seen = capsys.readouterr()
        return status, seen.out

    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    store = open_store(place)
    uri = store.uri
    store.save("digits", b"1")
    store.save("digits", b"2")
    assert run("promote", uri, "digits@1")[0] == 0
    assert run("promote", f"mlflow:{uri}", "digits@2", "--expect", "1")[0] == 0
    assert run("promote", uri, "digits@1", "--expect", "1")[0] == 4
    status, out = run("rollback", uri, "digits")
    assert (status, out) == (0, "digits@champion points at version 1 (was 2)\n")
    assert run("list", uri)[1].splitlines()[0].endswith("champion")
    assert run("verify", uri)[1] == "2 versions, 4 files: all is what was saved\n"
    assert run("verify", uri, "--signed-by", "x.pem")[0] == 1
    assert run("export", uri, "digits@2", place / "two")[0] == 0
    assert ModelStore(place / "folder").import_(place / "two").ref == "digits@2"


def test_an_export_to_a_wrong_place_is_told_early(place):
    store = open_store(place)
    store.save("ranker", b"1")
    for path in (3, "", place / "missing" / "out", place):
        with pytest.raises(ConfigurationError, match=r"export\(path\)"):
            store.export("ranker@1", path)


def test_a_server_that_is_not_there_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = MlflowModelStore("http://127.0.0.1:9", cache=tmp_path)
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:9"):
        store.names()


def test_wrong_arguments(place, monkeypatch):
    for uri in ("mlflow.db", "file:///tmp/x", 3):
        with pytest.raises(ConfigurationError, match="tracking URI"):
            MlflowModelStore(uri)
    store = open_store(place)
    store.save("ranker", b"1")
    for name in ("a/b", "a:b", "it's", "", 3):
        with pytest.raises(ConfigurationError):
            store.save(name, b"1")
    for ref in ("ranker", "models:/ranker", "ranker@", "ranker@sha256:zz", 7):
        with pytest.raises(ConfigurationError):
            store.get(ref)
    with pytest.raises(ConfigurationError, match=r"mlkit\."):
        store.save("ranker", b"1", tags={"mlkit.digest": "x"})
    with pytest.raises(ModelStoreError, match="refused"):
        store.promote("ranker", 1, to="v1")  # MLflow keeps such names for itself
    assert store.aliases("ranker") == {}
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependencyError, match="mlkit-blocks"):
        MlflowModelStore("http://127.0.0.1:5000")
