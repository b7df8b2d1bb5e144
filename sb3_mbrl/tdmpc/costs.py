"""How long a run of TD-MPC or TD-MPC2 will take, measured before it starts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_mbrl.algorithms.costs import in_words, seconds, undone, updates_per_step
from sb3_mbrl.common.sequences import SequenceSamples

if TYPE_CHECKING:
    from sb3_mbrl.tdmpc.base import LatentAlgorithm

N_UPDATES = 3
N_PLANS = 3


@dataclass(frozen=True)
class Costs:
    """
    Seconds on this machine, with the threads that it has now.

    :param update: of one update
    :param plan: of one plan, for all environments together
    """

    update: float
    plan: float


def measure(algorithm: "LatentAlgorithm", num_timesteps: int) -> Costs:
    """
    Let the algorithm plan and update on repetitions of its last observation, which takes a second or two, and undo it.

    :param algorithm: about to learn, with an environment that was reset
    :param num_timesteps: environment step at which schedules are looked up, since plans of TD-MPC become longer
    :return: what the work costs
    """
    policy = algorithm.policy
    planner_generator, last_plan = policy.generator.get_state(), policy.last_plan
    try:
        with undone(algorithm):
            algorithm.num_timesteps = num_timesteps
            return _measure(algorithm)
    finally:
        policy.generator.set_state(planner_generator)
        policy.last_plan = last_plan
        algorithm._follow_schedules()


def _measure(algorithm: Any) -> Costs:
    algorithm._logger = Logger(folder=None, output_formats=[])
    algorithm.replay_buffer = _Repeats(algorithm)
    algorithm._n_updates = max(algorithm._n_updates, 1)  # pretraining is over

    def plan() -> None:
        for _ in range(N_PLANS):
            algorithm.predict(algorithm._last_obs)

    return Costs(
        update=seconds(lambda: algorithm.train(N_UPDATES, algorithm.batch_size), algorithm.device) / N_UPDATES,
        plan=seconds(plan, algorithm.device) / N_PLANS,
    )


class _Repeats:
    """
    A stand-in for the replay buffer that always returns the same batch.

    :param algorithm: its last observation fills the batch
    """

    n_sequences = 1

    def __init__(self, algorithm: Any):
        length, n, device = algorithm.horizon, algorithm.batch_size, algorithm.device
        last = algorithm._last_obs
        ones = th.ones(length, n, 1, device=device)

        def repeated(obs: np.ndarray) -> th.Tensor:
            row = th.as_tensor(obs[:1], device=device)
            row = row.float() if row.dtype == th.float64 else row
            return row.unsqueeze(0).repeat(length + 1, n, *[1] * (row.dim() - 1))

        self.batch = SequenceSamples(
            observations={name: repeated(obs) for name, obs in last.items()} if isinstance(last, dict) else repeated(last),
            actions=th.zeros(length, n, algorithm.model.action_dim, device=device),
            rewards=ones,
            terminated=0 * ones,
            valid=ones.squeeze(-1),
            indices=np.arange(n),
            weights=ones[0, :, 0],
        )

    def sample(self, batch_size: int, env: Any = None) -> SequenceSamples:
        return self.batch

    def update_priorities(self, indices: np.ndarray, priorities: th.Tensor) -> None:
        """Does nothing."""


def forecast(algorithm: "LatentAlgorithm", total_timesteps: int, costs: Costs | None = None) -> str | None:
    """
    :param algorithm: that is about to learn
    :param total_timesteps: environment steps at which it will stop
    :param costs: of its work; None: to be measured
    :return: how long it will take, and for what; None: nothing will be learned, or how often is not known
    """
    begin = max(algorithm.num_timesteps, algorithm.learning_starts)
    learned = total_timesteps - begin
    per_step = updates_per_step(algorithm)
    if learned <= 0 or per_step is None:
        return None
    costs = costs or measure(algorithm, (begin + total_timesteps) // 2)
    n_updates, n_plans = int(per_step * learned), learned // algorithm.n_envs
    if algorithm._n_updates == 0:
        n_updates += algorithm.n_pretrain_steps
    duration = n_updates * costs.update + n_plans * costs.plan
    return (
        f"To step {total_timesteps}: about {in_words(duration)} beside the environment's own steps. {n_updates} updates of "
        f"{costs.update * 1e3:.1f} ms, {n_plans} plans of {costs.plan * 1e3:.1f} ms."
    )
