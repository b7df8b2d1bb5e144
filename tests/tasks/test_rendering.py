import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import FrameStackObservation, TransformObservation

from sb3_mbrl.tasks.rendering import state_setter
from sb3_mbrl.tasks.wrappers import layers


def observed(env):
    task = env.unwrapped
    observe = getattr(task, "_get_obs", None) or getattr(task, "_get_ob", lambda: task.state)
    return np.asarray(observe(), dtype=np.float64)


@pytest.mark.parametrize(
    "env_id",
    [
        "Pendulum-v1",
        "CartPole-v1",
        "MountainCarContinuous-v0",
        "Acrobot-v1",
        "HalfCheetah-v5",
        "InvertedDoublePendulum-v5",
        "Reacher-v5",
    ],
)
def test_an_environment_is_set_to_the_state_of_an_observation(env_id):
    acting, shown = gym.make(env_id), gym.make(env_id)
    acting.reset(seed=0)
    acting.action_space.seed(0)
    for _ in range(5):
        acting.step(acting.action_space.sample())
    obs = observed(acting)
    state_setter(shown)(obs[None])
    # InvertedDoublePendulum and Reacher also observe what MuJoCo computes within a step
    n_positions = {"InvertedDoublePendulum-v5": 8, "Reacher-v5": 8}.get(env_id, len(obs))
    np.testing.assert_allclose(observed(shown)[:n_positions], obs[:n_positions], atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: TransformObservation(env, lambda obs: 2 * obs, env.observation_space),
        lambda env: FrameStackObservation(env, 2),
    ],
    ids=["transform", "stack"],
)
def test_a_rewritten_observation_does_not_determine_the_state(wrap):
    with pytest.raises(ValueError, match="not be rendered"):
        state_setter(wrap(gym.make("Pendulum-v1")))


def test_a_task_that_cannot_be_simulated_is_not_rendered():
    with pytest.raises(ValueError, match="not be rendered"):
        state_setter(gym.make("Pusher-v5"))


def test_layers_begin_with_the_task():
    env = gym.make("Pendulum-v1")
    assert layers(env)[0] is env.unwrapped and layers(env)[-1] is env
