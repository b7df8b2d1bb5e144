"""Planners, which optimise action sequences, and the objective, which values a sequence in a model."""

from functools import partial
from typing import Any

from sb3_mbrl.planning.categorical import CategoricalCEM, CategoricalICEM, CategoricalMPPI, CategoricalRandomShooting
from sb3_mbrl.planning.cem import CEM
from sb3_mbrl.planning.gradient import GradientPlanner
from sb3_mbrl.planning.icem import ICEM
from sb3_mbrl.planning.mppi import MPPI
from sb3_mbrl.planning.objective import ModelObjective
from sb3_mbrl.planning.planner import Plan, Planner, PlannerState
from sb3_mbrl.planning.random_shooting import RandomShooting

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "CategoricalCEM",
    "CategoricalICEM",
    "CategoricalMPPI",
    "CategoricalRandomShooting",
    "GradientPlanner",
    "ModelObjective",
    "Plan",
    "Planner",
    "PlannerState",
    "RandomShooting",
    "make_planner",
]

# The code of PDDM (https://arxiv.org/abs/1909.11652) has horizon 7, beta 0.6 or 0.7 and kappa 0.5 (valve), 10 (cube) or 20
# (two balls) for hands, and horizon 20, beta 0.9 or 0.7 and kappa 1 (cheetah) or 10 (ant) for walkers
_pddm: dict[str, Any] = {
    "horizon": 7,
    "population_size": 700,
    "n_iterations": 1,
    "init_std": 0.9,
    "smoothing": 0.3,
    "temperature": 0.1,
}

PLANNERS = {
    "random_shooting": RandomShooting,
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "pddm": partial(MPPI, **_pddm),
    "gradient": GradientPlanner,
}
CATEGORICAL_PLANNERS = {
    "random_shooting": CategoricalRandomShooting,
    "cem": CategoricalCEM,
    "icem": CategoricalICEM,
    "mppi": CategoricalMPPI,
}
PLANNER_CLASSES: dict[str, type[Planner]] = {
    each.__name__: each for each in (*PLANNERS.values(), *CATEGORICAL_PLANNERS.values()) if isinstance(each, type)
}
"""The classes of planners that a file may name."""


def make_planner(name: str, discrete: bool = False, **kwargs: Any) -> Planner:
    """
    :param name: ``"random_shooting"``, ``"cem"``, ``"icem"``, ``"mppi"``, ``"pddm"`` or ``"gradient"``; the first four also
        plan discrete actions
    :param discrete: whether actions are discrete
    :param kwargs: arguments of the planner
    :return: the planner
    :raises ValueError: an unknown name or argument
    """
    known: dict[str, Any] = CATEGORICAL_PLANNERS if discrete else PLANNERS
    if name not in known:
        raise ValueError(
            f"planner must be one of {sorted(known)} for {'discrete' if discrete else 'Box'} actions, got {name!r}."
        )
    try:
        planner: Planner = known[name](**kwargs)
    except TypeError as error:
        raise ValueError(f"planner {name!r} does not accept the arguments {sorted(kwargs)}: {error}") from error
    return planner
