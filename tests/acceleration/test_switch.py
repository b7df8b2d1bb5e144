"""A learning step is the same up to rounding with and without acceleration, and the switch works everywhere."""

import threading
from copy import deepcopy

import gymnasium as gym
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.sac.policies import LOG_STD_MAX
from torch import nn

from sb3_mbrl import MBPO, MBTD3, MBTQC, PETS, TDMPC, TDMPC2, acceleration
from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration import sac as fused_sac
from sb3_mbrl.acceleration.adam import adam_step
from sb3_mbrl.acceleration.precision import HAS_BFLOAT16

ENV_ID = "Pendulum-v1"
ENSEMBLE = {"ensemble_size": 4, "n_elites": 3, "net_arch": [48, 48]}
FIT = {"model_train_freq": 1_000, "dynamics_kwargs": ENSEMBLE, "fit_kwargs": {"max_epochs": 5}}
ACTOR_CRITIC = {
    "learning_starts": 200,
    "train_freq": 220,
    "gradient_steps": 20,
    "policy_kwargs": {"net_arch": [48, 48]},
    "rollouts_per_step": 1,
    **FIT,
}
STEPS: dict[str, tuple[type, dict, int]] = {
    "MBPO": (MBPO, ACTOR_CRITIC, 220),
    "MBPO, tanh": (MBPO, {**ACTOR_CRITIC, "policy_kwargs": {"net_arch": [48, 48], "activation_fn": nn.Tanh}}, 220),
    "MBTQC": (MBTQC, ACTOR_CRITIC, 220),
    "MBTD3": (MBTD3, ACTOR_CRITIC, 220),
    "PETS": (PETS, {"learning_starts": 200, "planner_kwargs": {"population_size": 64}, "horizon": 5, **FIT}, 203),
    "TDMPC": (TDMPC, {"learning_starts": 200, "model_size": "small", "pretrain_steps": 10}, 203),
    "TDMPC2": (TDMPC2, {"learning_starts": 200, "model_size": "small", "pretrain_steps": 10}, 203),
}


def learned(name):
    """The state of the algorithm before and after its first round of training: networks, imagination, last action."""
    algorithm, arguments, n_steps = STEPS[name]
    policy = "MPCPolicy" if algorithm is PETS else "MlpPolicy"
    model = algorithm(policy, gym.make(ENV_ID), seed=0, device="cpu", **deepcopy(arguments))

    def parameters():
        networks = {"policy": model.policy, "dynamics": getattr(model, "dynamics", nn.Module())}
        return {f"{of}.{name}": each.detach().clone() for of, net in networks.items() for name, each in net.named_parameters()}

    before = parameters()
    model.learn(n_steps)
    imagined = model.model_buffer.contents().next_observations if hasattr(model, "model_buffer") else th.zeros(0)
    return before, parameters(), imagined, th.as_tensor(model.replay_buffer.actions[n_steps - 1])


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("mkl_is_slow", [False, True])
def test_a_learning_step_is_the_same_up_to_rounding(monkeypatch, name, mkl_is_slow):
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", mkl_is_slow)
    before, fast, *fast_data = learned(name)
    with acceleration.disabled():
        _, plain, *plain_data = learned(name)
    assert any(not th.equal(before[name], plain[name]) for name in before)
    for name, value in plain.items():
        change = (value - before[name]).norm()
        assert (fast[name] - value).norm() <= 2e-3 * change + 1e-6, name
    th.testing.assert_close(fast_data, plain_data, atol=1e-3, rtol=1e-3)


@pytest.fixture
def agent():
    return SAC("MlpPolicy", ENV_ID, device="cpu", policy_kwargs={"net_arch": [16]})


@pytest.mark.skipif(not onednn.AVAILABLE, reason="no oneDNN")
def test_without_acceleration_sb3_and_pytorch_compute_everything(agent):
    for parameter in agent.actor.parameters():
        parameter.grad = th.ones_like(parameter)
    optimizer = agent.actor.optimizer
    optimizer.step()
    assert fused_sac.supports(agent) and adam_step(optimizer) != optimizer.step
    with acceleration.disabled():
        assert not fused_sac.supports(agent)
        assert adam_step(optimizer) == optimizer.step
    assert fused_sac.supports(agent)


def test_the_context_restores_the_switch_even_after_an_error():
    with pytest.raises(KeyboardInterrupt), acceleration.disabled():
        with acceleration.disabled():
            assert not acceleration.enabled
        assert not acceleration.enabled
        raise KeyboardInterrupt
    assert acceleration.enabled


def test_the_switch_holds_for_all_threads():
    seen = []
    with acceleration.disabled():
        thread = threading.Thread(target=lambda: seen.append(acceleration.enabled))
        thread.start()
        thread.join()
    assert seen == [False]


def test_contexts_that_overlap_restore_the_switch_when_the_last_one_is_left():
    first, second = acceleration.disabled(), acceleration.disabled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not acceleration.enabled
    second.__exit__(None, None, None)
    assert acceleration.enabled


def test_the_environment_variable_sets_the_switch(monkeypatch):
    monkeypatch.delenv(acceleration.VARIABLE, raising=False)
    assert acceleration._from_environment()
    for value, expected in (("0", False), ("1", True)):
        monkeypatch.setenv(acceleration.VARIABLE, value)
        assert acceleration._from_environment() is expected
    monkeypatch.setenv(acceleration.VARIABLE, "off")
    with pytest.raises(ValueError, match="must be 1 .* or 0, got 'off'"):
        acceleration._from_environment()


def test_layers_of_a_policy_keep_their_classes():
    model = MBPO("MlpPolicy", ENV_ID, seed=0, device="cpu", **deepcopy(ACTOR_CRITIC))
    classes = []
    model.policy.actor.register_forward_pre_hook(lambda actor, _: classes.append({type(each) for each in actor.modules()}))
    expected = {type(each) for each in model.policy.actor.modules()}
    model.learn(220)
    assert classes and all(each == expected for each in classes)


@pytest.mark.skipif(not HAS_BFLOAT16, reason="no such products on this processor")
def test_without_acceleration_bfloat16_is_float32():
    def weights(precision):
        with acceleration.disabled():
            model = MBPO("MlpPolicy", ENV_ID, seed=0, device="cpu", precision=precision, **deepcopy(ACTOR_CRITIC)).learn(220)
        return [*model.policy.parameters(), *model.dynamics.parameters()]

    assert all(th.equal(rounded, exact) for rounded, exact in zip(weights("bfloat16"), weights("float32"), strict=True))


@pytest.mark.parametrize("setting", [{"use_sde": True}, {"policy_kwargs": {"activation_fn": nn.ELU}}], ids=["gSDE", "ELU"])
def test_bfloat16_is_refused_where_sb3s_code_trains(monkeypatch, setting):
    monkeypatch.setattr("sb3_mbrl.acceleration.precision.HAS_BFLOAT16", True)
    with pytest.raises(ValueError, match="in float32"):
        MBPO("MlpPolicy", ENV_ID, precision="bfloat16", **setting)


def test_siblings_accept_bfloat16_only_for_their_model(monkeypatch):
    monkeypatch.setattr("sb3_mbrl.acceleration.precision.HAS_BFLOAT16", True)
    with pytest.raises(TypeError, match="precision"):
        MBTQC("MlpPolicy", ENV_ID, precision="bfloat16")
    model = MBTQC("MlpPolicy", ENV_ID, dynamics_kwargs={"precision": "bfloat16"})
    assert model.dynamics.precision == "bfloat16"


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_actions_are_imagined_from_the_actors_distribution(activation):
    agent = SAC("MlpPolicy", ENV_ID, device="cpu", policy_kwargs={"net_arch": [16], "activation_fn": activation})
    agent.actor.log_std.bias.data += LOG_STD_MAX  # beyond it the deviation is clamped
    obs = th.randn(100, 3, generator=th.Generator().manual_seed(0))
    with th.no_grad():
        th.testing.assert_close(fused_sac.action_dist_params(agent.actor, obs), agent.actor.get_action_dist_params(obs))
    assert fused_sac.action_dist_params(agent.actor, obs)[0].requires_grad  # if somebody asks for gradients
