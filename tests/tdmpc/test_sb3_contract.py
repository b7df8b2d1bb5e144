"""Both algorithms are algorithms of Stable-Baselines3: environments, callbacks, evaluation, logs."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecNormalize,
    sync_envs_normalization,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_mbrl.common.progress import ModelProgressBarCallback
from sb3_mbrl.common.sequences import SequenceReplayBuffer
from sb3_mbrl.tdmpc import policies
from sb3_mbrl.tdmpc.latent_model import effective_rank

OBS = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)


def assert_trained(model):
    assert model._n_updates > 0
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


def stored_actions(model):
    return model.replay_buffer.actions[: model.replay_buffer.pos]


def act(model, obs=OBS, **kwargs):
    return model.predict(obs, **kwargs)[0]


# ---------------------------------------------------------------- predict


def test_actions_are_in_the_scale_of_the_environment(trained):
    actions, state = trained.predict(OBS)
    assert actions.shape == (4, 1) and actions.dtype == np.float32
    assert all(trained.action_space.contains(action) for action in actions)
    assert all(isinstance(part, np.ndarray) and len(part) == 4 for part in state)
    assert act(trained, OBS[0]).shape == (1,)


def test_a_world_model_is_printed_in_one_line(make, kind):
    name, latent_dim, n_critics = {"tdmpc": ("TOLD", 8, 2), "tdmpc2": ("WorldModel", 16, 3)}[kind]
    model = make(kind).policy.model
    n_parameters = sum(each.numel() for each in model.parameters() if each.requires_grad)
    sizes = f"action_dim=1, latent_dim={latent_dim}, width=16, n_critics={n_critics}, n_parameters={n_parameters})"
    assert repr(model) == f"{name}(observation=(2,), {sizes}"
    both = "{'position': (1,), 'velocity': (1,)}"
    assert repr(make(kind, "SliderDict-v0", "MultiInputPolicy").policy.model).startswith(f"{name}(observation={both}, action")


def test_a_deterministic_action_depends_only_on_weights_observation_and_state(trained):
    first, state = trained.predict(OBS, deterministic=True)
    trained.predict(OBS[::-1].copy())
    th.manual_seed(5)
    np.testing.assert_array_equal(first, act(trained, deterministic=True))
    second = act(trained, state=state, deterministic=True)
    np.testing.assert_array_equal(second, act(trained, state=state, deterministic=True))


@pytest.fixture
def decided(make, kind):
    """Makes plans differ in value by much more than rounding; among equal plans, a batch may choose others than a loop."""
    model, noise = make(kind), th.Generator().manual_seed(0)
    for parameter in model.model.parameters():
        parameter.data += 0.5 * th.randn(parameter.shape, generator=noise)
    return model


def test_a_batch_equals_a_loop(decided):
    actions, state = decided.predict(OBS, deterministic=True)
    then, _ = decided.predict(OBS + 0.1, state, deterministic=True)
    for i in range(4):
        alone, own = decided.predict(OBS[i : i + 1], deterministic=True)
        np.testing.assert_allclose(alone[0], actions[i], atol=1e-4)
        np.testing.assert_allclose(decided.predict(OBS[i : i + 1] + 0.1, own, deterministic=True)[0][0], then[i], atol=1e-4)


def test_samples_follow_the_seed(make, kind):
    model, actions = make(kind).learn(22), []
    for planner in (True, False):
        model.policy.plans = planner
        for seed in (3, 3, 4):
            model.set_random_seed(seed)
            actions.append(act(model))
        np.testing.assert_array_equal(actions[-3], actions[-2])
        assert (actions[-2] != actions[-1]).any()
        assert (act(model) != act(model)).any()


def test_global_streams_are_not_used(trained):
    before = th.get_rng_state(), np.random.get_state()[1].copy()
    for deterministic in (True, False):
        trained.predict(OBS, deterministic=deterministic)
    assert th.get_rng_state().equal(before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_observations_that_do_not_fit(make, trained):
    prior_alone = make("tdmpc2", planner="none")
    for model in (trained, prior_alone):
        with pytest.raises(ValueError, match="Unexpected observation shape"):
            model.predict(np.zeros((4, 3), np.float32))
        with pytest.raises(ValueError, match="obs, info = env.reset()"):
            model.predict((OBS, {}))
    _, state = trained.predict(OBS)
    with pytest.raises(ValueError, match="state is of 4 environments, but the observation is of 2"):
        trained.predict(OBS[:2], state)


def test_the_prior_alone(make, kind):
    model = make(kind, planner="none").learn(40)
    assert model.policy.last_plan is None and model._planner_state is None
    assert_trained(model)
    actions, state = model.predict(OBS, deterministic=True)
    assert state is None and actions.shape == (4, 1)
    latents = model.model.start(th.as_tensor(OBS))
    expected = model.model.unscale_action(model.model.act(latents, deterministic=True))
    np.testing.assert_allclose(actions, expected.detach(), atol=1e-6)
    assert (act(model) != actions).any()
    assert all(model.action_space.contains(action) for action in act(model))
    assert np.isfinite(evaluate_policy(model, make_vec_env("LatentSlider-v0", 2), 2)[0])


def test_a_plan_keeps_its_time_limit(make, kind, clock):
    kwargs = {"population_size": 12, "n_elites": 4, "n_iterations": 10_000}
    model = make(kind, planner_kwargs=kwargs, policy_kwargs={"max_plan_seconds": 0.02})
    act(model)  # the clock goes on by a millisecond at each look, and nothing else
    assert 10 < model.policy.last_plan.n_iterations < 20


# ---------------------------------------------------------------- environments


@pytest.mark.parametrize("n_envs", [1, 3])
def test_stored_actions_are_the_executed_ones(make, kind, n_envs):
    model = make(kind, make_vec_env("LatentSlider-v0", n_envs)).learn(60)
    assert model.num_timesteps == 60
    buffer = model.replay_buffer
    # Actions in [-2, 4] are stored in [-1, 1]
    velocity = 0.8 * buffer.observations[: buffer.pos, :, 1] + 0.2 * buffer.actions[: buffer.pos, :, 0]
    np.testing.assert_allclose(buffer.next_observations[: buffer.pos, :, 1], velocity, atol=1e-5)
    assert np.abs(stored_actions(model)).max() <= 1


def test_other_processes(make):
    env = make_vec_env("Pendulum-v1", 2, vec_env_cls=SubprocVecEnv)
    try:
        assert_trained(make("tdmpc2", env).learn(40))
    finally:
        env.close()


def test_terminations_are_learned_and_time_limits_are_not(make, kind):
    model = make(kind, "Cliff-v0").learn(60)
    assert_trained(model)
    buffer = model.replay_buffer
    beyond = np.abs(buffer.next_observations[: buffer.pos, 0, 0]) > 1.2
    terminated = (buffer.dones * (1 - buffer.timeouts))[: buffer.pos, 0] > 0
    np.testing.assert_array_equal(terminated, beyond)
    assert 0 < buffer.timeouts.sum() < buffer.dones.sum()
    batch = buffer.sample(200)
    assert batch.terminated.any(dim=1).all()


def test_each_environment_has_its_own_plan(make, kind):
    env = DummyVecEnv([lambda length=length: gym.make("LatentSlider-v0", max_episode_steps=length) for length in (7, 11)])
    model = make(kind, env, gamma=0.9).learn(48)
    # After 24 steps of each: 3 steps since the last reset of the first, 2 of the second; what has been planned
    assert model._planner_state[-1].tolist() == [24 % 7, 24 % 11]


@pytest.mark.parametrize("n_envs", [1, 2])
def test_vec_normalize(make, kind, n_envs):
    env = VecNormalize(make_vec_env("Cliff-v0", n_envs))
    model = make(kind, env).learn(60)
    assert_trained(model)
    rewards = model.replay_buffer.rewards[: model.replay_buffer.pos]
    assert 0.5 < rewards.max() <= 1  # raw in the buffer, normalised in a batch
    batch = model.replay_buffer.sample(500, env=env)
    assert abs(batch.rewards.max() - env.normalize_reward(rewards.max())) < 1e-4
    other = VecNormalize(make_vec_env("Cliff-v0"), training=False, norm_reward=False)
    sync_envs_normalization(env, other)
    assert np.isfinite(evaluate_policy(model, other, n_eval_episodes=1)[0])


@pytest.mark.parametrize("n_envs", [1, 2])
def test_dict_observations(make, kind, n_envs):
    model = make(kind, make_vec_env("SliderDict-v0", n_envs), "MultiInputPolicy").learn(50, log_interval=1)
    assert_trained(model)
    obs = {"position": OBS[:, :1], "velocity": OBS[:, 1:]}
    actions = act(model, obs, deterministic=True)
    assert actions.shape == (4, 1)
    assert act(model, {name: part[0] for name, part in obs.items()}).shape == (1,)


def test_dict_observations_are_normalized(make):
    assert_trained(make("tdmpc2", VecNormalize(make_vec_env("SliderDict-v0", 2)), "MultiInputPolicy").learn(50))


@pytest.mark.parametrize("n_envs", [1, 2])
def test_images(make, kind, n_envs):
    env = VecFrameStack(make_vec_env("SliderImage-v0", n_envs), 2)
    model = make(kind, env, "CnnPolicy", buffer_size=100, learning_starts=35).learn(42, log_interval=1)
    assert_trained(model)
    assert model.replay_buffer.observations.dtype == np.uint8
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 2), dtype=np.uint8)
    actions = act(model, images.transpose(0, 3, 1, 2), deterministic=True)
    assert actions.shape == (3, 1)
    np.testing.assert_array_equal(actions, act(model, images, deterministic=True))  # channels last, too


@pytest.mark.parametrize("shape", [(2,), (2, 2), ()], ids=str)
def test_shapes_of_actions(make, kind, shape):
    class Shaped(gym.Env):
        observation_space = spaces.Box(-1, 1, (2,), np.float32)
        action_space = spaces.Box(-3, 1, shape, np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(2, np.float32), {}

        def step(self, action):
            assert np.shape(action) == shape and (np.abs(action + 1) <= 2).all()
            return np.zeros(2, np.float32), 1.0, False, False, {}

    model = make(kind, gym.wrappers.TimeLimit(Shaped(), 10), gamma=0.9).learn(30)
    assert_trained(model)
    assert act(model, np.zeros((4, 2), np.float32)).shape == (4, *shape)


def test_observations_of_more_dimensions_are_flattened(make):
    class Grid(gym.ObservationWrapper):
        observation_space = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)

        def observation(self, obs):
            return np.outer(obs, [1.0, 2.0, 3.0])

    model = make("tdmpc2", Grid(gym.make("LatentSlider-v0"))).learn(30)
    assert_trained(model)
    assert model.model.features_dim == 6


def test_action_noise_is_stored_as_executed(make, kind):
    model = make(kind, action_noise=NormalActionNoise(np.zeros(1), 50 * np.ones(1))).learn(40)
    assert (np.abs(stored_actions(model)[21:]) == 1).mean() > 0.8


# ---------------------------------------------------------------- callbacks, evaluation, logs


@pytest.mark.parametrize("n_envs", [1, 2])
def test_evaluates(trained, n_envs):
    _, lengths = evaluate_policy(trained, make_vec_env("Cliff-v0", n_envs), n_eval_episodes=3, return_episode_rewards=True)
    assert len(lengths) == 3 and max(lengths) <= 20


@pytest.mark.parametrize("planner", ["mppi", "none"])
def test_evaluation_during_training_does_not_change_the_run(make, kind, planner):
    callback = EvalCallback(make_vec_env("LatentSlider-v0"), eval_freq=10, n_eval_episodes=1, verbose=0)
    evaluated = make(kind, planner=planner).learn(45, callback)
    assert np.isfinite(callback.best_mean_reward)
    np.testing.assert_array_equal(stored_actions(evaluated), stored_actions(make(kind, planner=planner).learn(45)))


def test_a_users_replay_buffer(make, kind):
    class Counting(SequenceReplayBuffer):
        def __init__(self, *args, start, **kwargs):
            super().__init__(*args, **kwargs)
            self.n_added = start

        def add(self, *args):
            self.n_added += 1
            super().add(*args)

    model = make(kind, replay_buffer_class=Counting, replay_buffer_kwargs={"start": 100}).learn(30)
    assert model.replay_buffer.n_added == 130


def test_callbacks(make, kind, tmp_path):
    class Recorder(BaseCallback):
        steps = ()

        def _on_step(self):
            self.steps = (*self.steps, self.num_timesteps)
            return True

    recorder, checkpoints = Recorder(), CheckpointCallback(20, str(tmp_path), save_replay_buffer=True)
    model = make(kind).learn(40, [recorder, checkpoints])
    assert recorder.steps == tuple(range(1, 41))
    loaded = type(model).load(tmp_path / "rl_model_40_steps", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_40_steps")
    assert loaded.replay_buffer.size() == 39
    assert loaded.learn(10, reset_num_timesteps=False)._n_updates > model._n_updates


def test_a_run_that_a_callback_stopped_continues(make, kind):
    model = make(kind).learn(500, StopTrainingOnMaxEpisodes(2))
    assert model.num_timesteps == 40
    model.dump_logs()
    assert model.learn(25, reset_num_timesteps=False).num_timesteps == 65
    stop = StopTrainingOnRewardThreshold(-1e6)
    model.learn(100, EvalCallback(make_vec_env("LatentSlider-v0"), callback_on_new_best=stop, eval_freq=5, verbose=0))
    assert model.num_timesteps == 5


@pytest.mark.parametrize(
    ("train_freq", "gradient_steps", "n_envs", "expected"),
    [(1, 1, 1, 20), (1, 3, 1, 60), (1, 0, 1, 0), (4, -1, 1, 20), (4, 3, 1, 15), (4, -1, 2, 24), (2, 3, 2, 15)],
)
def test_gradient_steps_are_the_number_of_updates(make, train_freq, gradient_steps, n_envs, expected):
    env = make_vec_env("LatentSlider-v0", n_envs)
    model = make("tdmpc2", env, train_freq=train_freq, gradient_steps=gradient_steps, pretrain_steps=0)
    assert model.learn(40)._n_updates == expected


def test_zero_steps_are_not_an_error(make, kind):
    model = make(kind).learn(25)
    n_updates = model._n_updates
    model.train(0)
    assert model._n_updates == n_updates


def test_the_learning_rate_follows_its_schedule(make, kind):
    model = make(kind, learning_rate=LinearSchedule(1e-3, 1e-5, 1.0)).learn(40)
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(1e-5)
    assert model.policy.prior_optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


COMMON = [
    "loss",
    "grad_norm",
    "prior_loss",
    "consistency_loss",
    "reward_loss",
    "value_loss",
    "termination_loss",
    "learning_rate",
]
OWN = {"tdmpc": [], "tdmpc2": ["prior_entropy", "q_scale"]}


def test_tensorboard(make, kind, tmp_path):
    make(kind, tensorboard_log=str(tmp_path)).learn(60, log_interval=1)
    events = EventAccumulator(str(tmp_path / f"{'TDMPC2' if kind == 'tdmpc2' else 'TDMPC'}_1")).Reload()
    expected = {f"train/{name}" for name in COMMON + OWN[kind]}
    expected |= {f"latent/error_step_{step}" for step in (1, 2, 3)} | {"latent/effective_rank"}
    expected |= {f"planner/{name}" for name in ("value", "std", "n_iterations", "prior_value")}
    expected |= {"time/updating_seconds", "time/planning_seconds", "time/fps", "rollout/ep_rew_mean", "rollout/ep_len_mean"}
    assert expected <= set(events.Tags()["scalars"])
    assert all(np.isfinite(event.value) for name in expected for event in events.Scalars(name))
    assert 1 <= events.Scalars("latent/effective_rank")[-1].value <= 8


def test_latent_errors_are_those_of_open_loop_predictions(trained):
    batch = trained.replay_buffer.sample(20)
    trained._log_latents(batch)
    model = trained.model
    with th.no_grad():
        z = model.encode(batch.observations[0])
        for step in range(3):
            z = model.next(z, batch.actions[step])
            counts = batch.valid[step] == 1
            error = (z - model.encode(batch.observations[step + 1])).pow(2)[counts].mean().item()
            assert trained.logger.name_to_value[f"latent/error_step_{step + 1}"] == pytest.approx(error, rel=1e-4)


def test_scalars_that_were_not_measured_are_not_logged(make, kind):
    """Errors for more steps than any episode has, and planner scalars of a policy that no longer plans."""
    env = gym.make("LatentSlider-v0", max_episode_steps=1)
    model = make(kind, env, gamma=0.9)
    model.learn(30)
    model._log_latents(model._last_batch)
    logged = model.logger.name_to_value
    assert "latent/error_step_1" in logged and "latent/error_step_2" not in logged
    assert model.policy.last_plan is not None
    model.policy.plans = False
    model.learn(30, reset_num_timesteps=False)
    assert model.policy.last_plan is None


def test_images_that_are_normalised_already(make, kind):
    space = spaces.Box(0, 1, (1, 40, 40), np.float32)
    env = TransformObservation(gym.make("SliderImage-v0"), lambda image: np.float32(image.transpose(2, 0, 1) / 255), space)
    given = {"normalize_images": False, "features_extractor_kwargs": {"normalized_image": True}}
    model = make(kind, env, "CnnPolicy", policy_kwargs=given).learn(25)
    plain = make(kind, "SliderImage-v0", "CnnPolicy").learn(25)
    for ours, theirs in zip(model.policy.parameters(), plain.policy.parameters(), strict=True):
        th.testing.assert_close(ours, theirs)


def test_the_effective_rank_counts_directions():
    noise = th.Generator().manual_seed(0)
    assert effective_rank(th.ones(20, 8)) == pytest.approx(1)
    line = th.randn(200, 1, generator=noise) @ th.randn(1, 8, generator=noise)
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(th.randn(5_000, 8, generator=noise)) == pytest.approx(8, abs=0.05)


def test_progress_bar(make, kind, monkeypatch):
    said, describe = [], ModelProgressBarCallback.describe
    monkeypatch.setattr(ModelProgressBarCallback, "describe", lambda self, text: (said.append(text), describe(self, text)))
    model = make(kind).learn(30, progress_bar=True)
    assert said == ["pretraining", ""]
    assert model.learn(5, reset_num_timesteps=False)._progress_bar is None


# ---------------------------------------------------------------- policy_kwargs


class Doubled(FlattenExtractor):
    def forward(self, observations):
        return 2 * super().forward(observations)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"features_extractor_class": Doubled},
        {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 1e-3}},
        {"optimizer_class": th.optim.SGD},
        {"optimizer_class": th.optim.RMSprop},
        {"optimizer_kwargs": {"betas": (0.8, 0.9)}},
    ],
    ids=lambda kwargs: str(next(iter(kwargs.values()))),
)
def test_policy_kwargs(make, kind, policy_kwargs):
    assert_trained(make(kind, policy_kwargs=policy_kwargs).learn(24))


def test_images_with_a_users_features_extractor(make):
    kwargs = {"features_extractor_class": Doubled}
    assert_trained(make("tdmpc2", "SliderImage-v0", policy_kwargs=kwargs, buffer_size=100).learn(24))


def test_a_users_policy_class(make, kind):
    class Cautious(policies.MlpPolicy):
        def __init__(self, *args, caution=1.0, **kwargs):
            super().__init__(*args, **kwargs)
            self.caution = caution

    assert make(kind, policy=Cautious, policy_kwargs={"caution": 3.0}).learn(24).policy.caution == 3.0
