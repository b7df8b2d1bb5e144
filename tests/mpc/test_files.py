"""Saving and loading MPCPolicy."""

import json
import zipfile

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import MPCPolicy
from sb3_mbrl.dynamics import SimulatorModel
from sb3_mbrl.planning import CEM
from tests.mpc.cheap import CHEAP, OBS, PLANNER, cheap, random_model


def rewrite(path, change):
    """Change the configuration in a file."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["policy.json"])
    change(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, "policy.json": json.dumps(config)}.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("planner", CHEAP)
def test_every_argument_survives(model, tmp_path, planner):
    kwargs = {
        **{"action_repeat": 2, "replan_freq": 3, "discount": 0.9, "n_particles": 3, "propagation": "ts1", "kappa": 0.5},
        **{"value_mode": "optimistic", "uncertainty_penalty": 0.1, "n_proposals": 2, "proposal_noise": 0.3, "seed": 4},
    }
    policy = cheap(model, planner, **kwargs)
    policy.save(tmp_path / "policy.zip")
    loaded = MPCPolicy.load(tmp_path / "policy.zip", device="cpu")
    assert type(loaded.planner) is type(policy.planner) and vars(loaded.planner) == vars(policy.planner)
    for name, value in kwargs.items():
        assert getattr(loaded if hasattr(loaded, name) else loaded.objective, name) == value
    for deterministic in (True, False):
        np.testing.assert_array_equal(
            loaded.predict(OBS, deterministic=deterministic)[0],
            MPCPolicy(model, policy.planner, **kwargs).predict(OBS, deterministic=deterministic)[0],
        )


def test_numpy_numbers_are_numbers(model, tmp_path):
    path = tmp_path / "policy.zip"
    policy = MPCPolicy(model, **PLANNER, seed=np.int64(3), replan_freq=np.int64(2), kappa=np.float32(0.5))
    policy.save(path)
    loaded = MPCPolicy.load(path, device="cpu")
    assert (loaded.seed, loaded.replan_freq, loaded.objective.kappa) == (3, 2, 0.5)
    np.testing.assert_array_equal(policy.predict(OBS)[0], MPCPolicy(model, **PLANNER, seed=3, replan_freq=2).predict(OBS)[0])


def test_the_normalization_must_be_passed_again_and_arguments_may_change(model, tmp_path):
    path, env = tmp_path / "policy.zip", VecNormalize(make_vec_env("Slider-v0"))
    MPCPolicy(model, **PLANNER, vec_normalize=env).save(path)
    with pytest.raises(ValueError, match=r"saved with \['vec_normalize'\]"):
        MPCPolicy.load(path)
    loaded = MPCPolicy.load(path, vec_normalize=env, replan_freq=2, discount=0.9)
    assert (loaded.vec_normalize, loaded.replan_freq, loaded.objective.discount) == (env, 2, 0.9)


def test_arguments_that_a_file_cannot_hold_must_be_passed_again(model, tmp_path):
    path = tmp_path / "policy.zip"
    functions = {"reward_fn": lambda obs, action, next_obs: obs[:, 0], "termination_fn": lambda obs, action, n: obs[:, 0] > 1}
    MPCPolicy(model, **PLANNER, **functions).save(path)
    with pytest.raises(ValueError, match=r"saved with \['reward_fn', 'termination_fn'\]"):
        MPCPolicy.load(path)
    assert MPCPolicy.load(path, **functions).objective.termination_fn is functions["termination_fn"]
    simulator = SimulatorModel("Pendulum-v1")
    MPCPolicy(simulator, **PLANNER).save(path)
    with pytest.raises(ValueError, match=r"model=\.\.\."):
        MPCPolicy.load(path)
    assert MPCPolicy.load(path, model=simulator).planner.horizon == 5


def test_functions_of_a_model_must_be_passed_again(tmp_path):
    functions = {"reward_fn": lambda o, a, n: n[:, 0], "termination_fn": lambda o, a, n: n[:, 0] > 1}
    policy, path = cheap(random_model(spaces.Discrete(3), **functions), "cem"), tmp_path / "policy.zip"
    policy.save(path)
    given = {f"model_{name}": function for name, function in functions.items()}
    for name in given:  # the message names the arguments of this load, not those of the ensemble's
        with pytest.raises(ValueError, match=rf"{path} was saved with \['{name}'\].*pass them again to load"):
            MPCPolicy.load(path, **{**given, name: None})
    assert MPCPolicy.load(path, model=policy.model).model is policy.model
    loaded = MPCPolicy.load(path, device="cpu", **given)
    np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], policy.predict(OBS, deterministic=True)[0])


def test_a_saved_policy_takes_an_algorithm_as_its_model(trained, tmp_path):
    MPCPolicy(SimulatorModel("Pendulum-v1"), **PLANNER).save(tmp_path / "policy.zip")
    assert MPCPolicy.load(tmp_path / "policy.zip", model=trained).model is trained.dynamics


class Own(CEM):
    """The argument cannot be stored, because JSON cannot hold it."""

    def __init__(self, function):
        super().__init__(horizon=function(4), population_size=20, n_elites=4)


class ICEM(CEM):
    """A user's planner that has the name of one of the library."""


@pytest.mark.parametrize("planner", [Own(lambda x: x + 1), ICEM(horizon=5)], ids=lambda planner: type(planner).__name__)
def test_a_users_planner_must_be_passed_again(model, tmp_path, planner):
    policy, path = MPCPolicy(model, planner), tmp_path / "policy.zip"
    policy.save(path)
    with pytest.raises(ValueError, match=f"saved with your own planner {type(planner).__name__}, .*planner="):
        MPCPolicy.load(path)
    loaded = MPCPolicy.load(path, device="cpu", planner=planner)
    np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], policy.predict(OBS, deterministic=True)[0])


def test_a_damaged_or_foreign_file(policy, tmp_path):
    path = tmp_path / "policy.zip"
    policy.save(path)
    for content in (b"", b"no zip", b"PK\x03\x04", path.read_bytes()[:-200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or was not written by MPCPolicy.save"):
            MPCPolicy.load(path)
    PPO("MlpPolicy", "Slider-v0", n_steps=8, batch_size=8, device="cpu").save(path)
    with pytest.raises(ValueError, match="damaged or was not written by MPCPolicy.save"):
        MPCPolicy.load(path)
    with pytest.raises(FileNotFoundError):
        MPCPolicy.load(tmp_path / "nowhere.zip")


def test_a_flipped_bit_is_damage_or_changes_nothing(policy, tmp_path):
    path = tmp_path / "policy.zip"
    policy.save(path)
    content, action = path.read_bytes(), policy.predict(OBS, deterministic=True)[0]
    for byte in [*range(0, 60), *range(60, len(content), len(content) // 40), *range(len(content) - 150, len(content), 3)]:
        changed = bytearray(content)
        changed[byte] ^= 1 << byte % 8
        path.write_bytes(changed)
        try:
            loaded = MPCPolicy.load(path, device="cpu")
        except ValueError as error:
            assert "damaged" in str(error)
        else:  # the date of an entry, for instance
            np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], action)


@pytest.mark.parametrize("name", ["make_planner", "Planner", "ModelObjective", "partial", "os.system", "__builtins__"])
def test_a_file_cannot_name_other_classes_than_planners(policy, tmp_path, name):
    path = tmp_path / "policy.zip"
    policy.save(path)
    rewrite(path, lambda config: config.update(planner=name, planner_kwargs={}))
    with pytest.raises(ValueError, match=f"saved with your own planner {name}"):
        MPCPolicy.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("arguments"),
        lambda config: config["arguments"].pop("seed"),
        lambda config: config["arguments"].update(actor="os.system"),
        lambda config: config["arguments"].update(discount="1"),
        lambda config: config.update(functions=["model"]),
        lambda config: config.update(planner=["CEM"]),
        lambda config: config["planner_kwargs"].update(surplus=1),
        lambda config: config.update(format="sb3_mbrl.MPCPolicy.0"),
    ],
)
def test_a_configuration_of_anything_else_is_refused(policy, tmp_path, change):
    path = tmp_path / "policy.zip"
    policy.save(path)
    rewrite(path, change)
    with pytest.raises(ValueError, match="is damaged"):
        MPCPolicy.load(path)


def test_an_error_while_writing_leaves_the_old_file(policy, tmp_path, monkeypatch):
    path = tmp_path / "policy.zip"
    policy.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        policy.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
