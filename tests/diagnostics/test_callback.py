import io
import json
import random

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import HumanOutputFormat, JSONOutputFormat, Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_mbrl.callbacks import ModelDiagnosticsCallback
from sb3_mbrl.mbpo import MBPO


def make_mbpo(env="Pendulum-v1", **changes):
    settings = dict(learning_starts=40, batch_size=32, gradient_steps=1, buffer_size=1_000, seed=0, device="cpu")
    settings |= dict(policy_kwargs={"net_arch": [16]}, model_train_freq=50, rollouts_per_step=10, real_ratio=0.25)
    settings |= dict(dynamics_kwargs={"ensemble_size": 3, "n_elites": 2, "net_arch": [16, 16]}, fit_kwargs={"max_epochs": 3})
    return MBPO("MlpPolicy", env, **{**settings, **changes})


class Records(JSONOutputFormat):
    """The logged values, by time step."""

    def __init__(self):
        self.file = io.StringIO()

    def steps(self):
        rows = [json.loads(line) for line in self.file.getvalue().splitlines()]
        return [row["time/total_timesteps"] for row in rows if "diagnostics/seconds" in row]


def watched(model, **arguments):
    """An untrained model, its callback, and a record of what will be logged."""
    records = Records()
    model.set_logger(Logger(None, [records]))
    return model, ModelDiagnosticsCallback(**{"n_steps": 5, "n_rows": 64, **arguments}), records


def test_scalars_and_figures_are_logged(tmp_path):
    model = make_mbpo()
    table = io.StringIO()
    board = TensorBoardOutputFormat(str(tmp_path / "board"))
    model.set_logger(Logger(str(tmp_path), [board, HumanOutputFormat(table), Records()]))
    model.learn(110, callback=ModelDiagnosticsCallback(100, log_dir=tmp_path / "checks", n_steps=5))
    model.logger.close()

    events = EventAccumulator(str(tmp_path / "board")).Reload()
    names = {"one_step", "open_loop", "state_distribution"}
    assert set(events.Tags()["images"]) == {f"diagnostics/{name}" for name in names}
    scalars = {tag.removeprefix("diagnostics/") for tag in events.Tags()["scalars"] if tag.startswith("diagnostics/")}
    assert scalars >= {"one_step_error", "coverage_90", "open_loop_last", "states_ks", "seconds"}
    assert not scalars & {"termination_precision", "termination_recall"}  # Pendulum has no termination
    assert all(f" {name} " in table.getvalue() for name in scalars)  # none was truncated
    files = {path.name for path in (tmp_path / "checks").iterdir()}
    assert files == {f"{name}_100.png" for name in names}


def test_the_callback_does_not_change_training(tmp_path):
    def train(callback):
        model = make_mbpo()
        model.learn(120, callback=callback)
        streams = (random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist())
        return model, {"model": model.dynamics.state_dict(), **model.get_parameters()}, streams

    plain, expected, expected_streams = train(None)
    watched_model, parameters, streams = train(ModelDiagnosticsCallback(60, n_steps=5, log_dir=tmp_path))
    assert len(list(tmp_path.iterdir())) > 0
    assert streams == expected_streams
    assert th.equal(watched_model._generator.get_state(), plain._generator.get_state())
    for name in ("model", "policy"):
        assert all(th.equal(value, parameters[name][key]) for key, value in expected[name].items())
    assert watched_model.policy.training == plain.policy.training
    assert watched_model.dynamics.training == plain.dynamics.training


def test_environments_in_parallel_and_normalized():
    env = VecNormalize(make_vec_env("Pendulum-v1", 3, seed=0))
    model, callback, records = watched(make_mbpo(env), diag_freq=50)
    model.learn(250, callback=CallbackList([callback]))
    assert records.steps() == [51, 102, 153, 204]


def test_the_clock_survives_a_second_learn():
    model, callback, records = watched(make_mbpo(), diag_freq=60)
    model.learn(100, callback=callback)
    model.learn(50, callback=callback, reset_num_timesteps=False)
    assert records.steps() == [60, 120]
    model.learn(70, callback=callback)
    assert records.steps() == [60, 120, 60]


def test_checks_wait_until_the_model_is_fitted():
    model, callback, records = watched(make_mbpo(learning_starts=100), diag_freq=30)
    model.learn(100, callback=callback)
    assert records.steps() == []
    model.learn(60, callback=callback, reset_num_timesteps=False)
    assert records.steps() == [102, 132]


def test_an_algorithm_that_keeps_no_imagined_states():
    model, callback, records = watched(make_mbpo(), diag_freq=60)
    model.learn(59, callback=callback)
    model.model_buffer, kept = None, model.model_buffer
    callback.init_callback(model)
    callback._check()
    model.model_buffer = kept
    assert len(records.steps()) == 1 and "states_ks" not in records.file.getvalue()


def test_an_algorithm_without_a_model_is_refused():
    model = SAC("MlpPolicy", "Pendulum-v1", device="cpu")
    with pytest.raises(ValueError, match=r"SAC has no \.dynamics"):
        model.learn(10, callback=ModelDiagnosticsCallback())


def test_no_figures_are_drawn_without_a_destination(monkeypatch):
    monkeypatch.setattr("sb3_mbrl.diagnostics.callback.plot_one_step", lambda result: pytest.fail("drawn"))
    model, callback, records = watched(make_mbpo(), diag_freq=60, verbose=0)
    model.learn(70, callback=callback)
    assert records.steps() == [60]
