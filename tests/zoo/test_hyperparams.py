"""The tuned values reach the constructor."""

import gymnasium as gym
import pytest
import yaml

from sb3_mbrl import MBPO
from sb3_mbrl.zoo import hyperparams, load_env_kwargs, load_hyperparams
from sb3_mbrl.zoo.algorithms import ALGORITHMS

ENTRIES = {algo: yaml.safe_load(hyperparams.hyperparams_file(algo).read_text()) for algo in ALGORITHMS}
NOT_ARGUMENTS = {"n_timesteps", "env_kwargs"}


@pytest.mark.parametrize(("algo", "env_id"), [(algo, env) for algo in ALGORITHMS for env in ENTRIES[algo] if env != "default"])
def test_every_entry_builds_its_algorithm(algo: str, env_id: str) -> None:
    entry = ENTRIES[algo][env_id]
    model = ALGORITHMS[algo](env=gym.make(env_id, **entry.get("env_kwargs", {})), **load_hyperparams(algo, env_id))
    for name in entry.keys() - NOT_ARGUMENTS - {"policy", "policy_kwargs", "rollout_schedule", "dynamics_kwargs"}:
        assert getattr(model, name) == entry[name]


def test_values_are_the_papers() -> None:
    hopper, cheetah = load_hyperparams("mbpo", "Hopper-v5"), load_hyperparams("mbpo", "HalfCheetah-v5")
    assert (hopper["gradient_steps"], hopper["target_entropy"], hopper["learning_starts"]) == (20, -1.0, 5000)
    assert hopper["rollout_schedule"] == [20_000, 150_000, 1, 15]
    assert (cheetah["gradient_steps"], cheetah["target_entropy"]) == (40, -3.0)


def test_humanoid_is_observed_as_in_the_paper() -> None:
    env = gym.make("Humanoid-v5", **ENTRIES["mbpo"]["Humanoid-v5"]["env_kwargs"])
    assert env.observation_space.shape == (45,)


def test_zoo_keys_do_not_reach_the_constructor() -> None:
    assert "n_timesteps" not in load_hyperparams("mbpo", "Hopper-v5")
    assert "env_kwargs" not in load_hyperparams("mbpo", "Ant-v5")


def test_unknown_environment_gets_the_default() -> None:
    assert load_hyperparams("mbpo", "MyEnv-v0") == load_hyperparams("mbpo", "default")


def test_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of"):
        load_hyperparams("nope", "Hopper-v5")


@pytest.mark.parametrize(
    ("env_id", "target_entropy", "learning_starts", "model_retain_steps"),
    [
        ("Hopper-v5", -1.0, 5000, 1000),
        ("Walker2d-v5", -3.0, 5000, 1000),
        ("HalfCheetah-v5", -3.0, 5000, 1000),
        ("Ant-v5", -4.0, 5000, 1000),
        ("Humanoid-v5", -2.0, 5000, 5000),
        ("InvertedPendulum-v5", -0.05, 500, 250),
        ("InvertedDoublePendulum-v5", -0.5, 500, 250),
    ],
)
def test_entropy_warm_up_and_retention(
    env_id: str, target_entropy: float, learning_starts: int, model_retain_steps: int
) -> None:
    env = gym.make(env_id, **load_env_kwargs("mbpo", env_id))
    model = MBPO(env=env, **load_hyperparams("mbpo", env_id))
    assert (model.target_entropy, model.learning_starts) == (target_entropy, learning_starts)
    assert model.model_retain_steps == model_retain_steps
