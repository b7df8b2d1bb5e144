"""Rules of imagined branches: how they continue, which rewards they return, and when they end."""

from dataclasses import dataclass

from sb3_mbrl.common.arguments import BOOLEAN, check_arguments, integer, number
from sb3_mbrl.common.model import PROPAGATION, VALUE_MODE

RULES = {
    "max_episode_steps": integer(1, 10**12),
    "deterministic": BOOLEAN,
    "propagation": PROPAGATION,
    "value_mode": VALUE_MODE,
    "reward_kappa": number(0),
    "uncertainty_penalty": number(0),
    "max_disagreement": number(0) | None,
    "halt_reward": number() | None,
    "stagger": BOOLEAN,
}
"""Rules for the arguments of :class:`ImaginationRules`."""


@dataclass(frozen=True)
class ImaginationRules:
    """
    Rules of imagined branches: how they continue, which rewards they return, and when they end.

    :param max_episode_steps: steps after which a branch is truncated
    :param propagation: ``"ts1"``: an elite drawn for each branch and step (MBPO); ``"tsinf"``: a branch keeps the elite drawn
        when it begins; ``"expectation"``: the elites' average, without noise
    :param deterministic: means instead of samples of the predicted distributions
    :param value_mode: ``"expected"``: the predicted reward; ``"pessimistic"`` or ``"optimistic"``: its lower or upper
        confidence bound, ``reward_kappa`` standard deviations below or above
    :param reward_kappa: weight of the standard deviation of the elites' mean rewards, for the latter two. (The ``kappa`` of a
        planner is about whole returns, and includes their noise)
    :param uncertainty_penalty: lambda of MOPO (Yu et al. 2020, https://arxiv.org/abs/2005.13239): subtracted from the reward,
        times the Euclidean norm of the elites' standard deviations about the next observation, in the observation's units
        (``ModelStep.disagreement``)
    :param max_disagreement: MOReL's halt (Kidambi et al. 2020, https://arxiv.org/abs/2005.05951): a step about whose next
        observation the elites disagree by more, in the same measure, ends the task; None: never
    :param halt_reward: reward of such a step. It must be lower than the reward for continuing; otherwise the policy seeks
        unknown states
    :param stagger: whether branch ``i`` begins its first episode at step ``i * max_episode_steps // n``, so that not all are
        truncated at once: PPO evaluates its critic for each truncated environment, one after the other. First episodes are
        shorter for that and return less, so pass False to evaluate a policy
    :raises ValueError: a name that is not known, or a number out of its range
    """

    max_episode_steps: int
    propagation: str = "ts1"
    deterministic: bool = False
    value_mode: str = "expected"
    reward_kappa: float = 1.0
    uncertainty_penalty: float = 0.0
    max_disagreement: float | None = None
    halt_reward: float | None = None
    stagger: bool = True

    def __post_init__(self) -> None:
        check_arguments(vars(self), RULES)
        if (self.max_disagreement is None) != (self.halt_reward is None):
            raise ValueError(
                "max_disagreement and halt_reward belong together: a branch ends where the elites disagree by more than "
                "max_disagreement, and its last reward is halt_reward, which must be lower than the rewards for continuing "
                "(MOReL: below the lowest reward in the data). Pass both or neither."
            )

    @property
    def needs_uncertainty(self) -> bool:
        """Whether a step has to evaluate all elites."""
        return self.value_mode != "expected" or self.uncertainty_penalty > 0 or self.max_disagreement is not None
