"""One test for each row of the fidelity tables in docs/modules/tdmpc.md that no parity test pins."""

import inspect

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_mbrl.common.sequences import SequenceReplayBuffer
from sb3_mbrl.tdmpc import TDMPC, TDMPC2, tdmpc, tdmpc2
from sb3_mbrl.tdmpc.planner import LatentMPPI
from sb3_mbrl.tdmpc.told import TOLD, TOLD_SIZES
from sb3_mbrl.tdmpc.world_model import SIZES, WorldModel

# TD-MPC2's walker
OBS, ACTION = spaces.Box(-np.inf, np.inf, (24,), np.float32), spaces.Box(-1, 1, (6,), np.float32)


def world_model(size, device="cpu"):
    with th.device(device):
        return WorldModel(OBS, ACTION, FlattenExtractor(OBS), SIZES[size])


def told(size="default"):
    return TOLD(OBS, ACTION, FlattenExtractor(OBS), TOLD_SIZES[size])


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def defaults(algorithm):
    return {name: parameter.default for name, parameter in inspect.signature(algorithm).parameters.items()}


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("millions", [1, 5, 19, 48, 317])
def test_parameter_counts_match_the_names_of_the_sizes(millions):
    model = world_model(millions, "meta")
    # The paper has no termination head; what it calls 1 are 1.2 million
    counted = [parameter for name, parameter in model.named_parameters() if not name.startswith("termination_head")]
    count = sum(parameter.numel() for parameter in counted if parameter.requires_grad)
    assert count == pytest.approx(1e6 * millions, rel=0.25 if millions == 1 else 0.15)


def test_the_networks_of_tdmpc2():
    model = world_model(5)
    assert [(layer.in_features, layer.out_features) for layer in linears(model.encoder)] == [(24, 256), (256, 512)]
    assert [(layer.in_features, layer.out_features) for layer in linears(model.dynamics)] == [
        (518, 512),
        (512, 512),
        (512, 512),
    ]
    assert [layer.out_features for layer in linears(model.reward_head)] == [512, 512, 101]
    assert [layer.in_features for layer in linears(model.termination_head)] == [512, 512, 512]
    assert [layer.out_features for layer in linears(model.prior)] == [512, 512, 12]
    assert len(model.critics) == 5 and [layer.out_features for layer in linears(model.critics[0])] == [512, 512, 101]
    hidden, normed = ["Linear", "NormMish"], ["Linear", "LayerNorm", "SimNorm"]
    assert [type(layer).__name__ for layer in model.encoder] == hidden + normed
    assert [type(layer).__name__ for layer in model.dynamics] == 2 * hidden + normed
    for network in (model.prior, model.reward_head, model.termination_head):
        assert [type(layer).__name__ for layer in network] == [*hidden, *hidden, "Linear"]
    assert [type(layer).__name__ for layer in model.critics[0]] == ["Linear", "Dropout", "NormMish", *hidden, "Linear"]
    groups = model.encode(th.randn(3, 24)).unflatten(-1, (-1, 8)).sum(dim=-1)
    th.testing.assert_close(groups, th.ones(3, 64))


def test_small_sizes_are_128_units_wide():
    """A quarter of the units of the paper's model."""
    assert SIZES["small"] == (128, 128, 64, 2, 5) and TOLD_SIZES["small"] == (128, 128, 50)


def test_larger_encoders_are_deeper():
    assert [len(linears(world_model(size, "meta").encoder)) for size in (1, 5, 19, 48, 317)] == [2, 2, 3, 4, 5]


def test_the_networks_of_tdmpc():
    model = told()
    assert [(layer.in_features, layer.out_features) for layer in linears(model.encoder)] == [(24, 256), (256, 50)]
    assert [(layer.in_features, layer.out_features) for layer in linears(model.dynamics)] == [(56, 512), (512, 512), (512, 50)]
    kinds = [type(layer).__name__ for layer in model.critics[0]]
    assert kinds == ["Linear", "LayerNorm", "Tanh", "Linear", "ELU", "Linear"] and len(model.critics) == 2
    assert [type(layer).__name__ for layer in model.prior] == ["Linear", "ELU", "Linear", "ELU", "Linear"]


def test_initial_weights_of_tdmpc2():
    model = world_model(1)
    zeroed = [model.reward_head[-1], *[critic[-1] for critic in model.critics]]
    for layer in linears(model):
        assert not layer.bias.any()
        if any(layer is each for each in zeroed):
            assert not layer.weight.any()
    for layer in (model.encoder[0], model.dynamics[2], model.prior[-1], model.critics[0][0], model.critics[1][3]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and layer.weight.abs().max() < 0.12
    assert not th.equal(model.critics[0][0].weight, model.critics[1][0].weight)
    z, action = model.encode(th.randn(4, 24)), th.zeros(4, 6)
    for first in (model.reward(z, action), model.value(z)):
        th.testing.assert_close(first, th.zeros(4), atol=1e-6, rtol=0)
    for online, target in zip(model.critics.parameters(), model.target_critics.parameters(), strict=True):
        assert th.equal(online, target) and not target.requires_grad


def test_initial_weights_of_tdmpc():
    model = told("small")
    zeroed = [model.reward_head[-1], *[critic[-1] for critic in model.critics]]
    for layer in linears(model):
        assert not layer.bias.any()
        smaller = layer.weight if layer.weight.shape[0] < layer.weight.shape[1] else layer.weight.T
        expected = th.zeros(len(smaller), len(smaller)) if any(layer is each for each in zeroed) else th.eye(len(smaller))
        if layer.weight.any() or not any(layer is each for each in model.targets.modules()):
            th.testing.assert_close(smaller @ smaller.T, expected, atol=1e-5, rtol=0)


def test_dropout_is_in_the_first_layer_of_the_critics_alone_and_in_training():
    model = world_model(1)
    for parameter in model.parameters():
        parameter.data.normal_()
    dropouts = [layer for layer in model.modules() if isinstance(layer, nn.Dropout)]
    in_critics = [layer for each in (model.critics, model.target_critics) for layer in each.modules()]
    assert len(dropouts) == 2 * len(model.critics) and all(any(one is each for each in in_critics) for one in dropouts)
    assert {layer.p for layer in dropouts} == {0.01}
    z, action = model.encode(th.randn(50, 24)), th.randn(50, 6)

    def differs(function):
        return not th.equal(function(), function())

    def target():
        return model.two_q_values(z, action, th.Generator().manual_seed(0), target=True)

    model.train()
    assert differs(lambda: model.q_logits(z, action)) and not differs(target)
    assert not differs(lambda: model.reward_logits(z, action)) and not differs(lambda: model.next(z, action))
    model.eval()
    assert not differs(lambda: model.q_logits(z, action))


def test_dropout_is_on_in_updates_and_off_in_plans(make, monkeypatch):
    model, seen = make("tdmpc2"), []
    plain = model.model.critics.forward
    monkeypatch.setattr(model.model.critics, "forward", lambda *args: (seen.append(model.policy.training), plain(*args))[1])
    model.learn(21)
    assert seen and all(seen)
    del seen[:]
    model.predict(np.zeros((1, 2), np.float32))
    assert seen and not any(seen)


def test_the_standard_deviation_of_the_prior_is_bounded():
    model = world_model(1)
    z = model.encode(th.randn(50, 24))
    model.prior[-1].bias.data = th.cat([th.zeros(6), th.full((3,), 100.0), th.full((3,), -100.0)])
    _, log_std = model._policy(z)
    th.testing.assert_close(log_std[:, :3], th.full((50, 3), 2.0))
    th.testing.assert_close(log_std[:, 3:], th.full((50, 3), -10.0))


def test_pixels(make, kind):
    model = make(kind, "SliderImage-v0", "CnnPolicy").model
    convolutions = [layer for layer in model.features_extractor.modules() if isinstance(layer, nn.Conv2d)]
    assert [(each.out_channels, each.kernel_size[0], each.stride[0]) for each in convolutions] == [
        (32, 7, 2),
        (32, 5, 2),
        (32, 3, 2),
        (32, 3, 1),
    ]
    images = th.randint(0, 256, (5, 1, 40, 40), dtype=th.uint8)
    model.train()
    assert not th.equal(model.encode(images), model.encode(images))
    model.eval()
    assert th.equal(model.encode(images), model.encode(images))


def test_shifts_are_of_at_most_three_pixels(make):
    extractor = make("tdmpc2", "SliderImage-v0", "CnnPolicy").model.features_extractor
    extractor.train()
    image = th.arange(1600.0).view(1, 1, 40, 40).expand(300, -1, -1, -1)
    shifted = extractor.shift(image)[:, 0, 20, 20]
    rows, columns = shifted.long() // 40 - 20, shifted.long() % 40 - 20
    for offset in (rows, columns):
        assert set(offset.tolist()) == {-3, -2, -1, 0, 1, 2, 3}
    th.testing.assert_close(extractor.shift(image)[:, 0, 0, 0].max(), th.tensor(3 * 40.0 + 3))


# ---------------------------------------------------------------- optimizers


def learning_rates(model):
    groups = [*model.policy.model_optimizer.param_groups, *model.policy.prior_optimizer.param_groups]
    return [group["lr"] for group in groups]


def test_the_encoder_learns_more_slowly(make):
    assert learning_rates(make("tdmpc2")) == pytest.approx([0.9e-4, 3e-4, 3e-4])
    assert learning_rates(make("tdmpc")) == pytest.approx([1e-3, 1e-3, 1e-3])
    model = make("tdmpc2").policy
    encoder = {id(each) for each in model.model_optimizer.param_groups[0]["params"]}
    assert encoder == {id(each) for each in model.model.encoder.parameters()}


def test_the_encoder_learns_more_slowly_on_a_schedule_and_after_load(make, tmp_path):
    model = make("tdmpc2", learning_rate=lambda left: 1e-2 * left).learn(30)
    assert learning_rates(model) == pytest.approx([0, 0, 0])
    model.learn(30, callback=lambda local, _: local["self"].num_timesteps < 15, reset_num_timesteps=False)
    model.save(tmp_path / "model")
    loaded = TDMPC2.load(tmp_path / "model", env=model.get_env(), learning_rate=2e-3)
    loaded.learn(4, reset_num_timesteps=False)
    assert learning_rates(loaded) == pytest.approx([0.6e-3, 2e-3, 2e-3])
    loaded = TDMPC2.load(tmp_path / "model", env=model.get_env(), learning_rate=2e-3, encoder_lr_scale=0.5)
    loaded.learn(4, reset_num_timesteps=False)
    assert learning_rates(loaded) == pytest.approx([1e-3, 2e-3, 2e-3])


def test_every_network_is_optimized_once_and_targets_never(make, kind):
    model = make(kind)
    groups = [*model.policy.model_optimizer.param_groups, *model.policy.prior_optimizer.param_groups]
    optimised = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(optimised) == len(set(optimised))
    assert set(optimised) == {id(each) for each in model.model.parameters() if each.requires_grad}
    targets = model.model.targets if kind == "tdmpc" else model.model.target_critics
    assert not {id(each) for each in targets.parameters()} & set(optimised)


def test_the_prior_of_tdmpc2_has_its_own_epsilon(make):
    policy = make("tdmpc2").policy
    assert policy.prior_optimizer.param_groups[0]["eps"] == 1e-5
    assert policy.model_optimizer.param_groups[0]["eps"] == make("tdmpc").policy.prior_optimizer.param_groups[0]["eps"] == 1e-8


def test_gradients_are_clipped_together(make, kind):
    model = make(kind, max_grad_norm=0.01).learn(21)
    batch = model.replay_buffer.sample(8)
    assert model._update(batch)["grad_norm"] > 0.01
    for optimizer in (model.policy.model_optimizer, model.policy.prior_optimizer):
        gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        assert th.cat([each.flatten() for each in gradients]).norm() <= 0.01 + 1e-6


def test_targets_follow_slowly(make):
    model = make("tdmpc2", tau=0.25).learn(21)
    old = [each.clone() for each in model.model.target_critics.parameters()]
    model._update(model.replay_buffer.sample(8))
    for before, online, after in zip(
        old, model.model.critics.parameters(), model.model.target_critics.parameters(), strict=True
    ):
        th.testing.assert_close(after, 0.75 * before + 0.25 * online)


def test_targets_of_tdmpc_follow_every_second_update(make):
    model = make("tdmpc", tau=0.25).learn(21)
    online = model.model.encoder[0].weight, model.model.critics[0][0].weight
    targets = model.model.targets[1][0].weight, model.model.targets[2][0][0].weight
    moved = []
    for model._n_updates in range(4):
        before = [each.clone() for each in targets]
        model._update(model.replay_buffer.sample(8))
        moved.append(not th.equal(before[0], targets[0]))
        if moved[-1]:
            for old, now, target in zip(before, online, targets, strict=True):
                th.testing.assert_close(target, 0.75 * old + 0.25 * now)
    assert moved == [True, False, True, False]


# ---------------------------------------------------------------- clocks


def test_defaults_of_tdmpc2():
    expected = {"batch_size": 256, "buffer_size": 1_000_000, "horizon": 3, "rho": 0.5}
    expected |= {"consistency_coef": 20, "reward_coef": 0.1, "value_coef": 0.1, "termination_coef": 1, "entropy_coef": 1e-4}
    expected |= {
        "encoder_lr_scale": 0.3,
        "max_grad_norm": 20,
        "n_proposals": 24,
        "learning_starts": 1_000,
        "pretrain_steps": None,
        "model_size": "small",
    }
    assert {name: defaults(TDMPC2)[name] for name in expected} == expected
    assert (defaults(TDMPC2)["train_freq"], defaults(TDMPC2)["gradient_steps"]) == (1, -1)


@pytest.mark.parametrize(
    ("algorithm", "size", "learning_rate", "tau"),
    [(TDMPC2, "small", 1e-3, 0.03), (TDMPC2, 1, 3e-4, 0.01), (TDMPC, "small", 1e-3, 0.05), (TDMPC, "default", 1e-3, 0.01)],
)
def test_learning_rates_and_taus_of_all_sizes(algorithm, size, learning_rate, tau):
    model = algorithm("MlpPolicy", "LatentSlider-v0", model_size=size, device="cpu", seed=0)
    assert (model.learning_rate, model.tau) == (learning_rate, tau)
    own = algorithm("MlpPolicy", "LatentSlider-v0", model_size=size, learning_rate=0.5, tau=0.0, device="cpu", seed=0)
    assert (own.learning_rate, own.tau) == (0.5, 0.0)


def test_defaults_of_tdmpc():
    expected = {"learning_rate": 1e-3, "batch_size": 512, "buffer_size": 1_000_000, "horizon": 5, "rho": 0.5}
    expected |= {"consistency_coef": 2, "reward_coef": 0.5, "value_coef": 0.1, "max_grad_norm": 10, "n_proposals": 25}
    expected |= {"target_update_interval": 2, "priority_exponent": 0.6, "importance_exponent": 0.4, "pretrain_steps": None}
    expected |= {"learning_starts": 1_000, "model_size": "small", "termination_coef": 1}
    expected |= {"horizon_schedule": (0, 25_000, 1, None), "std_schedule": (0, 25_000, 0.5, 0.05)}
    assert {name: defaults(TDMPC)[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "updates"),
    [
        ({"pretrain_steps": None}, [0, 20 + 1, 20 + 2]),
        ({"pretrain_steps": 7}, [0, 7 + 1, 7 + 2]),
        ({"pretrain_steps": 0}, [0, 1, 2]),
        ({"pretrain_steps": None, "gradient_steps": 3}, [0, 20 + 3, 20 + 6]),
    ],
    ids=str,
)
def test_as_many_updates_as_random_steps_at_once(make, kind, changes, updates):
    model, seen = make(kind, **changes), []
    for steps in (20, 1, 1):
        model.learn(steps, reset_num_timesteps=False)
        seen.append(model._n_updates)
    assert seen == updates


def test_without_random_steps_there_is_no_pretraining(make, kind):
    # One action is random; the first sequence of three is complete after three steps
    assert make(kind, learning_starts=0, pretrain_steps=None).learn(10)._n_updates == 8


@pytest.mark.parametrize(("n_envs", "train_freq", "updates"), [(1, 1, 40), (4, 1, 40), (2, 5, 40), (1, (1, "episode"), 40)])
def test_one_update_for_each_environment_step(make, kind, n_envs, train_freq, updates):
    env = make_vec_env("LatentSlider-v0", n_envs)
    assert make(kind, env, train_freq=train_freq, pretrain_steps=0).learn(60)._n_updates == updates


def test_actions_are_random_then_planned(make, kind):
    model = make(kind).learn(20)
    assert model.policy.last_plan is None and model._n_updates == 0
    model.learn(1, reset_num_timesteps=False)
    assert model.policy.last_plan is None and model._n_updates > 0
    model.learn(1, reset_num_timesteps=False)
    assert model.policy.last_plan is not None


@pytest.mark.parametrize(("steps", "gamma"), [(20, 0.95), (200, 0.975), (1_000, 0.995)])
def test_the_discount_follows_from_the_time_limit(make, kind, steps, gamma):
    model = make(kind, gym.make("LatentSlider-v0", max_episode_steps=steps))
    assert model.gamma == model.policy.objective.discount == pytest.approx(gamma)
    assert make(kind, make_vec_env("LatentSlider-v0", 3), gamma=0.5).gamma == 0.5


def test_sequences_are_replayed_evenly_by_tdmpc2_and_by_priority_by_tdmpc(make):
    buffer = make("tdmpc2").learn(60).replay_buffer
    assert type(buffer) is SequenceReplayBuffer and buffer.horizon == 3 and buffer.priority_exponent == 0
    buffer = make("tdmpc").learn(60).replay_buffer
    assert (buffer.priority_exponent, buffer.importance_exponent) == (0.6, 0.4)
    assert len(np.unique(buffer.scaled_priorities[buffer.starts])) > 10
    # The last two steps of an episode begin sequences too, the newest two none yet
    ends = np.flatnonzero(buffer.dones[: buffer.pos, 0])
    assert buffer.starts[ends].all() and buffer.starts[ends - 1].all()
    assert buffer.starts[: buffer.pos, 0].sum() >= buffer.pos - 2
    newest = make("tdmpc", batch_size=1).learn(60).replay_buffer
    assert newest.scaled_priorities[57, 0] == pytest.approx(newest.max_priority**0.6)


# ---------------------------------------------------------------- the planner


def many_actions(n):
    class Wide(gym.Env):
        observation_space = spaces.Box(-1, 1, (2,), np.float32)
        action_space = spaces.Box(-1, 1, (n,), np.float32)

    return Wide()


@pytest.mark.parametrize(("n_actions", "n_iterations"), [(1, 6), (19, 6), (20, 8), (38, 8)])
def test_mppi_of_tdmpc2(make, n_actions, n_iterations):
    model = make("tdmpc2", many_actions(n_actions), gamma=0.9, planner_kwargs=None, n_proposals=24)
    planner = model.policy.planner
    assert planner.n_iterations == n_iterations
    assert planner.population_size + model.policy.n_proposals == 512
    assert (planner.n_elites, planner.temperature, planner.init_std, planner.std_bounds) == (64, 1 / 0.5, 2, (0.05, 2))
    assert (planner.momentum, planner.horizon, planner.smoothing) == (0, 3, 0)


def test_mppi_of_tdmpc(make):
    planner = make("tdmpc", many_actions(38), gamma=0.9, planner_kwargs=None).policy.planner
    assert (planner.population_size, planner.n_iterations, planner.n_elites) == (512, 6, 64)
    assert (planner.temperature, planner.momentum, planner.init_std) == (1 / 0.5, 0.1, 2)
    assert tdmpc.PLANNER != tdmpc2.PLANNER


def test_the_proposals_are_drawn_once_for_all_iterations(make, monkeypatch):
    model, seen = make("tdmpc2"), []
    score_states = model.policy.objective.score_states

    def spy(*args):
        score = score_states(*args)
        return lambda actions: (seen.append(actions.clone()), score(actions))[1]

    monkeypatch.setattr(model.policy.objective, "score_states", spy)
    model.predict(np.zeros((1, 2), np.float32))
    assert [actions.shape for actions in seen] == [(1, 12 + 3, 3, 1)] * 2
    assert th.equal(seen[0][:, 12:], seen[1][:, 12:]) and not th.equal(seen[0][:, :12], seen[1][:, :12])


@pytest.fixture
def planner():
    return LatentMPPI(horizon=3, population_size=50, n_elites=10, n_iterations=3, temperature=2.0, std_bounds=(0.05, 2.0))


def near_half(actions):
    return -20 * (actions - 0.5).pow(2).sum(dim=(2, 3))


def test_a_plan_starts_from_the_last_one_shifted_with_a_0_at_the_end(planner):
    state = planner.initial_state(2, 1)
    plan = planner.plan(near_half, state, th.Generator().manual_seed(0))
    shifted = planner.shift(plan.state, plan.actions[:, :1])
    assert th.equal(shifted.mean[:, :2], plan.state.mean[:, 1:]) and not shifted.mean[:, 2:].any()
    assert (planner._begin(shifted).std == planner.init_std).all()


def test_exploring_executes_elites_by_their_weight_with_noise(planner):
    explorer = planner.exploring()
    search = explorer._begin(explorer.initial_state(1, 1))
    search.candidates = th.tensor([-0.5, 0.0, 0.5])[None, :, None, None].expand(-1, -1, 3, -1)
    search.weights = th.tensor([[0.2, 0.0, 0.6]])
    search.mean, search.std = th.full((1, 3, 1), 0.25), th.full((1, 3, 1), 0.01)
    noise = th.Generator().manual_seed(0)
    actions = th.stack([explorer._output(search, noise)[0, :, 0] for _ in range(2_000)])
    near = [(actions[:, 0] - centre).abs() < 0.06 for centre in (-0.5, 0.0, 0.5)]
    assert [mask.float().mean().item() for mask in near] == pytest.approx([0.25, 0.0, 0.75], abs=0.03)
    assert actions[near[2], 0].std().item() == pytest.approx(0.01, rel=0.1)
    assert th.equal(planner._output(search, noise), search.mean)


def test_actions_with_noise_stay_within_bounds(planner):
    explorer = planner.exploring()
    search = explorer._begin(explorer.initial_state(1, 1))
    search.std = th.full((1, 3, 1), 5.0)
    assert explorer._output(search, th.Generator().manual_seed(0)).abs().max() <= 1


@pytest.mark.parametrize("bad", [th.nan, th.inf, -th.inf])
def test_a_plan_that_diverges_ranks_last(planner, bad):
    def score(actions):
        return th.where(actions[:, :, 0, 0] > 0, bad, -100 - actions[:, :, 0, 0])

    plan = planner.plan(score, planner.initial_state(1, 1), th.Generator().manual_seed(0))
    assert plan.actions[0, 0, 0] < 0 and th.isfinite(plan.value).all()


def test_if_all_plans_diverge_the_old_mean_is_kept(planner):
    state = planner.initial_state(2, 1)._replace(mean=th.full((2, 3, 1), 0.25))

    def score(actions):
        return near_half(actions) * th.tensor([[1.0], [th.nan]])

    planner.init_std = 1e-3
    for each in (planner, planner.exploring()):
        plan = each.plan(score, state, th.Generator().manual_seed(0))
        th.testing.assert_close(plan.actions[1], state.mean[1], atol=0.01, rtol=0)
        assert plan.state.mean[0, 0] > 0.25 and th.equal(plan.state.mean[1], state.mean[1])


@pytest.mark.parametrize("part", ["prior", "dynamics", "critics", "reward_head"])
def test_actions_are_valid_whatever_has_diverged(make, kind, part):
    model = make(kind)
    next(getattr(model.model, part).parameters()).data.fill_(th.nan)
    for deterministic in (False, True):
        actions, state = model.predict(np.ones((3, 2), np.float32), deterministic=deterministic)
        assert all(model.action_space.contains(action) for action in actions)
        assert all(np.isfinite(part).all() for part in state)


def test_the_last_value_is_that_of_two_random_critics(make):
    model = make("tdmpc2").model
    for i, critic in enumerate(model.critics):
        critic[-1].bias.data[50 + 5 * i] = 50.0  # symlog of the value: i
    z, expected = th.rand(1, 16), [float(np.expm1(i)) for i in range(3)]
    noise = th.Generator().manual_seed(0)
    seen = {round(model.value(z, noise).item(), 3) for _ in range(40)}
    assert seen == {round((expected[i] + expected[j]) / 2, 3) for i, j in [(0, 1), (0, 2), (1, 2)]}
    # Each environment has its own pair, all of its plans the same
    values = model.value(z.expand(40, -1), [th.Generator().manual_seed(i) for i in range(10)]).view(10, 4)
    assert len(values[:, 0].unique()) > 1 and all(len(row.unique()) == 1 for row in values)


def test_all_plans_of_an_environment_are_valued_by_the_same_critics(make, monkeypatch):
    policy = make("tdmpc2").policy
    monkeypatch.setattr(policy.model, "width", 2**18 // 10)  # so wide that ten states fill the cache
    for i, critic in enumerate(policy.model.critics):
        critic[-1].bias.data[50 + 5 * i] = 50.0
    generators = [th.Generator().manual_seed(i) for i in range(10)]
    values = policy.objective.score_states(policy.model.start(th.zeros(10, 2)), generators)(th.zeros(10, 40, 3, 1))
    assert all((row.max() - row.min()) < 1e-3 for row in values) and values[:, 0].std() > 0.1


def test_terminations_are_predicted_once_one_was_seen(make, kind):
    model = make(kind).learn(40)
    model.model.termination_head[-1].bias.data.fill_(100.0)
    z = model.model.start(th.zeros(3, 2))
    assert not model.model.step(z, th.zeros(3, 1)).terminated.any()
    model._update(model.replay_buffer.sample(8))
    assert model.model.terminates == 0
    batch = model.replay_buffer.sample(8)
    batch.terminated[-1, 0] = 1
    model._update(batch)
    model._update(model.replay_buffer.sample(8))
    assert model.model.terminates == 1
    assert model.model.step(z, th.zeros(3, 1)).terminated.all()


# ---------------------------------------------------------------- TD-MPC's schedules


def test_plans_become_longer_and_less_random(make):
    model = make("tdmpc", horizon=5, horizon_schedule=(0, 100, 1, 5), std_schedule=(0, 100, 0.5, 0.05))
    seen = []
    for model.num_timesteps in (0, 24, 25, 50, 99, 100, 1_000):
        model._follow_schedules()
        seen.append((model.policy.planner.n_planned, round(model.policy.planner.std_bounds[0], 4)))
    assert seen == [(1, 0.5), (1, 0.392), (2, 0.3875), (3, 0.275), (4, 0.0545), (5, 0.05), (5, 0.05)]
    assert model.policy.planner.std_bounds[1] == 2


def test_the_schedules_are_followed_while_it_learns(make):
    model = make("tdmpc").learn(45)
    assert model.policy.planner.n_planned == 2
    assert model.policy.planner.std_bounds[0] == pytest.approx(0.5 - 0.45 * 44 / 60)
    assert model.learn(30, reset_num_timesteps=False).policy.planner.n_planned == 3


def test_horizon_caps_its_schedule(make):
    model = make("tdmpc", horizon=2, horizon_schedule=(0, 10, 1, 5))
    model.num_timesteps = 50
    model._follow_schedules()
    assert model.policy.planner.n_planned == 2


def test_a_longer_horizon_lengthens_plans(make):
    model = make("tdmpc", horizon=8, horizon_schedule=(0, 10, 1, None))
    model.num_timesteps = 50
    model._follow_schedules()
    assert model.policy.planner.n_planned == 8


def test_steps_beyond_the_current_horizon_are_0_and_have_no_effect(make, planner):
    model = make("tdmpc", horizon_schedule=(0, 30, 1, 3))
    _, state = model.predict(np.ones((2, 2), np.float32))
    assert state[0][:, 0].all() and not state[0][:, 1:].any()
    short, seen = planner.limited(2, (0.05, 2.0)), []
    short.plan(lambda actions: (seen.append(actions.shape), near_half(actions))[1], short.initial_state(1, 1))
    assert seen == [(1, 50, 2, 1)] * 3
    assert planner.n_planned == 3


def test_the_policy_noise_of_tdmpc_is_the_final_value_of_the_schedule(make):
    model = make("tdmpc", std_schedule=(0, 100, 0.5, 0.02))
    assert model.model.noise_std == 0.02
    assert model.learn(30).model.noise_std == 0.02


def test_tdmpc2_plans_its_horizon_from_the_start(make):
    planner = make("tdmpc2").policy.planner
    assert planner.n_planned == planner.horizon == 3
