import numpy as np
import pytest
from gymnasium import ActionWrapper, spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.common.collection import collect_trajectories


@pytest.mark.parametrize("normalized", [False, True])
def test_fresh_trajectories_are_raw_and_end_with_the_episode(normalized):
    venv = make_vec_env("Pendulum-v1", 2, seed=0)
    env = VecNormalize(venv) if normalized else venv
    seen = []

    def predict(obs, state=None, episode_start=None, deterministic=False):
        seen.append((state, episode_start.copy()))
        return np.array([[2.0], [-1.0]]), len(seen)

    pieces = collect_trajectories(env, predict, 250)
    assert [len(piece) for piece in pieces] == [200, 50, 200, 50]
    assert pieces[0].actions.unique().tolist() == [1.0] and pieces[2].actions.unique().tolist() == [-0.5]
    for piece in pieces:
        assert piece.next_observations[:-1].numpy() == pytest.approx(piece.observations[1:].numpy(), abs=1e-5)
        assert piece.observations[:, :2].norm(dim=1).numpy() == pytest.approx(1.0, abs=1e-4)  # raw: on the circle
        assert piece.next_observations[:, :2].norm(dim=1).numpy() == pytest.approx(1.0, abs=1e-4)
        assert not piece.terminated.any()  # a time limit
    assert seen[0][0] is None and seen[7][0] == 7
    assert [t for t, (_, starts) in enumerate(seen) if starts.all()] == [0, 200]
    if normalized:
        assert env.training and env.obs_rms.count < 1  # nothing was learned from them


class Shifted(ActionWrapper):
    """CartPole with actions numbered from 5."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = spaces.Discrete(2, start=5)

    def action(self, action):
        return action - 5


def test_discrete_actions_of_fresh_trajectories_are_one_hot():
    env = make_vec_env("CartPole-v1", 2, seed=0, wrapper_class=Shifted)
    pieces = collect_trajectories(env, lambda obs, **kwargs: (np.array([5, 6]), None), 30)
    assert pieces[0].actions.unique(dim=0).tolist() == [[1.0, 0.0]]
    assert pieces[-1].actions.unique(dim=0).tolist() == [[0.0, 1.0]]
    assert pieces[0].terminated[-1]


@pytest.mark.parametrize("space", [spaces.MultiBinary(2), spaces.Box(-np.inf, np.inf, (1,))], ids=str)
def test_actions_that_models_cannot_see_are_refused(space):
    env = make_vec_env("Pendulum-v1")
    env.action_space = space
    with pytest.raises(ValueError, match="Discrete or a Box with finite bounds.*; got"):
        collect_trajectories(env, None, 1)
