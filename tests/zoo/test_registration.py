"""Our algorithms are registered in RL Zoo. Tests that need RL Zoo itself are in test_command_line.py."""

import sys
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3 import DQN, PPO

from sb3_mbrl import Dyna
from sb3_mbrl.zoo import load_hyperparams, register
from sb3_mbrl.zoo.algorithms import ALGORITHMS, DynaDQN, DynaPPO
from sb3_mbrl.zoo.command_line import main
from sb3_mbrl.zoo.samplers import CONVERTERS, SAMPLERS


class Trial:
    """A trial like Optuna's that always returns one end of the range."""

    def __init__(self, end: int):
        self.end = end
        self.params: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float, log: bool = False) -> float:
        return self.params.setdefault(name, (low, high)[self.end])

    suggest_int = suggest_float

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return self.params.setdefault(name, choices[self.end])


@pytest.mark.parametrize("end", [0, -1])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_sampled_values_are_valid_arguments(algo: str, end: int) -> None:
    trial = Trial(end)
    sampled = SAMPLERS[algo](trial, 1, 1, {})  # type: ignore[arg-type]
    assert CONVERTERS[algo](trial.params) == sampled
    env = gym.make("CartPole-v1" if algo == "dyna_dqn" else "Pendulum-v1")
    model = ALGORITHMS[algo](env=env, **{**load_hyperparams(algo, "default"), **sampled})
    assert all(getattr(model, name) == value for name, value in sampled.items())


@pytest.mark.parametrize(("cls", "agent", "env_id"), [(DynaPPO, PPO, "Pendulum-v1"), (DynaDQN, DQN, "CartPole-v1")])
def test_dyna_ppo_is_saved_and_loaded(cls: type[Dyna], agent: type, env_id: str, tmp_path: Any) -> None:
    cls("MlpPolicy", env_id).save(tmp_path / "model")
    for loader in (cls, Dyna):
        model = loader.load(tmp_path / "model", env=env_id)
        assert model.algorithm_class is agent and isinstance(model.agent, agent)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    with pytest.raises(ImportError, match="extra `zoo`"):
        register()
    with pytest.raises(SystemExit):
        main(["train", "--algo", "mbpo"])
    assert "extra `zoo`" in capsys.readouterr().err
