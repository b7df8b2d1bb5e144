"""Plans that follow a policy, for a planner to improve on."""

from collections.abc import Callable

import torch as th
import torch.nn.functional as F
from gymnasium import spaces

from sb3_mbrl.common.model import DynamicsModel
from sb3_mbrl.common.random import Generators, rand, randint, randn

Actor = Callable[[th.Tensor], th.Tensor]
"""``f(raw observations (B, O)) -> actions (B, A)`` in [-1, 1], one-hot for discrete ones."""


@th.no_grad()
def policy_proposals(
    actor: Actor,
    model: DynamicsModel,
    starts: th.Tensor,
    n: int,
    horizon: int,
    noise: float,
    action_repeat: int = 1,
    generator: Generators = None,
) -> th.Tensor:
    """
    Roll a policy out in the model and return its actions.

    :param actor: the policy
    :param model: the model
    :param starts: states of the model to start from, (B, S)
    :param n: proposals for each environment; the first follows the policy without noise
    :param horizon: H, actions in a plan
    :param noise: standard deviation of the noise on actions; for discrete actions the probability of a random action
    :param action_repeat: model steps for each action
    :param generator: source of all noise
    :return: the proposals, (B, n, H, A)
    """
    states = starts.repeat_interleave(n, dim=0)
    noisy = (th.arange(len(states), device=states.device) % n > 0).unsqueeze(1)
    actions = []
    for _ in range(horizon):
        action = actor(model.observe(states))
        action = th.where(noisy, _disturbed(action, noise, isinstance(model.action_space, spaces.Discrete), generator), action)
        actions.append(action)
        for _ in range(action_repeat):
            states = model.step(states, action, generator).next_obs
    plans = th.stack(actions, dim=1).reshape(len(starts), n, horizon, -1)
    return plans.nan_to_num(0.0)  # a rollout that diverges gives NaN; the planner scores every proposal anyway


def _disturbed(action: th.Tensor, noise: float, discrete: bool, generator: Generators) -> th.Tensor:
    if not discrete:
        return (action + noise * randn(action.shape, generator, action.device)).clamp(-1, 1)
    other = F.one_hot(randint(action.shape[1], (len(action),), generator, action.device), action.shape[1]).to(action.dtype)
    return th.where(rand((len(action), 1), generator, action.device) < noise, other, action)
