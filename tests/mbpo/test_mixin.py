"""MBPO with other algorithms than SAC."""

import numpy as np
import pytest
import torch as th
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import MBTD3, MBTQC, MBCrossQ
from sb3_mbrl.mbpo import MBPOMixin

PAIRS = [(MBTQC, TQC), (MBCrossQ, CrossQ), (MBTD3, TD3)]
ALGORITHMS = [algorithm for algorithm, _ in PAIRS]
OBS = np.linspace(-1.0, 1.0, 20, dtype=np.float32).reshape(10, 2)


def same_parameters(first, second):
    pairs = zip(first.policy.state_dict().items(), second.policy.state_dict().values(), strict=True)
    return all(th.equal(th.as_tensor(a), th.as_tensor(b)) for (_, a), b in pairs)


@pytest.mark.usefixtures("not_accelerated")
@pytest.mark.parametrize(("algorithm", "parent"), PAIRS)
def test_with_a_real_ratio_of_1_it_equals_the_algorithm(algorithm, parent, tiny):
    model = algorithm("MlpPolicy", "PointMass-v0", **{**tiny, "real_ratio": 1.0}).learn(200)
    alone = {name: tiny[name] for name in ("learning_starts", "buffer_size", "batch_size", "gradient_steps", "seed", "device")}
    reference = parent("MlpPolicy", "PointMass-v0", policy_kwargs=tiny["policy_kwargs"], **alone).learn(200)
    assert len(model.model_buffer) > 0
    assert same_parameters(model, reference)


@pytest.mark.parametrize(("algorithm", "parent"), PAIRS)
def test_accelerated_it_equals_the_algorithm_up_to_rounding(algorithm, parent, tiny):
    # Other actions would make other experience, and rounding grows from there
    tiny = {**tiny, "train_freq": 200, "gradient_steps": 50}
    names = ("learning_starts", "buffer_size", "batch_size", "train_freq", "gradient_steps", "seed", "device")
    model = algorithm("MlpPolicy", "PointMass-v0", **{**tiny, "real_ratio": 1.0}).learn(200)
    reference = parent(
        "MlpPolicy", "PointMass-v0", policy_kwargs=tiny["policy_kwargs"], **{name: tiny[name] for name in names}
    )
    reference.learn(200)
    assert model._n_updates == reference._n_updates > 0
    pairs = zip(model.policy.state_dict().items(), reference.policy.state_dict().values(), strict=True)
    for (name, ours), theirs in pairs:
        assert th.allclose(ours.float(), theirs.float(), atol=1e-3), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_imagined_transitions_change_what_is_learned(algorithm, tiny):
    mixed = algorithm("MlpPolicy", "PointMass-v0", **tiny).learn(120)
    real = algorithm("MlpPolicy", "PointMass-v0", **{**tiny, "real_ratio": 1.0}).learn(120)
    assert not same_parameters(mixed, real)
    imagined = mixed.model_buffer.contents()
    assert imagined.actions.abs().max() <= 1
    assert imagined.actions.std() > 0.05  # not the one action of a policy without noise


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_save_and_load(algorithm, tiny, tmp_path):
    model = algorithm("MlpPolicy", "PointMass-v0", **tiny).learn(100)
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=model.get_env())
    assert np.array_equal(model.predict(OBS, deterministic=True)[0], loaded.predict(OBS, deterministic=True)[0])
    assert th.equal(model.dynamics.weights[0], loaded.dynamics.weights[0])
    loaded.learn(60)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_resume_is_exact(algorithm, tiny, tmp_path):
    def env():
        return VecNormalize(make_vec_env("PointMass-v0", 2))

    in_one_piece = algorithm("MlpPolicy", env(), **tiny).learn(160)
    cut = algorithm("MlpPolicy", env(), **tiny).learn(80)
    cut.save_checkpoint(tmp_path)
    resumed = algorithm.load_checkpoint(tmp_path, env=env(), device="cpu").learn(80, reset_num_timesteps=False)
    assert resumed.num_timesteps == in_one_piece.num_timesteps
    assert same_parameters(resumed, in_one_piece)
    assert th.equal(resumed.model_buffer.contents().rewards, in_one_piece.model_buffer.contents().rewards)


def test_gsde_imagines_with_the_marginal_of_its_noise(tiny):
    model = MBTQC("MlpPolicy", "PointMass-v0", use_sde=True, **tiny).learn(100)
    assert model.model_buffer.contents().actions.std() > 0.05


def test_td3_imagines_its_target_actions(tiny):
    model = MBTD3("MlpPolicy", "PointMass-v0", **tiny)
    obs = th.zeros(5_000, 2)
    noise = model._sample_imagined_action(obs) - model.actor(obs)
    assert noise.abs().max() <= model.target_noise_clip
    assert noise.std().item() == pytest.approx(0.19, abs=0.02)  # 0.2, a little less for the clip


def test_arguments_of_the_algorithm_in_any_form():
    model = MBTQC("MlpPolicy", "PointMass-v0", 1e-4, 500, 77, top_quantiles_to_drop_per_net=3)
    assert (model.learning_rate, model.buffer_size, model.learning_starts) == (1e-4, 500, 77)
    assert model.top_quantiles_to_drop_per_net == 3
    assert model.gradient_steps == 20  # not given: MBPOMixin's default, not TQC's
    assert MBCrossQ("MlpPolicy", "PointMass-v0").gradient_steps == 2
    with pytest.raises(TypeError, match="quantiles"):
        MBTQC("MlpPolicy", "PointMass-v0", quantiles=3)


def test_over_an_algorithm_of_the_user(tiny):
    class MBDDPG(MBPOMixin, DDPG):
        def _sample_imagined_action(self, obs):
            return self.actor(obs)

    model = MBDDPG("MlpPolicy", "PointMass-v0", **tiny).learn(100)
    assert model.num_timesteps == 100
    assert len(model.model_buffer) > 0


def test_defaults_over_an_algorithm_that_takes_any_arguments(tiny):
    class Mine(SAC):
        def __init__(self, *args, mine=1, **kwargs):
            super().__init__(*args, **kwargs)
            self.mine = mine

    class MBMine(MBPOMixin, Mine): ...

    model = MBMine("MlpPolicy", "PointMass-v0", mine=2)
    assert (model.learning_starts, model.gradient_steps, model.mine) == (1_000, 20, 2)
    assert MBMine("MlpPolicy", "PointMass-v0", gradient_steps=3).gradient_steps == 3
    assert len(MBMine("MlpPolicy", "PointMass-v0", **tiny).learn(100).model_buffer) > 0


def test_a_gradient_penalty_on_the_critic_is_differentiated(tiny):
    """A user's algorithm, whose ``train`` needs gradients that SAC does not need."""
    gradients = {}

    class Penalised(DDPG):
        def train(self, gradient_steps, batch_size=64):
            batch = self.replay_buffer.sample(batch_size)
            actions = batch.actions.requires_grad_()
            value = self.critic(obs=batch.observations, actions=actions)[0]
            (slope,) = th.autograd.grad(value.sum(), actions, create_graph=True)
            self.critic.optimizer.zero_grad()
            slope.pow(2).sum().backward()
            gradients.setdefault(type(self).__name__, [each.grad for each in self.critic.parameters()])

    class MBPenalised(MBPOMixin, Penalised):
        def _sample_imagined_action(self, obs):
            return self.actor(obs)

    tiny = {**tiny, "policy_kwargs": {"net_arch": [32, 32], "activation_fn": th.nn.SiLU}}
    MBPenalised("MlpPolicy", "PointMass-v0", **{**tiny, "real_ratio": 1.0}).learn(60)
    names = ("policy_kwargs", "learning_starts", "batch_size", "gradient_steps", "seed", "device")
    alone = {name: tiny[name] for name in names}
    Penalised("MlpPolicy", "PointMass-v0", **alone).learn(60)
    for ours, theirs in zip(*gradients.values(), strict=True):
        th.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_discrete_actions_are_refused(algorithm):
    with pytest.raises(ValueError, match="Box actions"):
        algorithm("MlpPolicy", "CartPole-v1")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_log_has_the_name_of_the_algorithm(algorithm, tiny, tmp_path):
    algorithm("MlpPolicy", "PointMass-v0", tensorboard_log=str(tmp_path), **tiny).learn(60)
    assert [folder.name for folder in tmp_path.iterdir()] == [f"{algorithm.__name__}_1"]
