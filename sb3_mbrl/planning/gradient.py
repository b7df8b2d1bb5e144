"""Planning by gradients through the model, from several starts."""

import torch as th

from sb3_mbrl.common.arguments import check_arguments, integer, number
from sb3_mbrl.common.random import Generators, rand
from sb3_mbrl.planning.planner import MOST_PLANS, Clock, Plan, Planner, PlannerState, Score, take, worst_if_not_finite


class GradientPlanner(Planner):
    """
    Improves plans by gradient ascent (Adam on ``atanh`` of the actions), starting from the rest of the last plan, the
    proposals and random plans, and executes the best sequence found. The score must be differentiable: that of a learned model
    is, that of a simulator is not.

    :param horizon: H, actions in a plan
    :param n_iterations: gradient steps
    :param n_starts: number of plans that are improved in parallel, not counting the proposals
    :param learning_rate: learning rate of Adam
    :raises ValueError: a number is out of its range; in ``plan``, the score is not differentiable
    """

    def __init__(self, horizon: int = 15, n_iterations: int = 20, n_starts: int = 16, learning_rate: float = 0.1):
        super().__init__(horizon, n_iterations)
        check_arguments(locals(), {"n_starts": integer(1, MOST_PLANS), "learning_rate": number(0, above=True)})
        self.n_starts = n_starts
        self.learning_rate = learning_rate

    def plan(
        self,
        score: Score,
        state: PlannerState,
        generator: Generators = None,
        proposals: th.Tensor | None = None,
        max_seconds: float | None = None,
    ) -> Plan:
        clock = Clock(max_seconds)
        plans = self._starts(state, generator, proposals)
        # tanh is flat at the bounds, where a plan would get stuck
        unbounded = th.atanh(plans.clamp(-0.97, 0.97)).requires_grad_()
        optimizer = th.optim.Adam([unbounded], lr=self.learning_rate)
        best, best_value = plans, th.full(plans.shape[:2], th.finfo(plans.dtype).min, device=plans.device)
        n_iterations = 0
        while n_iterations < self.n_iterations and clock.allows_another(n_iterations):
            with th.enable_grad():
                actions = th.tanh(unbounded)
                values = score(actions)
                if not values.requires_grad:
                    raise ValueError(
                        "GradientPlanner needs a model through which gradients flow, but the score has no gradient. For a "
                        "simulator, use a planner that samples, such as ICEM."
                    )
                (gradient,) = th.autograd.grad(values.sum(), unbounded)
            values = worst_if_not_finite(values.detach())
            better = values > best_value
            best = th.where(better[:, :, None, None], actions.detach(), best)
            best_value = th.where(better, values, best_value)
            unbounded.grad = -gradient.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
            n_iterations += 1
        value, index = best_value.max(dim=1)
        chosen = take(best, index.unsqueeze(1)).squeeze(1)
        new_state = PlannerState(chosen, state.elites, state.previous, th.ones_like(state.started))
        return Plan(chosen, value, th.zeros_like(chosen), n_iterations, new_state)

    def _starts(self, state: PlannerState, generator: Generators, proposals: th.Tensor | None) -> th.Tensor:
        """Plans to start from, the first of them the rest of the last plan, (B, N, H, A)."""
        n_envs, horizon, action_dim = state.mean.shape
        random = 2 * rand((n_envs, self.n_starts - 1, horizon, action_dim), generator, state.mean.device) - 1
        starts = [state.mean.unsqueeze(1), random]
        return th.cat(starts if proposals is None else [*starts, proposals], dim=1)
