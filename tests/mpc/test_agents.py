"""Plans with actors and critics of Stable-Baselines3."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, TQC, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import MPCPolicy
from sb3_mbrl.dynamics import SimulatorModel
from sb3_mbrl.mpc.agents import actor_function, value_function
from tests.mpc.cheap import OBS, PLANNER, cheap, random_model

OFF = {"learning_starts": 0, "buffer_size": 100}


def small(algorithm, env, **kwargs):
    return algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **kwargs)


def stretched(env_id):
    env = VecNormalize(make_vec_env(env_id, seed=0), norm_reward=False)
    env.obs_rms.mean, env.obs_rms.var = np.array([0.5, -0.5]), np.array([4.0, 0.25])
    return env


@pytest.mark.parametrize(
    ("algorithm", "env_id", "kwargs"),
    [
        (SAC, "Slider-v0", OFF),
        (TD3, "Slider-v0", OFF),
        (TQC, "Slider-v0", OFF),
        (CrossQ, "Slider-v0", OFF),
        (PPO, "Slider-v0", {}),
        (A2C, "DiscreteSlider-v0", {}),
        (DQN, "DiscreteSlider-v0", OFF),
    ],
)
def test_any_sb3_actor_and_critic(algorithm, env_id, kwargs):
    env = VecNormalize(make_vec_env(env_id, seed=0), norm_reward=False)
    env.obs_rms.mean = np.array([0.5, -0.5])
    agent = algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **kwargs)
    agent.policy.set_training_mode(False)
    model = random_model(env.action_space)
    raw = th.as_tensor(OBS)
    with th.no_grad():
        actions, values = actor_function(agent)(raw), value_function(agent)(raw)
    assert values.shape == (4,) and th.isfinite(values).all()
    predicted, _ = agent.predict(env.normalize_obs(OBS), deterministic=True)
    if isinstance(env.action_space, spaces.Discrete):
        np.testing.assert_array_equal(actions.argmax(dim=1).numpy(), predicted)
    else:
        np.testing.assert_allclose(2 * actions.numpy(), predicted, atol=1e-5)
    policy = MPCPolicy(model, **PLANNER, terminal_value=agent, actor=agent, n_proposals=2)
    action, _ = policy.predict(OBS, deterministic=True)
    assert all(policy.action_space.contains(each) for each in action)


@pytest.mark.parametrize("algorithm", [SAC, TD3, TQC, CrossQ])
def test_the_value_is_the_lowest_critics_at_the_actors_action(algorithm):
    agent = small(algorithm, stretched("Slider-v0"), **OFF)
    value = value_function(agent)(th.as_tensor(OBS))
    obs = agent.env.normalize_obs(OBS)
    action = agent.policy.scale_action(agent.predict(obs, deterministic=True)[0])
    with th.no_grad():
        critics = agent.critic(th.as_tensor(obs), th.as_tensor(action))
    expected = critics.mean(dim=(1, 2)) if algorithm is TQC else th.cat(critics, dim=1).min(dim=1).values
    np.testing.assert_allclose(value.detach(), expected, atol=1e-5)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_the_value_is_that_of_the_value_head(algorithm):
    agent = small(algorithm, stretched("Slider-v0"))
    obs = agent.env.normalize_obs(OBS)
    expected = agent.policy.predict_values(th.as_tensor(obs)).detach()[:, 0]
    np.testing.assert_allclose(value_function(agent)(th.as_tensor(OBS)).detach(), expected, atol=1e-5)


def test_the_value_is_the_highest_q_value():
    agent = small(DQN, stretched("DiscreteSlider-v0"), **OFF)
    obs = agent.env.normalize_obs(OBS)
    expected = agent.q_net(th.as_tensor(obs)).detach().max(dim=1).values
    np.testing.assert_allclose(value_function(agent)(th.as_tensor(OBS)).detach(), expected, atol=1e-5)


@pytest.mark.parametrize("algorithm", [SAC, CrossQ])
def test_an_agent_in_training_mode_is_evaluated_and_not_changed(algorithm):
    agent = small(algorithm, "Slider-v0", learning_starts=10, buffer_size=100).learn(30)
    agent.policy.set_training_mode(True)  # as the last update of learn() may leave it
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    obs = th.as_tensor(OBS)
    for function in (actor_function(agent), value_function(agent)):
        np.testing.assert_allclose(function(obs)[:1].detach(), function(obs[:1]).detach(), atol=1e-5)
    assert all(th.equal(value, before[name]) for name, value in agent.policy.state_dict().items())


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize(
    ("algorithm", "env_id", "kwargs"),
    [(SAC, "Slider-v0", OFF), (TQC, "Slider-v0", OFF), (PPO, "Slider-v0", {}), (PPO, "DiscreteSlider-v0", {})],
)
def test_a_diverged_state_has_no_value_and_does_not_disturb_others(algorithm, env_id, kwargs, bad):
    agent, obs = small(algorithm, env_id, **kwargs), th.as_tensor(OBS).clone()
    expected, actions = value_function(agent)(obs).detach(), actor_function(agent)(obs).detach()
    obs[1, 0] = bad
    values = value_function(agent)(obs).detach()
    assert th.isnan(values).tolist() == [False, True, False, False]
    others = [0, 2, 3]
    np.testing.assert_allclose(values[others], expected[others], atol=1e-6)
    np.testing.assert_allclose(actor_function(agent)(obs).detach()[others], actions[others], atol=1e-6)
    assert th.isfinite(actor_function(agent)(obs)).all()


def test_plans_that_diverge_rank_below_those_that_do_not():
    simulator, agent = SimulatorModel("Pendulum-v1"), small(SAC, "Pendulum-v1", **OFF)
    step = simulator.simulator.step

    def breaks_when_pushed_right(rows, action):
        next_rows, reward, terminated = step(rows, action)
        return np.where(action > 0.5, np.nan, next_rows), reward, terminated

    simulator.simulator.step = breaks_when_pushed_right
    policy = cheap(simulator, "random_shooting", terminal_value=agent, actor=agent)
    action, _ = policy.predict(np.array([[-1.0, 0.0, 0.5]], np.float32), deterministic=True)
    assert action[0, 0] <= 0.5 and th.isfinite(policy.last_plan.value).all()


@pytest.mark.parametrize("function_of", [actor_function, value_function])
def test_an_agent_is_evaluated_on_its_own_device(function_of, monkeypatch):
    agent, seen = small(PPO, "Slider-v0"), []

    def answer(obs, deterministic=True):
        seen.append(obs.device.type)
        return th.zeros(len(obs), 1)  # from "meta" nothing comes back

    agent.policy.to("meta")
    monkeypatch.setattr(agent.policy, "_predict", answer)
    monkeypatch.setattr(agent.policy, "predict_values", answer)
    assert function_of(agent)(th.as_tensor(OBS)).device.type == "cpu"
    assert seen == ["meta"]


@pytest.mark.parametrize("name", ["actor", "terminal_value"])
def test_an_agent_of_another_task_is_refused(model, name):
    with pytest.raises(ValueError, match=rf"{name} was trained .* in Box.*\(3,\).*the model's are in Box.*\(2,\)"):
        MPCPolicy(model, **{name: small(SAC, "Pendulum-v1", **OFF)})


def test_a_recurrent_actor_is_refused():
    agent = RecurrentPPO("MlpLstmPolicy", "Slider-v0", n_steps=8, device="cpu")
    with pytest.raises(ValueError, match="not a function of the observation alone"):
        MPCPolicy(random_model(agent.action_space), actor=agent)


def test_agents_without_a_known_critic_are_refused():
    with pytest.raises(ValueError, match="state value from ARSPolicy.*Pass a function"):
        value_function(ARS("MlpPolicy", "Slider-v0", device="cpu"))
    agent = RecurrentPPO("MlpLstmPolicy", "Slider-v0", n_steps=8, device="cpu")
    with pytest.raises(ValueError, match="not a function of the observation alone"):
        value_function(agent)
