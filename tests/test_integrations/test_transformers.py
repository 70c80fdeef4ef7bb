"""Transformers' real trainer on a tiny model of random weights, recorded as runs."""

from __future__ import annotations

import os

import pytest
import torch

from mlkit.errors import TrackingWarning
from mlkit.tracking import find_runs, read

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(autouse=True)
def _left_as_found():
    import logging

    from accelerate.state import AcceleratorState, GradientState, PartialState

    before = dict(os.environ)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_OFFLINE"] = "1"
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]
    logging.getLogger("transformers").handlers.clear()


def trainer_of(
    tmp_path, callback, *, fail_at: int = -1, error=RuntimeError, epochs: float = 2, **options
):
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == fail_at:
                raise error("stop here")

    def model_init(trial=None):
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                max_position_embeddings=8, num_labels=2,
            )
        )  # fmt: skip

    generator = torch.Generator().manual_seed(7)
    data = [
        {"input_ids": torch.randint(0, 50, (8,), generator=generator), "labels": torch.tensor(index % 2)}
        for index in range(16)
    ]  # fmt: skip
    arguments = TrainingArguments(
        str(tmp_path / "out"), num_train_epochs=epochs, per_device_train_batch_size=4, logging_steps=2,
        eval_strategy="epoch", save_strategy="epoch", report_to=[], use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = Trainer(
        model_init=model_init, args=arguments, train_dataset=data, eval_dataset=data,
        callbacks=[callback, Fails()],
    )  # fmt: skip
    return trainer


def steps(data, key: str) -> list[int]:
    return [point.step for point in data.metrics[key]]


def test_a_training_is_a_run_and_goes_on_from_its_checkpoint(tmp_path):
    from transformers import TrainerCallback

    from mlkit.integrations.transformers import RunCallback

    assert issubclass(RunCallback, TrainerCallback)
    callback = RunCallback("bert", root=tmp_path / "runs", checkpoints="all")
    assert callback.run is None
    trainer = trainer_of(tmp_path, callback, run_name="first")
    trainer.train()
    run = callback.run
    data = read(run.dir)
    assert (data.status, data.name) == ("FINISHED", "first")
    assert (data.params["num_train_epochs"], data.params["model.hidden_size"]) == (2, 8)
    assert steps(data, "loss") == [2, 4, 6, 8]
    assert steps(data, "eval_loss") == [4, 8]
    told = {line["step"]: line["loss"] for line in trainer.state.log_history if "loss" in line}
    assert {point.step: point.value for point in data.metrics["loss"]} == told
    weights = (tmp_path / "out" / "checkpoint-4" / "model.safetensors").read_bytes()
    assert data.artifact("checkpoint-4/model.safetensors").read_bytes() == weights

    metrics = trainer.evaluate(metric_key_prefix="test")  # after the end: the same run
    assert read(run.dir).metrics["test_loss"][0].value == metrics["test_loss"]
    assert read(run.dir).status == "FINISHED"

    again = RunCallback("bert", root=tmp_path / "runs")
    more = trainer_of(tmp_path, again, epochs=3, run_name="first")
    with pytest.warns(TrackingWarning, match="'num_train_epochs' is 2 and cannot become 3"):
        more.train(resume_from_checkpoint=True)
    assert again.run.id == run.id
    data = read(run.dir)
    assert steps(data, "loss") == [2, 4, 6, 8, 10, 12]
    assert data.status == "FINISHED"

    elsewhere = RunCallback("bert", root=tmp_path / "other")  # the run is not there
    trainer_of(tmp_path, elsewhere, epochs=3.5).train(resume_from_checkpoint=True)
    assert elsewhere.run.id != run.id
    assert steps(read(elsewhere.run.dir), "loss") == [14]


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_an_exception_ends_the_run_as_failed(error, status, tmp_path):
    from mlkit.integrations.transformers import RunCallback

    with pytest.raises(error), RunCallback("bert", root=tmp_path / "runs") as callback:
        trainer_of(tmp_path, callback, fail_at=3, error=error).train()
    data = read(callback.run.dir)
    assert (data.status, steps(data, "loss")) == (status, [2])


def test_without_a_with_the_next_training_says_that_the_last_one_failed(tmp_path):
    from mlkit.integrations.transformers import RunCallback

    callback = RunCallback("bert", root=tmp_path / "runs")
    with pytest.raises(RuntimeError, match="stop here"):
        trainer_of(tmp_path, callback, fail_at=3).train()
    first = callback.run
    trainer_of(tmp_path, callback).train()
    assert callback.run.id != first.id
    assert (read(first.dir).status, read(callback.run.dir).status) == ("FAILED", "FINISHED")


def test_a_checkpoint_of_another_experiment_is_gone_on_with_in_a_run_of_its_own(tmp_path):
    from mlkit.integrations.transformers import RunCallback

    first = RunCallback("bert", root=tmp_path / "runs")
    trainer_of(tmp_path, first, epochs=1).train()
    other = RunCallback("finetuned", root=tmp_path / "runs")
    trainer_of(tmp_path, other).train(resume_from_checkpoint=True)
    assert other.run.id != first.run.id
    assert steps(read(other.run.dir), "loss") == [6, 8]


def test_attempts_with_smaller_batches_are_one_run(tmp_path):
    from mlkit.integrations.transformers import RunCallback

    callback = RunCallback("bert", root=tmp_path / "runs")
    trainer = trainer_of(tmp_path, callback, auto_find_batch_size=True)
    forward = trainer.model.forward

    def small(input_ids=None, **inputs):
        if len(input_ids) > 3:
            raise RuntimeError("CUDA out of memory.")
        return forward(input_ids=input_ids, **inputs)

    trainer.model_init, trainer.model.forward = None, small
    trainer.args.per_device_eval_batch_size = 2
    trainer.train()
    (folder,) = find_runs(tmp_path / "runs")
    data = read(folder)
    assert (data.status, data.id) == ("FINISHED", callback.run.id)
    assert steps(data, "loss") == [2, 4, 6, 8, 10, 12]


def test_each_trial_is_a_run_of_its_own(tmp_path):
    from transformers.trainer_callback import TrainerControl, TrainerState

    from mlkit.integrations.transformers import RunCallback

    callback = RunCallback("search", root=tmp_path / "runs")
    trainer = trainer_of(tmp_path, callback)
    ids = []
    for number, rate in enumerate((0.1, 0.2)):  # what Trainer.train does for a trial of Optuna
        state = TrainerState(is_hyper_param_search=True, trial_name=f"trial-{number}")
        state.trial_params = {"learning_rate": rate}
        state.is_world_process_zero = True
        callback.on_train_begin(trainer.args, state, TrainerControl(), model=trainer.model)
        state.global_step = 5
        callback.on_log(trainer.args, state, TrainerControl(), logs={"loss": rate})
        callback.on_train_end(trainer.args, state, TrainerControl())
        ids.append(callback.run.id)
    found = [read(folder) for folder in find_runs(tmp_path / "runs")]
    assert {data.id for data in found} == set(ids)
    assert {(data.name, data.params["trial.learning_rate"], data.metrics["loss"][0].value) for data in found} == {
        ("trial-0", 0.1, 0.1), ("trial-1", 0.2, 0.2),
    }  # fmt: skip


def test_only_the_first_process_of_the_world_logs(tmp_path):
    from transformers.trainer_callback import TrainerControl, TrainerState

    from mlkit.integrations.transformers import RunCallback

    callback = RunCallback("ranks", root=tmp_path / "runs")
    trainer = trainer_of(tmp_path, callback)
    state = TrainerState(is_world_process_zero=False)
    callback.on_train_begin(trainer.args, state, TrainerControl(), model=trainer.model)
    callback.on_log(trainer.args, state, TrainerControl(), logs={"loss": 1.0})
    callback.on_predict(trainer.args, state, TrainerControl(), {"loss": 1.0})
    callback.on_save(trainer.args, state, TrainerControl())
    callback.on_train_end(trainer.args, state, TrainerControl())
    assert callback.run is None
    assert not (tmp_path / "runs").exists()
