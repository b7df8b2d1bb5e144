"""With equal weights, batch and noise, all results equal those of plain loops over time, written from the papers."""

import math

import numpy as np
import pytest
import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_mbrl.common.sequences import SequenceSamples
from sb3_mbrl.tdmpc.arguments import discount_for
from sb3_mbrl.tdmpc.layers import Critics, NormMish, SimNorm, TwoHot, normed_mlp, symexp, symlog
from sb3_mbrl.tdmpc.planner import LatentMPPI, prior_proposals

pytestmark = pytest.mark.usefixtures("both_ways")

H, B, Z, A = 3, 8, 16, 1
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def assert_close(ours, theirs):
    th.testing.assert_close(ours, th.as_tensor(theirs, dtype=ours.dtype), **CLOSE)


def generator(seed=0):
    return th.Generator().manual_seed(seed)


# ---------------------------------------------------------------- plain networks


def plain(network, x):
    """Applies the layers of a network one by one with PyTorch's own functions, without dropout."""
    for layer in network:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.T + layer.bias
        elif isinstance(layer, nn.LayerNorm):
            mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, correction=0)
            x = (x - mean) / (variance + 1e-5).sqrt() * layer.weight + layer.bias
            x = F.mish(x) if isinstance(layer, NormMish) else x
        elif isinstance(layer, SimNorm):
            x = th.cat([group.softmax(dim=-1) for group in x.split(8, dim=-1)], dim=-1)
        elif isinstance(layer, nn.ELU):
            x = F.elu(x)
        elif isinstance(layer, nn.Tanh):
            x = th.tanh(x)
        else:
            assert isinstance(layer, nn.Dropout)
    return x


def join(*tensors):
    return th.cat(tensors, dim=-1)


def bins():
    return [-10 + 0.2 * i for i in range(101)]


def scalar(logits):
    """The scalar that 101 logits represent."""
    mean = sum(probability * bin_ for probability, bin_ in zip(logits.softmax(dim=-1).unbind(dim=-1), bins(), strict=True))
    return mean.sign() * (mean.abs().exp() - 1)


def two_hot_of(x):
    """The encoding of one number, in NumPy."""
    position = (min(max(math.copysign(math.log(1 + abs(x)), x), -10), 10) + 10) / 0.2
    lower = min(math.floor(position), 99)
    probabilities = np.zeros(101)
    probabilities[lower], probabilities[lower + 1] = 1 - (position - lower), position - lower
    return probabilities


def cross_entropy(logits, targets):
    """(B, 101) and (B,) -> (B,)"""
    expected = th.tensor(np.stack([two_hot_of(x) for x in targets.double().tolist()]), dtype=th.float32)
    return -(expected * (logits - logits.logsumexp(dim=-1, keepdim=True))).sum(dim=-1)


def gaussian_policy(model, z, noise):
    """Action, log-density of the Gaussian, log-density of the action."""
    mean, raw = plain(model.prior, z).chunk(2, dim=-1)
    log_std = -10 + 6 * (th.tanh(raw) + 1)
    before = mean + log_std.exp() * noise
    action = th.tanh(before)
    # In double precision: the standard deviation is tiny
    exact = mean.double() + log_std.double().exp() * noise.double()
    gaussian = th.distributions.Normal(mean.double(), log_std.double().exp()).log_prob(exact).sum(dim=-1).float()
    return action, gaussian, gaussian - (1 - action**2 + 1e-6).log().sum(dim=-1)


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_layer_normalisation_then_mish(scale):
    layer, x = NormMish(12), (scale * th.randn(5, 4, 12, generator=generator())).requires_grad_()
    layer.weight.data.normal_(generator=generator(1)), layer.bias.data.normal_(generator=generator(2))
    weights = th.randn(x.shape, generator=generator(3))
    gradients = []
    for function in (layer, lambda rows: F.mish(F.layer_norm(rows, (12,), layer.weight, layer.bias))):
        y = function(x)
        gradients.append([y, *th.autograd.grad((weights * y).sum(), [x, layer.weight, layer.bias])])
    for own, other in zip(*gradients, strict=True):
        assert_close(own, other)
    before = x.detach().clone()
    with th.no_grad():
        assert_close(layer(before), gradients[1][0].detach())
    assert th.equal(before, x)  # what it is given is left as it is


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_simnorm(scale):
    x = (scale * th.randn(5, 4, 24, generator=generator())).requires_grad_()
    other = x.detach().clone().requires_grad_()
    ours = SimNorm(8)(x)
    theirs = th.cat([group.softmax(dim=-1) for group in other.split(8, dim=-1)], dim=-1)
    assert_close(ours, theirs)
    assert_close(ours.unflatten(-1, (3, 8)).sum(dim=-1), th.ones(5, 4, 3))
    weights = th.randn(ours.shape, generator=generator(1))
    (weights * ours).sum().backward()
    (weights * theirs).sum().backward()
    assert_close(x.grad, other.grad)


def test_symlog_and_its_inverse():
    x = np.array([-2e4, -1.0, -1e-3, 0.0, 1e-3, 0.5, 3.0, 2e4])
    assert_close(symlog(th.tensor(x)), np.sign(x) * np.log(1 + np.abs(x)))
    assert_close(symexp(symlog(th.tensor(x))), x)


SCALARS = [-1e9, -(math.e**10), -7.3, -1.0, -1e-3, 0.0, 1e-9, 0.2214, 1.0, 99.9, 2e4, math.e**10 - 1, 1e9]


def test_two_hot():
    encoded = TwoHot().encode(th.tensor(SCALARS))
    assert_close(encoded, np.stack([two_hot_of(x) for x in SCALARS]))
    assert_close(encoded.sum(dim=-1), th.ones(len(SCALARS)))
    assert ((encoded > 0).sum(dim=-1) <= 2).all()


def test_two_hot_decodes_what_it_encodes():
    x = th.tensor([-100.0, -1.0, 0.0, 0.3, 5.0, 1_000.0])
    # Between two bins symexp bends
    th.testing.assert_close(TwoHot().decode(TwoHot().encode(x).log()), x, rtol=1e-3, atol=1e-4)


def test_two_hot_of_nan_is_nan_and_no_index_error():
    encoded = TwoHot().encode(th.tensor([th.nan, 1.0, th.inf, -th.inf]))
    assert encoded[0].isnan().any() and not encoded[1:].isnan().any()
    assert encoded[2, 100] == encoded[3, 0] == 1


def test_two_hot_decoding():
    logits = 3 * th.randn(50, 101, generator=generator())
    assert_close(TwoHot().decode(logits), scalar(logits))


def test_two_hot_loss():
    logits = th.randn(3, len(SCALARS), 101, generator=generator())
    loss = TwoHot().loss(logits, th.tensor(SCALARS))  # the same scalars for three critics
    for own, expected in zip(loss, logits, strict=True):
        assert_close(own, cross_entropy(expected, th.tensor(SCALARS, dtype=th.float64)))


def test_critics_are_separate_networks():
    critics = Critics(normed_mlp([6, 16, 16], 4, dropout=0.5) for _ in range(3)).eval()
    for parameter in critics.parameters():
        parameter.data.normal_(generator=generator(len(parameter)))
    x = th.randn(5, 6, generator=generator())
    everywhere = critics(x)
    assert_close(everywhere, th.stack([plain(each, x) for each in critics]))
    own = th.randn(2, 5, 6, generator=generator(1))
    assert_close(critics(own, th.tensor([2, 0])), th.stack([plain(critics[2], own[0]), plain(critics[0], own[1])]))
    everywhere.sum(dim=(1, 2))[0].backward()
    assert critics[0][0].weight.grad.any() and not critics[1][0].weight.grad.any()


# ---------------------------------------------------------------- a batch and an algorithm with some weights


def perturb(model, seed=0):
    """Adds noise to all parameters, since initial rewards and values are 0 and would hide errors."""
    noise = generator(seed)
    for parameter in model.parameters():
        parameter.data += 0.4 * th.randn(parameter.shape, generator=noise)


@pytest.fixture
def batch():
    noise = generator(3)
    return SequenceSamples(
        observations=th.randn(H + 1, B, 2, generator=noise),
        actions=2 * th.rand(H, B, A, generator=noise) - 1,
        rewards=3 * th.randn(H, B, 1, generator=noise),
        terminated=(th.rand(H, B, 1, generator=noise) < 0.3).float(),
        valid=th.cat([th.ones(1, B), (th.rand(H - 1, B, generator=noise) < 0.8).float()]).cumprod(dim=0),
        indices=np.arange(B),
        weights=th.rand(B, generator=noise) + 0.1,
    )


@pytest.fixture
def tdmpc2(make):
    algorithm = make("tdmpc2", horizon=H, rho=0.7, gamma=0.9)
    perturb(algorithm.model)
    algorithm.policy.set_training_mode(False)
    return algorithm


@pytest.fixture
def tdmpc(make):
    algorithm = make("tdmpc", horizon=H, rho=0.7, gamma=0.9, horizon_schedule=(0, 1, 3, 3))
    perturb(algorithm.model)
    algorithm.policy.set_training_mode(False)
    return algorithm


def captured(algorithm, monkeypatch):
    """Records the losses of an update and their gradients; no optimizer step is made."""
    seen = []

    def step(optimizer, loss, max_grad_norm):
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        seen.append((loss.detach(), gradients, max_grad_norm))
        return th.zeros(())

    monkeypatch.setattr(algorithm, "_step_optimizer", step)
    return seen


def parameters_of(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def assert_gradients(gradients, loss, parameters):
    expected = th.autograd.grad(loss, parameters)
    for own, other in zip(gradients, expected, strict=True):
        th.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- TD-MPC2


def test_policy_prior(tdmpc2):
    z, noise = th.randn(20, Z, generator=generator()), th.randn(20, A, generator=generator(5))
    sample = tdmpc2.model.sample_policy(z, generator(5))
    action, gaussian, squashed = gaussian_policy(tdmpc2.model, z, noise)
    assert_close(sample.action, action)
    assert_close(sample.scaled_entropy, -A * gaussian)
    assert_close(sample.entropy, -squashed)
    assert_close(tdmpc2.model.act(z, deterministic=True), th.tanh(plain(tdmpc2.model.prior, z)[:, :A]))


def test_scaled_entropy_is_that_of_the_gaussian_times_the_actions(make, tdmpc2):
    from gymnasium import spaces
    from stable_baselines3.common.torch_layers import FlattenExtractor

    from sb3_mbrl.tdmpc.world_model import Sizes, WorldModel

    space = spaces.Box(-1, 1, (2,), np.float32)
    model = WorldModel(space, spaces.Box(-1, 1, (3,), np.float32), FlattenExtractor(space), Sizes(8, 8, 8, 2, 2))
    perturb(model)
    z, noise = th.randn(20, 8, generator=generator()), th.randn(20, 3, generator=generator(5))
    sample = model.sample_policy(z, generator(5))
    _, gaussian, squashed = gaussian_policy(model, z, noise)
    assert_close(sample.scaled_entropy, -3 * gaussian)
    # As its code writes it: the correction of the tanh cancels
    assert_close(sample.scaled_entropy, -squashed * (3 * gaussian / (squashed + 1e-8)))


def targets_of_tdmpc2(algorithm, batch, noise):
    model, targets = algorithm.model, []
    draws = th.randn(H * B, A, generator=noise)
    first, second = th.rand(1, 3, generator=noise).topk(2).indices[0].tolist()
    for t in range(H):
        z = plain(model.encoder, batch.observations[t + 1])
        action, _, _ = gaussian_policy(model, z, draws[t * B : (t + 1) * B])
        values = [scalar(plain(model.target_critics[i], join(z, action))) for i in (first, second)]
        targets.append(batch.rewards[t, :, 0] + 0.9 * (1 - batch.terminated[t, :, 0]) * th.minimum(*values))
    return th.stack(targets).detach()


def test_td_targets_of_tdmpc2(tdmpc2, batch):
    perturb(tdmpc2.model.target_critics, seed=9)
    tdmpc2._generator.manual_seed(4)
    with th.no_grad():
        next_latents = tdmpc2._encode_later(batch, tdmpc2.model.encode)
    ours = tdmpc2._td_targets(batch, next_latents)
    assert_close(ours, targets_of_tdmpc2(tdmpc2, batch, generator(4)))
    ended = batch.terminated[..., 0] == 1
    assert ended.any() and th.equal(ours[ended], batch.rewards[..., 0][ended])


def losses_of_tdmpc2(algorithm, batch, targets):
    model = algorithm.model
    z = plain(model.encoder, batch.observations[0])
    latents, losses = [z], dict.fromkeys(["consistency_loss", "reward_loss", "value_loss", "termination_loss"], 0)
    for t in range(H):
        pair, weight = join(z, batch.actions[t]), 0.7**t * batch.valid[t]
        losses["reward_loss"] += (weight * cross_entropy(plain(model.reward_head, pair), batch.rewards[t, :, 0])).mean() / H
        for critic in model.critics:
            losses["value_loss"] += (weight * cross_entropy(plain(critic, pair), targets[t])).mean() / (H * 3)
        z = plain(model.dynamics, pair)
        latents.append(z)
        reached = plain(model.encoder, batch.observations[t + 1]).detach()
        losses["consistency_loss"] += (weight * ((z - reached) ** 2).mean(dim=1)).mean() / H
        probability = th.sigmoid(plain(model.termination_head, z)[:, 0])
        ended = batch.terminated[t, :, 0]
        entropy = -(ended * probability.log() + (1 - ended) * (1 - probability).log())
        losses["termination_loss"] += (batch.valid[t] * entropy).mean() / H
    return losses, latents


def prior_loss_of_tdmpc2(algorithm, latents, valid, noise):
    model, loss = algorithm.model, 0
    draws = th.randn(H + 1, B, A, generator=noise)
    pair = th.rand(1, 3, generator=noise).topk(2).indices[0].tolist()
    for t, z in enumerate(latents):
        z = z.detach()
        action, gaussian, _ = gaussian_policy(model, z, draws[t])
        value = sum(scalar(plain(model.critics[i], join(z, action))) for i in pair) / 2
        if t == 0:
            spread = np.percentile(value.detach().double().numpy(), 95) - np.percentile(value.detach().double().numpy(), 5)
            scale = 0.99 * 1 + 0.01 * max(spread, 1)
        # A state counts if the transition that led to it does
        counts = valid[max(t - 1, 0)]
        loss += -(0.7**t) * (counts * (value / scale + 1e-4 * -A * gaussian)).mean() / (H + 1)
    return loss, scale


def test_an_update_of_tdmpc2(tdmpc2, batch, monkeypatch):
    seen = captured(tdmpc2, monkeypatch)
    noise = generator(4)
    losses, latents = losses_of_tdmpc2(tdmpc2, batch, targets_of_tdmpc2(tdmpc2, batch, noise))
    tdmpc2._generator.manual_seed(4)
    logged = tdmpc2._update(batch)
    for name, expected in losses.items():
        assert_close(logged[name], expected)
    total = 20 * losses["consistency_loss"] + 0.1 * losses["reward_loss"] + 0.1 * losses["value_loss"]
    total = total + losses["termination_loss"]
    prior, scale = prior_loss_of_tdmpc2(tdmpc2, latents, batch.valid, noise)
    (model_loss, model_gradients, model_norm), (prior_loss, prior_gradients, prior_norm) = seen
    assert_close(model_loss, total)
    assert_gradients(model_gradients, total, parameters_of(tdmpc2.policy.model_optimizer))
    assert_close(prior_loss, prior)
    assert_gradients(prior_gradients, prior, parameters_of(tdmpc2.policy.prior_optimizer))
    assert_close(logged["q_scale"], scale)
    assert (model_norm, prior_norm) == (20, 20)


def test_the_priors_loss_changes_only_the_prior(tdmpc2, batch, monkeypatch):
    captured(tdmpc2, monkeypatch)
    tdmpc2._update(batch)
    before = [parameter.grad.clone() for parameter in parameters_of(tdmpc2.policy.model_optimizer)]
    tdmpc2._prior_losses(th.randn(H + 1, B, Z), th.ones(H + 1, B))["prior_loss"].backward()
    for old, parameter in zip(before, parameters_of(tdmpc2.policy.model_optimizer), strict=True):
        assert th.equal(old, parameter.grad)
    assert all(parameter.requires_grad for parameter in tdmpc2.model.critics.parameters())


def test_q_scale_is_a_moving_average_of_the_spread(tdmpc2):
    expected = 1.0
    for seed, width in enumerate([0.1, 50.0, 3.0]):
        values = width * th.randn(64, generator=generator(seed))
        spread = np.percentile(values.double().numpy(), 95) - np.percentile(values.double().numpy(), 5)
        expected += 0.01 * (max(spread, 1.0) - expected)
        assert_close(tdmpc2.model.update_q_scale(values), expected)


# ---------------------------------------------------------------- TD-MPC


def noisy_action(model, z, draws):
    mean = th.tanh(plain(model.prior, z))
    action = mean + (0.05 * draws).clamp(-0.3, 0.3)
    return mean + (action.clamp(-1 + 1e-6, 1 - 1e-6) - mean).detach()


def test_the_policy_of_tdmpc(tdmpc):
    z = 3 * th.randn(200, 8, generator=generator())
    tdmpc.model.noise_std = 0.5
    action = tdmpc.model.act(z, generator(5))
    mean, noise = th.tanh(plain(tdmpc.model.prior, z)), th.randn(200, A, generator=generator(5))
    assert_close(action, (mean + (0.5 * noise).clamp(-0.3, 0.3)).clamp(-1, 1))
    assert action.abs().max() < 1 and (noise.abs() > 0.6).any()
    action.sum().backward()  # also where it is clipped
    assert tdmpc.model.prior[-1].bias.grad.item() == pytest.approx((1 - mean**2).sum().item(), rel=1e-4)


def targets_of_tdmpc(algorithm, batch, noise):
    model, targets = algorithm.model, []
    draws = th.randn(H, B, A, generator=noise)
    for t in range(H):
        z = plain(model.encoder, batch.observations[t + 1])
        pair = join(z, noisy_action(model, z, draws[t]))
        value = th.minimum(*[plain(critic, pair)[:, 0] for critic in model.targets[2]])
        targets.append(batch.rewards[t, :, 0] + 0.9 * (1 - batch.terminated[t, :, 0]) * value)
    return th.stack(targets).detach()


def test_td_targets_of_tdmpc(tdmpc, batch):
    perturb(tdmpc.model.targets, seed=9)
    tdmpc._generator.manual_seed(4)
    ours = tdmpc._td_targets(batch)
    assert_close(ours, targets_of_tdmpc(tdmpc, batch, generator(4)))
    ended = batch.terminated[..., 0] == 1
    assert ended.any() and th.equal(ours[ended], batch.rewards[..., 0][ended])


@pytest.mark.parametrize("reward_scale", [1.0, 1e3])
def test_an_update_of_tdmpc(tdmpc, batch, monkeypatch, reward_scale):
    """With rewards in the thousands, the losses of some sequences are clipped."""
    batch = batch._replace(rewards=reward_scale * batch.rewards)
    perturb(tdmpc.model.targets, seed=9)
    seen, priorities = captured(tdmpc, monkeypatch), []
    monkeypatch.setattr(tdmpc.replay_buffer, "update_priorities", lambda indices, values: priorities.append(values))
    tdmpc._generator.manual_seed(4)
    model, noise = tdmpc.model, generator(4)
    targets = targets_of_tdmpc(tdmpc, batch, noise)
    consistency, reward, value, priority, termination = 0, 0, 0, 0, 0
    z = plain(model.encoder, batch.observations[0])
    latents = [z]
    for t in range(H):
        pair, weight = join(z, batch.actions[t]), 0.7**t * batch.valid[t]
        reward = reward + weight * (plain(model.reward_head, pair)[:, 0] - batch.rewards[t, :, 0]) ** 2
        for critic in model.critics:
            error = plain(critic, pair)[:, 0] - targets[t]
            value, priority = value + weight * error**2, priority + weight * error.detach().abs()
        z = plain(model.dynamics, pair)
        latents.append(z.detach())
        reached = plain(model.targets[1], batch.observations[t + 1])
        consistency = consistency + weight * ((z - reached) ** 2).mean(dim=1)
        ended = batch.terminated[t, :, 0]
        logit = plain(model.termination_head, z)[:, 0]
        termination += F.binary_cross_entropy_with_logits(logit, ended, weight=batch.valid[t]) / H
    cut = [each.clamp(max=1e4) for each in (consistency, reward, value)]
    total = (batch.weights * (2 * cut[0] + 0.5 * cut[1] + 0.1 * cut[2])).mean() / H + termination
    draws, prior = th.randn(H + 1, B, A, generator=noise), 0
    for t, z in enumerate(latents):
        pair = join(z.detach(), noisy_action(model, z.detach(), draws[t]))
        value = th.minimum(*[plain(critic, pair)[:, 0] for critic in model.critics])
        prior += -(0.7**t) * (batch.valid[max(t - 1, 0)] * value).mean()

    tdmpc._update(batch)
    (model_loss, model_gradients, model_norm), (prior_loss, prior_gradients, prior_norm) = seen
    assert_close(model_loss, total)
    assert_gradients(model_gradients, total, parameters_of(tdmpc.policy.model_optimizer))
    assert_close(prior_loss, prior)
    assert_gradients(prior_gradients, prior, parameters_of(tdmpc.policy.prior_optimizer))
    assert (model_norm, prior_norm) == (10, 10)
    assert_close(priorities[0], priority.clamp(max=1e4) + 1e-6)
    assert (reward.max() > 1e4) == (reward_scale > 1)


# ---------------------------------------------------------------- planning


@pytest.mark.parametrize(("momentum", "lowest"), [(0.0, 0.05), (0.1, 0.4)])
def test_the_planner(momentum, lowest):
    arguments = {"population_size": 20, "n_elites": 6, "n_iterations": 3, "temperature": 2.0, "init_std": 2.0}
    planner = LatentMPPI(horizon=H, std_bounds=(lowest, 2.0), momentum=momentum, **arguments)
    proposals, target = th.rand(1, 4, H, 2, generator=generator(1)), th.tensor([[0.3, -2.0], [0.0, 0.5], [0.9, 0.9]])
    state = planner.initial_state(1, 2)._replace(mean=th.full((1, H, 2), 0.2), started=th.ones(1, dtype=th.bool))

    def score(actions):
        return -5 * (actions - target).pow(2).sum(dim=(2, 3))

    plan = planner.exploring().plan(score, state, generator(2), proposals)

    noise, mean, std = generator(2), np.full((H, 2), 0.2), np.full((H, 2), 2.0)
    for _ in range(3):
        samples = mean + std * th.randn(1, 20, H, 2, generator=noise)[0].double().numpy()
        candidates = np.concatenate([samples.clip(-1, 1), proposals[0].double().numpy()])
        values = -5 * ((candidates - target.double().numpy()) ** 2).sum(axis=(1, 2))
        elites = candidates[np.argsort(-values)[:6]]
        weights = np.exp(0.5 * (np.sort(values)[::-1][:6] - values.max()))
        weights /= weights.sum()
        new_mean = sum(weight * elite for weight, elite in zip(weights, elites, strict=True))
        variance = sum(weight * (elite - new_mean) ** 2 for weight, elite in zip(weights, elites, strict=True))
        mean, std = momentum * mean + (1 - momentum) * new_mean, np.sqrt(variance).clip(lowest, 2.0)
    drawn = np.searchsorted(np.cumsum(weights), th.rand(1, 1, generator=noise).item())
    action = (elites[drawn] + std * th.randn(1, H, 2, generator=noise)[0].numpy()).clip(-1, 1)
    th.testing.assert_close(plan.state.mean[0], th.tensor(mean, dtype=th.float32), **CLOSE)
    th.testing.assert_close(plan.std[0], th.tensor(std, dtype=th.float32), **CLOSE)
    th.testing.assert_close(plan.actions[0], th.tensor(action, dtype=th.float32), **CLOSE)
    th.testing.assert_close(planner.plan(score, state, generator(2), proposals).actions[0], plan.state.mean[0])


def test_returns_of_plans_of_tdmpc2(tdmpc2):
    model, n = tdmpc2.model, 40
    start = model.start(th.randn(1, 2, generator=generator()))
    actions = 2 * th.rand(1, n, H, A, generator=generator(1)) - 1
    model.terminates.fill_(1)
    # Half of the plans end
    z, logits = start.expand(n, -1), []
    for t in range(H):
        z = plain(model.dynamics, join(z, actions[0, :, t]))
        logits.append(plain(model.termination_head, z)[:, 0])
    model.termination_head[-1].bias.data -= th.stack(logits).amax(dim=0).median().item() + 1e-4
    ours = tdmpc2.policy.objective.score_states(start, generator(2))(actions)[0]
    noise = generator(2)
    draws, pair = th.randn(n, A, generator=noise), th.rand(1, 3, generator=noise).topk(2).indices[0].tolist()
    ended_early = 0
    for i in range(n):
        z, total, alive = start, 0.0, True
        for t in range(H):
            both = join(z, actions[:, i, t])
            total += alive * 0.9**t * scalar(plain(model.reward_head, both))
            z = plain(model.dynamics, both) if alive else z
            alive = alive and th.sigmoid(plain(model.termination_head, z)).item() <= 0.5
        action, _, _ = gaussian_policy(model, z, draws[i : i + 1])
        value = sum(scalar(plain(model.critics[k], join(z, action))) for k in pair) / 2
        th.testing.assert_close(ours[i : i + 1], (total + alive * 0.9**H * value).detach(), atol=1e-4, rtol=1e-4)
        ended_early += not alive
    assert 0 < ended_early < n


def test_returns_of_plans_of_tdmpc(tdmpc):
    model, n = tdmpc.model, 10
    model.termination_head[-1].bias.data += 50  # of no effect until a termination was seen
    start = model.start(th.randn(1, 2, generator=generator()))
    actions = 2 * th.rand(1, n, H, A, generator=generator(1)) - 1
    for horizon in (1, 3):
        ours = tdmpc.policy.objective.score_states(start, generator(2))(actions[:, :, :horizon])[0]
        z, total = start.expand(n, -1), 0
        for t in range(horizon):
            both = join(z, actions[0, :, t])
            total, z = total + 0.9**t * plain(model.reward_head, both)[:, 0], plain(model.dynamics, both)
        pair = join(z, noisy_action(model, z, th.randn(n, A, generator=generator(2))))
        total = total + 0.9**horizon * th.minimum(*[plain(critic, pair)[:, 0] for critic in model.critics])
        th.testing.assert_close(ours, total.detach(), atol=1e-4, rtol=1e-4)


def test_proposals_follow_the_prior(tdmpc2):
    model, starts = tdmpc2.model, tdmpc2.model.start(th.randn(2, 2, generator=generator()))
    ours = prior_proposals(model, starts, 4, H, [generator(1), generator(2)])
    for i, noise in enumerate([generator(1), generator(2)]):
        z = starts[i : i + 1].expand(4, -1)
        for t in range(H):
            action, _, _ = gaussian_policy(model, z, th.randn(4, A, generator=noise))
            assert_close(ours[i, :, t], action)
            z = plain(model.dynamics, join(z, action))


@pytest.mark.parametrize(
    ("steps", "gamma"),
    [(5, 0.95), (50, 0.95), (100, 0.95), (200, 0.975), (500, 0.99), (1_000, 0.995), (5_000, 0.995)],
)
def test_discount(steps, gamma):
    assert discount_for(steps) == pytest.approx(gamma)
