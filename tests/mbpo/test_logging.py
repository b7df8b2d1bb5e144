"""The output of a run: scalars, the table, the progress bar, and callbacks that see only real steps."""

import csv
import math

import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_mbrl.common.progress import ModelProgressBarCallback
from sb3_mbrl.mbpo import MBPO

# SB3 silences it when it is imported; pytest begins each test with its own filters
pytestmark = pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")

SAC_SCALARS = {
    *("rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"),
    *("train/actor_loss", "train/critic_loss", "train/ent_coef", "train/ent_coef_loss", "train/learning_rate"),
}
MODEL_SCALARS = {
    *("dynamics/holdout_mse", "dynamics/holdout_mse_worst_dim", "dynamics/holdout_nll", "dynamics/holdout_nll_worst_dim"),
    *("dynamics/reward_mse", "dynamics/n_epochs", "dynamics/seconds", "dynamics/elite_spread"),
    *("dynamics/epistemic_std", "dynamics/aleatoric_std"),
    *("imagination/rollout_length", "imagination/n_transitions", "imagination/termination_fraction"),
    *("imagination/reward_mean", "imagination/real_reward_mean"),
    *("imagination/real_buffer_size", "imagination/model_buffer_size"),
    *("time/fitting_seconds", "time/imagining_seconds", "time/updating_seconds"),
}


@pytest.mark.parametrize("env_id, n_envs", [("PointMass-v0", 1), ("PointMass-v0", 2), ("Line-v0", 1)])
def test_scalars_in_tensorboard(make_mbpo, tmp_path, env_id, n_envs):
    make_mbpo(make_vec_env(env_id, n_envs), tensorboard_log=str(tmp_path)).learn(200, log_interval=1)
    events = EventAccumulator(str(tmp_path / "MBPO_1")).Reload()
    assert SAC_SCALARS | MODEL_SCALARS <= set(events.Tags()["scalars"])
    for name in events.Tags()["scalars"]:
        assert all(math.isfinite(event.value) for event in events.Scalars(name)), name

    def last(name):
        return events.Scalars(name)[-1].value

    scores = {"dynamics/termination_precision", "dynamics/termination_recall"} & set(events.Tags()["scalars"])
    assert ("dynamics/termination_recall" in scores) == (env_id == "Line-v0")  # the other one never ends
    assert all(0 <= last(name) <= 1 for name in scores)
    assert last("dynamics/elite_spread") >= 1
    assert last("dynamics/holdout_mse_worst_dim") >= last("dynamics/holdout_mse") > 0
    assert last("dynamics/epistemic_std") > 0 and last("dynamics/aleatoric_std") > 0
    assert last("dynamics/n_epochs") <= 3
    assert last("imagination/rollout_length") == 1
    assert 500 <= last("imagination/n_transitions") <= 520  # 10 branches for each of 50 steps (52, with two environments)
    assert last("imagination/model_buffer_size") > 500
    assert 40 < last("imagination/real_buffer_size") <= 200


def logged_rows(model, folder, n_steps, log_interval):
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(n_steps, log_interval=log_interval)
    model.logger.close()
    with open(folder / "progress.csv") as file:
        return list(csv.DictReader(file))


def test_scalars_in_csv(make_mbpo, tmp_path):
    rows = logged_rows(make_mbpo(), tmp_path, 200, log_interval=1)
    assert SAC_SCALARS | MODEL_SCALARS | {"train/n_updates", "time/total_timesteps"} <= rows[-1].keys()
    steps = [int(row["time/total_timesteps"]) for row in rows]
    assert steps == sorted(set(steps))
    # SB3 writes between the last step of an episode and the updates that follow it
    assert int(rows[-1]["train/n_updates"]) == steps[-1] - 40 - 1
    for phase in ("fitting", "imagining", "updating"):
        seconds = [float(row[f"time/{phase}_seconds"]) for row in rows if row[f"time/{phase}_seconds"]]
        assert seconds == sorted(seconds) and seconds[-1] > 0


@pytest.mark.parametrize("log_interval, n_rows", [(1, 6), (2, 3), (4, 1)])
def test_log_interval_counts_episodes(make_mbpo, tmp_path, log_interval, n_rows):
    assert len(logged_rows(make_mbpo(), tmp_path, 180, log_interval)) == n_rows


@pytest.mark.parametrize("env_id", ["PointMass-v0", "Line-v0"])
def test_table(make_mbpo, capsys, env_id):
    make_mbpo(env_id, verbose=1).learn(150, log_interval=1)
    out = capsys.readouterr().out
    for name in SAC_SCALARS | MODEL_SCALARS:
        assert f"|    {name.split('/')[1]}" in out, name
    assert "..." not in out  # no name was cut
    assert "Model fitted at step 41: 3 epochs on 33 transitions" in out


def test_silent_by_default(make_mbpo, capsys):
    make_mbpo().learn(100)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(("verbose", "progress_bar"), [(0, False), (1, False), (1, True)])
def test_a_long_fit_prints_its_progress(make_mbpo, capsys, monkeypatch, verbose, progress_bar):
    monkeypatch.setattr("sb3_mbrl.common.progress.HALF_A_MINUTE", 0.0)
    make_mbpo(verbose=verbose).learn(60, progress_bar=progress_bar)
    n_lines = capsys.readouterr().out.count("Fitting model, epoch ")
    assert n_lines == (3 if verbose == 1 and not progress_bar else 0)  # one for each epoch


def test_another_reward_is_mentioned_once_and_only_if_verbose(make_mbpo, capsys):
    make_mbpo(reward_fn=lambda obs, action, next_obs: next_obs[:, 1], verbose=1).learn(150)
    assert capsys.readouterr().out.count("reward_fn pays") == 1
    make_mbpo(reward_fn=lambda obs, action, next_obs: next_obs[:, 1]).learn(60)
    assert capsys.readouterr().out == ""


def test_termination_scores_of_a_perfect_rule(make_mbpo):
    model = make_mbpo("Line-v0", termination_fn=lambda obs, action, next_obs: next_obs[:, 0].abs() > 1.2)
    values = model.learn(100, log_interval=1_000).logger.name_to_value
    assert values["dynamics/termination_precision"] == values["dynamics/termination_recall"] == 1.0


class Recorder(BaseCallback):
    """A callback that records how it is called."""

    def __init__(self):
        super().__init__()
        self.n_inits, self.steps, self.observations, self.events = 0, [], [], []

    def _init_callback(self):
        self.n_inits += 1

    def _on_training_start(self):
        self.events.append("training start")

    def _on_rollout_start(self):
        self.events.append("rollout start")

    def _on_step(self):
        self.steps.append(self.num_timesteps)
        self.observations.append(self.locals["new_obs"].copy())
        return True

    def _on_rollout_end(self):
        self.events.append("rollout end")

    def _on_training_end(self):
        self.events.append("training end")


@pytest.mark.parametrize("n_envs", [1, 2])
def test_callbacks_see_only_real_steps(make_mbpo, n_envs):
    recorder = Recorder()
    model = make_mbpo(make_vec_env("PointMass-v0", n_envs)).learn(120, callback=recorder)
    assert recorder.steps == list(range(n_envs, 121, n_envs))
    assert recorder.events == ["training start", *["rollout start", "rollout end"] * (120 // n_envs), "training end"]
    assert len(model.ep_info_buffer) == 120 // 30
    assert {info["l"] for info in model.ep_info_buffer} == {30}
    # Where an episode ends the callback sees the next one's first observation, as in SAC; elsewhere what was stored
    stored = model.replay_buffer.next_observations[: 120 // n_envs]
    same = [np.array_equal(seen, kept) for seen, kept in zip(recorder.observations, stored, strict=True)]
    assert [step for step, equal in enumerate(same, start=1) if not equal] == list(range(30, 120 // n_envs + 1, 30))


@pytest.mark.parametrize("progress_bar", [False, True])
@pytest.mark.parametrize(
    "wrap", [lambda c: c, lambda c: [c], lambda c: CallbackList([c])], ids=["one", "list", "CallbackList"]
)
def test_callbacks_are_initialised_once(make_mbpo, wrap, progress_bar):
    recorder = Recorder()
    make_mbpo().learn(60, callback=wrap(recorder), progress_bar=progress_bar)
    assert recorder.n_inits == 1
    assert recorder.steps == list(range(1, 61))


@pytest.mark.parametrize("progress_bar", [False, True])
def test_function_as_callback_can_stop(make_mbpo, progress_bar):
    model = make_mbpo().learn(200, callback=lambda local, _: local["self"].num_timesteps < 70, progress_bar=progress_bar)
    assert model.num_timesteps == 70


def test_a_stopped_run_continues(make_mbpo):
    model = make_mbpo().learn(500, callback=StopTrainingOnMaxEpisodes(max_episodes=3))
    assert model.num_timesteps == 90
    model.learn(60, reset_num_timesteps=False)
    assert model.num_timesteps == 150
    assert model._last_fit_timestep == 141


def test_evaluation_and_checkpoints(make_mbpo, tmp_path):
    evaluation = EvalCallback(
        make_vec_env("PointMass-v0"),
        callback_on_new_best=StopTrainingOnRewardThreshold(reward_threshold=1e6),
        eval_freq=50,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "evaluations"),
        verbose=0,
    )
    every = EveryNTimesteps(30, Recorder())
    checkpoints = CheckpointCallback(60, str(tmp_path / "checkpoints"), save_replay_buffer=True)
    callbacks = [evaluation, every, checkpoints]
    model = make_mbpo("PointMass-v0", tensorboard_log=str(tmp_path / "logs"))
    model.learn(150, callback=callbacks, progress_bar=True)
    assert np.load(tmp_path / "evaluations" / "evaluations.npz")["timesteps"].tolist() == [50, 100, 150]
    assert every.callback.steps == [30, 60, 90, 120, 150]
    best = MBPO.load(tmp_path / "best" / "best_model", env=model.get_env())
    assert best.num_timesteps in (50, 100, 150)
    checkpoint = MBPO.load(tmp_path / "checkpoints" / "rl_model_120_steps", env=model.get_env())
    checkpoint.load_replay_buffer(tmp_path / "checkpoints" / "rl_model_replay_buffer_120_steps")
    assert (checkpoint.num_timesteps, checkpoint.replay_buffer.size(), checkpoint._last_fit_timestep) == (120, 119, 91)
    assert checkpoint.learn(40, reset_num_timesteps=False)._last_fit_timestep == 121
    events = EventAccumulator(str(tmp_path / "logs" / "MBPO_1")).Reload()
    assert len(events.Scalars("eval/mean_reward")) >= 2


def test_stops_at_a_reward(make_mbpo):
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1e6)
    model = make_mbpo().learn(
        200, callback=EvalCallback(make_vec_env("PointMass-v0"), callback_on_new_best=stop, eval_freq=50, verbose=0)
    )
    assert model.num_timesteps == 50


class TestProgressBar:
    def test_the_progress_bar_names_the_current_phase(self, make_mbpo, monkeypatch):
        said = []
        describe = ModelProgressBarCallback.describe
        monkeypatch.setattr(ModelProgressBarCallback, "describe", lambda self, text: (said.append(text), describe(self, text)))
        make_mbpo().learn(100, progress_bar=True)
        fits = [text for text in said if text.startswith("fitting model, epoch")]
        assert [text.split(",")[1].strip() for text in fits] == [f"epoch {i}" for i in (1, 2, 3)] * 2
        assert "imagining 500 x 1 steps" in said
        assert said[-1] == ""

    def test_counts_real_steps(self, make_mbpo, monkeypatch):
        counted = []
        on_training_end = ModelProgressBarCallback._on_training_end
        monkeypatch.setattr(
            ModelProgressBarCallback,
            "_on_training_end",
            lambda self: (counted.append((self.pbar.n, self.pbar.total)), on_training_end(self)),
        )
        model = make_mbpo(make_vec_env("PointMass-v0", 2)).learn(100, progress_bar=True)
        model.learn(50, progress_bar=True, reset_num_timesteps=False)
        assert counted == [(100, 100), (50, 50)]

    def test_run_without_it_after_a_run_with_it(self, make_mbpo):
        model = make_mbpo().learn(60, progress_bar=True)
        model.learn(60, reset_num_timesteps=False)
        assert model._progress_bar is None

    def test_is_not_saved(self, make_mbpo, tmp_path):
        make_mbpo().learn(50, callback=CheckpointCallback(25, str(tmp_path)), progress_bar=True)
        assert MBPO.load(tmp_path / "rl_model_50_steps")._progress_bar is None
