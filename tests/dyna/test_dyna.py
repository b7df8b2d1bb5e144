"""Any algorithm of SB3, trained in a model of the environment. Warnings are errors."""

from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import TQC, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_mbrl import Dyna, LearnedModelVecEnv
from sb3_mbrl.common.environments import time_limit
from sb3_mbrl.dyna import dyna, validation
from sb3_mbrl.dyna.validation import StopWhenNoLongerBetter

ON_POLICY = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
OFF_POLICY = {"learning_starts": 16, "batch_size": 8, "buffer_size": 500}
ALGORITHMS = [
    (PPO, "MlpPolicy", "Pendulum-v1", ON_POLICY),
    (A2C, "MlpPolicy", "CartPole-v1", {}),
    (RecurrentPPO, "MlpLstmPolicy", "Pendulum-v1", {**ON_POLICY, "policy_kwargs": {"lstm_hidden_size": 8}}),
    (DQN, "MlpPolicy", "CartPole-v1", OFF_POLICY),
    (SAC, "MlpPolicy", "Pendulum-v1", OFF_POLICY),
    (TD3, "MlpPolicy", "Pendulum-v1", OFF_POLICY),
    (TQC, "MlpPolicy", "Pendulum-v1", OFF_POLICY),
]
TINY = {
    "learning_starts": 60,
    "n_imagined_envs": 4,
    "imagined_steps_per_step": 1,
    "max_episode_steps": 10,
    "model_train_freq": 60,
    "dynamics_kwargs": {"ensemble_size": 3, "n_elites": 2, "net_arch": [16]},
    "fit_kwargs": {"max_epochs": 2},
    "seed": 0,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def short_episodes(set_time_limit, monkeypatch):
    """Shortens the imagined episodes in which the policy is validated, which are as long as real ones."""
    set_time_limit(lambda env: 15)
    monkeypatch.setattr(validation, "EPISODES_PER_MEMBER", 2)


@pytest.fixture
def set_time_limit(monkeypatch):
    """``set_time_limit(function)`` replaces the function by which Dyna reads the time limit of an environment."""

    def set_it(function):
        for module in (dyna, validation):
            monkeypatch.setattr(module, "time_limit", function)

    return set_it


def make(algorithm=PPO, policy="MlpPolicy", env="Pendulum-v1", algorithm_kwargs=None, **changes):
    kwargs = ON_POLICY if algorithm_kwargs is None else algorithm_kwargs
    return Dyna(algorithm, policy, env, algorithm_kwargs={"policy_kwargs": {"net_arch": [8]}, **kwargs}, **{**TINY, **changes})


def test_an_unknown_time_limit_is_announced(set_time_limit):
    set_time_limit(time_limit)
    model = make(env=TruncatesItself(), max_episode_steps=None, learning_starts=10)
    with pytest.warns(UserWarning, match="time limit .* is not known. Imagined episodes are truncated after 1000 steps"):
        model.learn(5)
    assert model._imagined_episode_length() == 1_000


def test_arguments_of_the_algorithm_are_pointed_to_algorithm_kwargs():
    with pytest.raises(TypeError, match=r"Dyna has no arguments \['n_steps'\].*algorithm_kwargs={'n_steps': 20}"):
        Dyna(PPO, "MlpPolicy", "Pendulum-v1", n_steps=20)


def make_short_pendulum():
    return Monitor(gym.make("Pendulum-v1", max_episode_steps=15))


def weights(model):
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in model.policy.parameters()])


@pytest.mark.parametrize("algorithm, policy, env, kwargs", ALGORITHMS, ids=[each[0].__name__ for each in ALGORITHMS])
def test_it_trains_saves_and_continues(algorithm, policy, env, kwargs, tmp_path):
    model = make(algorithm, policy, env, kwargs)
    before = weights(model)
    model.learn(130)
    assert model.num_timesteps == 130 and model.agent.num_timesteps >= 60
    assert not np.array_equal(weights(model), before)

    model.save(tmp_path / "model")
    loaded = Dyna.load(tmp_path / "model", env=gym.make(env), device="cpu")
    obs = np.stack([gym.make(env).reset(seed=seed)[0] for seed in range(5)])
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert loaded.agent.num_timesteps == model.agent.num_timesteps

    model.save_replay_buffer(tmp_path / "buffer")
    loaded.load_replay_buffer(tmp_path / "buffer")
    imagined, before = loaded.agent.num_timesteps, weights(loaded)
    loaded.learn(70, reset_num_timesteps=False)
    assert loaded.num_timesteps == 200 and loaded.agent.num_timesteps > imagined
    assert not np.array_equal(weights(loaded), before)


def test_it_loads_to_predict(tmp_path):
    model = make().learn(70)
    model.save(tmp_path / "model")
    obs = np.zeros((2, 3), np.float32)
    loaded = Dyna.load(tmp_path / "model", device="cpu")
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


class Watch(BaseCallback):
    """Records the steps at which it is called."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def _on_step(self):
        self.steps.append(self.num_timesteps)
        return True


def test_callbacks_and_clocks_count_real_steps(tmp_path):
    watch = Watch()
    model = make(imagined_steps_per_step=5, tensorboard_log=str(tmp_path)).learn(130, callback=watch)
    assert watch.steps == list(range(1, 131))
    assert model.num_timesteps == 130 < model.agent.num_timesteps
    assert model.agent.logger.dir is None and len(list(tmp_path.iterdir())) == 1
    assert model.replay_buffer.size() == 130


def test_imagined_returns_are_logged_at_real_steps(tmp_path):
    make(env=make_short_pendulum(), tensorboard_log=str(tmp_path)).learn(200)
    events = EventAccumulator(str(tmp_path / "Dyna_1"))
    events.Reload()
    assert [event.step for event in events.Scalars("imagination/return_mean")] == [61, 121, 181]
    # The first policy that the model made promises for is compared when the next round begins
    assert [event.step for event in events.Scalars("imagination/gap")] == [121, 181]
    assert {"rollout/ep_rew_mean", "imagination/alarm", "agent/train/value_loss"} <= set(events.Tags()["scalars"])


def test_schedules_follow_the_real_run():
    seen = []

    def learning_rate(progress):
        seen.append(progress)
        return 1e-3

    make(algorithm_kwargs={**ON_POLICY, "learning_rate": learning_rate}).learn(240)
    last_of_rounds = sorted({round(progress, 3) for progress in seen[1:] if 0 < progress < 1}, reverse=True)
    # Rounds at steps 61, 121 and 181 of 240
    assert last_of_rounds == [round(1 - step / 240, 3) for step in (61, 121, 181)]


def test_equal_seeds_give_equal_runs():
    runs = [weights(make(seed=seed).learn(130)) for seed in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


def test_several_normalised_environments_and_evaluation():
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0))
    model = make(env=env).learn(140)
    assert model.num_timesteps == 140
    imagined = model.agent.env
    assert isinstance(imagined, VecNormalize) and not imagined.training
    assert isinstance(imagined.unwrapped, LearnedModelVecEnv)
    assert not np.array_equal(imagined.obs_rms.mean, np.zeros(3))
    assert np.isfinite(evaluate_policy(model, env, n_eval_episodes=2)[0])


def test_rules_reach_the_imagined_environments():
    rules = {"value_mode": "pessimistic", "uncertainty_penalty": 0.5, "max_disagreement": 9.0, "halt_reward": -20.0}
    model = make(start_states="initial", env="CartPole-v1", **rules).learn(70)
    imagination = model.agent.env.unwrapped.imagination
    assert {name: getattr(imagination.rules, name) for name in rules} == rules
    assert imagination.rules.max_episode_steps == 10 and (imagination._pool.abs() <= 0.05).all()


def test_an_imagined_return_far_above_the_real_one_raises_the_alarm(capsys):
    model = make(verbose=1)
    model._logger = Logger(None, [])
    model.ep_info_buffer = [{"r": -500.0, "l": 15}, {"r": -700.0, "l": 15}]
    model._episode_num, model._promised = 2, (-100.0, 50.0, 15)
    model._compare_with_reality()
    assert model.logger.name_to_value["imagination/gap"] == 500.0
    assert model.logger.name_to_value["imagination/alarm"] == 1.0
    assert "promised a return of -100, reality gave -600" in capsys.readouterr().out

    model._episode_num, model._promised = 4, (-550.0, 50.0, 15)
    model._compare_with_reality()
    assert model.logger.name_to_value["imagination/alarm"] == 0.0


class TruncatesItself(gym.Env):
    """Each step has reward -1. After 20 steps, the environment truncates the episode without declaring a time limit."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32), {}

    def step(self, action):
        self.n_steps += 1
        return self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32), -1.0, False, self.n_steps >= 20, {}


def test_imagined_and_real_returns_cover_the_same_number_of_steps(set_time_limit):
    set_time_limit(time_limit)
    model = make(env=TruncatesItself(), max_episode_steps=10).learn(130, log_interval=1_000)
    assert model._promised[2] == 20
    assert abs(model.logger.name_to_value["imagination/gap"]) < 2
    assert model.logger.name_to_value["imagination/alarm"] == 0.0


class TruncatesItselfEarly(TruncatesItself):
    """Truncates every other episode early."""

    n_episodes = 0

    def reset(self, **kwargs):
        self.n_episodes += 1
        return super().reset(**kwargs)

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, False, truncated or (self.n_episodes % 2 == 0 and self.n_steps >= 5), info


@pytest.mark.parametrize("known", [None, 100])
def test_an_episode_that_was_cut_short_is_not_compared(set_time_limit, known):
    set_time_limit(lambda env: known)
    model = make(env=TruncatesItselfEarly(), max_episode_steps=10).learn(130, log_interval=1_000)
    assert "imagination/return_mean" in model.logger.name_to_value
    assert "imagination/alarm" not in model.logger.name_to_value


def test_no_return_is_imagined_before_the_length_of_an_episode_is_known(set_time_limit, monkeypatch):
    set_time_limit(time_limit)
    model = make(env=TruncatesItself(), learning_starts=10, model_train_freq=10, n_imagined_envs=1)
    monkeypatch.setattr("sb3_mbrl.algorithms.learning.MIN_FIT_TRANSITIONS", 10)
    model.learn(15, log_interval=1_000)
    assert model.dynamics.is_fitted and model._promised is None
    assert not {"imagination/return_mean", "imagination/alarm"} & model.logger.name_to_value.keys()


def test_returns_of_another_reward_are_not_compared():
    model = make(env=make_short_pendulum(), reward_fn=lambda obs, action, next_obs: next_obs[:, 0]).learn(
        130, log_interval=1_000
    )
    assert "imagination/return_mean" in model.logger.name_to_value
    assert not {"imagination/gap", "imagination/alarm"} & model.logger.name_to_value.keys()


def test_an_episode_longer_than_the_imagined_ones_is_not_compared():
    model = make()
    model._logger = Logger(None, [])
    model.ep_info_buffer = [{"r": -100.0, "l": 10}, {"r": -300.0, "l": 30}]
    model._episode_num, model._promised = 2, (-100.0, 1.0, 10)
    model._compare_with_reality()
    assert model.logger.name_to_value == {}


def test_validation_plays_each_member_to_the_end(monkeypatch):
    model = make().learn(70)
    seen = []
    step = model.dynamics.step
    monkeypatch.setattr(model.dynamics, "step", lambda *args: (seen.append(args[3].clone()), step(*args))[1])
    returns = model._imagined_returns(15, deterministic=True)
    assert returns.shape == (2, 2) and len(seen) == 15
    assert th.equal(seen[0], model.dynamics.elites.repeat_interleave(2))
    # The same starts and noise each time: only the policy can make a difference
    assert np.array_equal(model._imagined_returns(15, deterministic=True), returns)


@pytest.mark.parametrize("better, n_validations", [(0.6, 2), (0.8, 4)])
def test_a_round_ends_when_too_few_members_find_the_policy_better(better, n_validations):
    calls = []

    def validate():
        calls.append(0)
        return np.where(np.arange(10) < better * 10, len(calls), -len(calls)).astype(float)

    env = make_vec_env("Pendulum-v1", seed=0)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs={"net_arch": [4]}, device="cpu", seed=0)
    model.learn(8 * 18, callback=StopWhenNoLongerBetter(validate))
    assert len(calls) == n_validations
    assert (model.num_timesteps < 8 * 18) == (better < 0.7)


def test_given_arguments_are_not_modified():
    kwargs = {"policy_kwargs": {"net_arch": [8]}, **ON_POLICY}
    given = deepcopy(kwargs)
    Dyna(PPO, "MlpPolicy", "Pendulum-v1", algorithm_kwargs=kwargs, **TINY)
    assert kwargs == given


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"algorithm": "PPO"}, "algorithm_class must be a class"),
        ({"algorithm_kwargs": {"seed": 1}}, "algorithm_kwargs does not accept \\['seed'\\]"),
        ({"start_states": "some"}, "start_states must be"),
        ({"start_states": np.zeros((5, 2))}, r"start_states must have shape \(M, 3\).* got \(5, 2\)"),
        ({"start_states": lambda n, generator: np.zeros((1, 3))}, r"start_states must have shape \(2, 3\).* got \(1, 3\)"),
        ({"start_states": np.full((5, 3), np.nan)}, "start_states must be finite"),
        ({"reward_fn": lambda obs, action, next_obs: obs}, "reward_fn must return a float tensor"),
        ({"termination_fn": lambda obs, action, next_obs: obs[:, 0]}, "termination_fn must return a bool tensor"),
        ({"value_mode": "hopeful"}, "value_mode must be one of"),
        ({"max_disagreement": 1.0}, "belong together"),
        ({"env": "FrozenLake-v1"}, "Box"),
    ],
)
def test_bad_input_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        make(**changes)


def test_an_algorithm_that_does_not_support_the_spaces_is_refused():
    with pytest.raises(AssertionError, match="only supports"):
        make(DQN, env="Pendulum-v1", algorithm_kwargs={})


GSDE = {"use_sde": True, "sde_sample_freq": 4}
RESUMED = {
    "PPO": (PPO, "MlpPolicy", ON_POLICY),
    "SAC": (SAC, "MlpPolicy", OFF_POLICY),
    "PPO with gSDE": (PPO, "MlpPolicy", {**ON_POLICY, **GSDE}),
    "SAC with gSDE": (SAC, "MlpPolicy", {**OFF_POLICY, **GSDE}),
    "SAC that still acts at random": (SAC, "MlpPolicy", {**OFF_POLICY, "learning_starts": 150}),
    "RecurrentPPO": (RecurrentPPO, "MlpLstmPolicy", {**ON_POLICY, "policy_kwargs": {"lstm_hidden_size": 8}}),
}


@pytest.mark.parametrize(("algorithm", "policy", "kwargs"), RESUMED.values(), ids=RESUMED)
def test_a_checkpoint_resumes_bit_for_bit(tmp_path, algorithm, policy, kwargs):
    whole = make(algorithm, policy, algorithm_kwargs=kwargs).learn(250)
    half = make(algorithm, policy, algorithm_kwargs=kwargs).learn(130)
    half.save_checkpoint(tmp_path)
    resumed = Dyna.load_checkpoint(tmp_path, env="Pendulum-v1", device="cpu").learn(120, reset_num_timesteps=False)
    assert resumed.agent.num_timesteps == whole.agent.num_timesteps
    assert np.array_equal(weights(resumed), weights(whole))
    assert np.array_equal(resumed.replay_buffer.actions, whole.replay_buffer.actions)


def test_an_n_step_return_does_not_cross_the_end_of_a_round():
    model = make(SAC, algorithm_kwargs={**OFF_POLICY, "n_steps": 3}).learn(130)
    buffer = model.agent.replay_buffer
    last = buffer.pos - 1
    assert buffer.dones[last].all()
    # The end of an imagined episode is a time limit, which is bootstrapped over
    assert (buffer.dones[last] * (1 - buffer.timeouts[last]) == 0).all()


class DeclaresLess(gym.ObservationWrapper):
    """Pendulum with declared bounds of 0.99 for cosine and sine."""

    def __init__(self, env):
        super().__init__(env)
        high = np.array([0.99, 0.99, 8.0], np.float32)
        self.observation_space = gym.spaces.Box(-high, high)

    def observation(self, obs):
        return obs


@pytest.mark.parametrize("start_states", ["all", "initial"])
def test_an_observation_outside_of_its_declared_bounds_does_not_stop_the_run(start_states):
    model = make(env=DeclaresLess(gym.make("Pendulum-v1", max_episode_steps=15)), start_states=start_states).learn(130)
    assert np.abs(model.replay_buffer.observations[:130, 0, 0]).max() > 0.99
    assert model.agent.num_timesteps > 0
