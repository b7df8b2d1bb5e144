"""The type of an environment is checked before its spaces, with the same messages everywhere."""

import sys
from types import SimpleNamespace

import gymnasium as gym
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecCheckNan, VecFrameStack, VecNormalize, patch_gym

from sb3_mbrl import MBPO, MBTD3, MBTQC, PETS, TDMPC, TDMPC2, Dyna, DynaQ, LearnedModelEnv, LearnedModelVecEnv, MBCrossQ
from sb3_mbrl.common.environments import accepted_environment
from sb3_mbrl.dynamics import SimulatorModel
from sb3_mbrl.envs import collect

ALGORITHMS = {
    **{cls.__name__: lambda env, cls=cls: cls("MlpPolicy", env) for cls in (MBPO, MBTQC, MBCrossQ, MBTD3, TDMPC, TDMPC2)},
    "PETS": lambda env: PETS("MPCPolicy", env),
    "Dyna": lambda env: Dyna(PPO, "MlpPolicy", env),
}
TAKES_AN_ENVIRONMENT = {
    **ALGORITHMS,
    "DynaQ": lambda env: DynaQ("TabularPolicy", env),
    "LearnedModelEnv": lambda env: LearnedModelEnv(env, None),
    "LearnedModelEnv.from_env": LearnedModelEnv.from_env,
    "LearnedModelVecEnv.from_env": lambda env: LearnedModelVecEnv.from_env(env, n_envs=2),
    "SimulatorModel": SimulatorModel,
    "collect": lambda env: collect(env, n_steps=1),
}
MISTAKES = [
    (lambda: gym.make_vec("Pendulum-v1", num_envs=2), "a VectorEnv of Gymnasium.*make_vec_env"),
    (lambda: gym.Env, r"got the class Env.*Env\(\)"),
    (lambda: lambda: gym.make("Pendulum-v1"), r"got the function .*Pass what it returns.*DummyVecEnv\("),
    (lambda: [gym.make("Pendulum-v1")], "env must be an environment of Gymnasium, its id, or a VecEnv .* got \\["),
    (lambda: 5, "env must be an environment of Gymnasium, its id, or a VecEnv .* got 5"),
]


@pytest.mark.parametrize("mistake, message", MISTAKES, ids=["VectorEnv", "class", "function", "list", "number"])
@pytest.mark.parametrize("name", TAKES_AN_ENVIRONMENT)
def test_anything_that_is_not_an_environment_is_named(name, mistake, message):
    with pytest.raises(ValueError, match=message):
        TAKES_AN_ENVIRONMENT[name](mistake())


@pytest.mark.parametrize("name", [*ALGORITHMS, "DynaQ"])
def test_a_missing_environment_is_named(name):
    with pytest.raises(ValueError, match="env must be an environment of Gymnasium, its id, or a VecEnv .* got None"):
        TAKES_AN_ENVIRONMENT[name](None)


@pytest.mark.parametrize("name", [*ALGORITHMS, "DynaQ"])
def test_learning_after_a_load_without_an_environment_asks_for_one(name, tmp_path):
    model = TAKES_AN_ENVIRONMENT[name]("FrozenLake-v1" if name == "DynaQ" else "Pendulum-v1")
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"{name} has no environment to learn in.*{name}\.load\(path, env=env\).*set_env"):
        loaded.learn(1)


@pytest.mark.parametrize("policy", [None, 3, PPO, int])
@pytest.mark.parametrize("cls", [MBPO, MBTD3, TDMPC2, PETS])
def test_anything_that_is_not_a_policy_is_refused_with_the_available_names(cls, policy):
    with pytest.raises(ValueError, match=rf"policy of {cls.__name__} must be '\w+Policy'.*; got {policy!r}"):
        cls(policy, "Pendulum-v1")


def test_arguments_in_the_order_of_other_algorithms():
    with pytest.raises(ValueError, match="algorithm_class must be a class of Stable-Baselines3 such as PPO, got 'MlpPolicy'"):
        Dyna("MlpPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="policy must be the name or class .*, such as 'MlpPolicy', got None"):
        Dyna(PPO, None, "Pendulum-v1")
    with pytest.raises(ValueError, match="Policy MlpPolicy unknown"):
        DynaQ("MlpPolicy", "FrozenLake-v1")
    with pytest.raises(ValueError, match="policy must be 'TabularPolicy' or a subclass of it, got None"):
        DynaQ(None, "FrozenLake-v1")


@pytest.mark.parametrize("cls", [MBPO, TDMPC2])
def test_a_table_is_for_discrete_observations(cls):
    with pytest.raises(ValueError, match="DynaQ"):
        cls("MlpPolicy", "FrozenLake-v1")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_vec_normalize_must_be_outside_of_wrappers_that_change_observations(name):
    inside = VecFrameStack(VecNormalize(make_vec_env("Pendulum-v1")), 2)
    with pytest.raises(
        ValueError, match=r"VecNormalize goes outside of VecFrameStack.*VecNormalize\(VecFrameStack\(venv\), ...\)"
    ):
        ALGORITHMS[name](inside)


@pytest.mark.parametrize("name", ["MBPO", "TDMPC2", "PETS"])
def test_vec_normalize_around_frames_and_within_a_check_is_accepted(name):
    ALGORITHMS[name](VecCheckNan(VecNormalize(VecFrameStack(make_vec_env("Pendulum-v1"), 2))))


def test_an_environment_of_openai_gym_is_converted_by_shimmy(monkeypatch):
    class OldEnv:
        unwrapped = property(lambda self: self)

        def reset(self, *, seed=None):
            """Has the argument ``seed``, by which SB3 recognizes Gym 0.26."""

    converted = gym.make("Pendulum-v1")
    monkeypatch.setattr(patch_gym, "gym_installed", True)
    monkeypatch.setattr(patch_gym, "gym", SimpleNamespace(Env=OldEnv), raising=False)
    monkeypatch.setitem(sys.modules, "shimmy", SimpleNamespace(GymV26CompatibilityV0=lambda env: converted))
    with pytest.warns(UserWarning, match="OpenAI Gym"):
        assert accepted_environment(OldEnv()) is converted
    with pytest.warns(UserWarning, match="OpenAI Gym"):
        model = MBPO("MlpPolicy", OldEnv())
    assert model.env.envs[0].unwrapped is converted.unwrapped
