"""System identification: fits physical parameters of a MuJoCo simulator to logged transitions."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import mujoco.minimize
import numpy as np

from sb3_mbrl.common.actions import to_environment
from sb3_mbrl.common.arguments import check_arguments, integer
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.tasks.mujoco_simulator import MujocoSimulator
from sb3_mbrl.tasks.simulator import SimulatorModel

# The fields of an MjModel that can be identified, and the type of object that their elements belong to
_FIELDS = {
    "body_mass": mujoco.mjtObj.mjOBJ_BODY,
    "dof_armature": mujoco.mjtObj.mjOBJ_JOINT,
    "dof_damping": mujoco.mjtObj.mjOBJ_JOINT,
    "dof_frictionloss": mujoco.mjtObj.mjOBJ_JOINT,
    "jnt_stiffness": mujoco.mjtObj.mjOBJ_JOINT,
    "geom_friction": mujoco.mjtObj.mjOBJ_GEOM,
    "actuator_gear": mujoco.mjtObj.mjOBJ_ACTUATOR,
}

# Step of a finite difference, as a share of each parameter's range. With smaller steps the tolerance of MuJoCo's constraint
# solver would dominate
_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class IdentificationReport:
    """
    The result of :func:`identify`.

    :param model: the simulator, with its parameters set to the identified values
    :param parameters: identified values, by name, in MuJoCo's units
    :param initial: values before the identification
    :param at_bound: parameters that ended at a bound: the best value probably lies beyond it
    :param residual_before: root mean square of the one-step prediction error, in standard deviations of each observation
        dimension, with the initial values
    :param residual_after: the same error with the identified values
    :param n_transitions: number of transitions used
    :param n_iterations: iterations of the least squares solver
    """

    model: SimulatorModel
    parameters: dict[str, float]
    initial: dict[str, float]
    at_bound: tuple[str, ...]
    residual_before: float
    residual_after: float
    n_transitions: int
    n_iterations: int


def identify(
    simulator: SimulatorModel | gym.Env | str,
    transitions: Transitions,
    parameters: Mapping[str, tuple[float, float]],
    max_iterations: int = 50,
) -> IdentificationReport:
    """
    Fit named physical parameters so that the simulator predicts logged transitions. Bounded Gauss-Newton
    (``mujoco.minimize.least_squares``), starting from the simulator's current values, minimises the squared one-step error of
    the observed positions and velocities, each dimension in its standard deviations.

    Transitions with a clipped velocity (at ±10) are left out, because the observation does not show the whole state.
    Parameters are set as by ``env.unwrapped.model.body_mass[i] = value``: quantities that MuJoCo derives from them when it
    compiles a model (inertias, inverse weights) are not updated.

    :param simulator: a simulator of one of Gymnasium's MuJoCo tasks, or an environment (or its id) to make a simulator of
    :param transitions: transitions logged in the environment to be identified, actions in [-1, 1]
    :param parameters: (lower, upper) bound by name, for instance ``{"body_mass/torso": (1.0, 10.0)}``. Names are
        ``field/element``; the fields are ``body_mass``, ``dof_damping``, ``dof_armature``, ``dof_frictionloss``,
        ``jnt_stiffness``, ``geom_friction`` (sliding) and ``actuator_gear`` (first component). The friction of a contact is
        the larger of its two geoms'
    :param max_iterations: largest number of iterations of the solver
    :return: the identified values. The simulator's parameters are set to them; the environment is not changed
    :raises ValueError: it is not a MuJoCo task, a name is unknown, bounds are not an interval or exclude the current value, or
        a parameter has no effect on these transitions
    """
    check_arguments(locals(), {"max_iterations": integer(1, 10**6)})
    model = simulator if isinstance(simulator, SimulatorModel) else SimulatorModel(simulator)
    if not isinstance(model.simulator, MujocoSimulator):
        raise ValueError(f"identify() needs one of Gymnasium's MuJoCo tasks, got a {type(model.simulator).__name__}.")
    problem = _Problem(model, model.simulator, transitions, parameters)
    problem.check_effects()
    start = problem.to_unit(problem.initial)
    before = problem.residual(start[:, None])
    solution, trace = mujoco.minimize.least_squares(
        start,
        problem.residual,
        bounds=(np.zeros(len(start)), np.ones(len(start))),
        eps=_DIFFERENCE,
        max_iter=max_iterations,
        verbose=0,
    )
    unit = solution.ravel()
    values = problem.from_unit(unit)
    problem.set_parameters(model.simulator.task.model, values)
    return IdentificationReport(
        model=model,
        parameters=dict(zip(parameters, values.tolist(), strict=True)),
        initial=dict(zip(parameters, problem.initial.tolist(), strict=True)),
        at_bound=tuple(name for name, value in zip(parameters, unit, strict=True) if value in (0.0, 1.0)),
        residual_before=_rms(before),
        residual_after=_rms(problem.residual(solution.reshape(-1, 1))),
        n_transitions=len(problem.states),
        n_iterations=len(trace) - 1,
    )


class _Problem:
    """
    The residual as a function of parameters, each scaled to [0, 1] between its bounds.

    :param model: the model of the environment, which defines the scale of actions
    :param simulator: the simulator, which predicts the transitions
    :param transitions: logged transitions
    :param parameters: (lower, upper) bound by name
    """

    def __init__(
        self,
        model: SimulatorModel,
        simulator: MujocoSimulator,
        transitions: Transitions,
        parameters: Mapping[str, tuple[float, float]],
    ) -> None:
        self.simulator, self.names = simulator, list(parameters)
        task = simulator.task
        self.places = [_place(task.model, name) for name in parameters]
        self.initial = np.array([getattr(task.model, field)[index] for field, index in self.places])
        self.low, self.high = np.array([_checked_bounds(name, *parameters[name]) for name in parameters]).reshape(-1, 2).T
        self._check_initial()

        obs, next_obs = (
            observations.double().cpu().numpy() for observations in (transitions.observations, transitions.next_observations)
        )
        states, self.next_visible = task.state_of(obs), next_obs[:, : task.n_visible]
        complete = (np.abs(task.qvel(states)) < task.velocity_limit).all(axis=1) & np.isfinite(self.next_visible).all(axis=1)
        if complete.sum() < 2:
            raise ValueError(
                f"Only {complete.sum()} of {len(obs)} transitions are finite and without clipped velocities, at least 2 are "
                "needed. Log more."
            )
        self.states, self.next_visible = states[complete], self.next_visible[complete]
        self.action = to_environment(transitions.actions, model.action_space)[complete]
        std = self.next_visible.std(axis=0)
        # A constant dimension carries no information
        self.weight = np.where(std > 1e-8, 1 / np.maximum(std, 1e-8), 0.0)

    def residual(self, unit: np.ndarray) -> np.ndarray:
        """
        :param unit: K points, (P, K)
        :return: scaled one-step errors at each point, from one parallel rollout of all points, (N * V, K)
        """
        candidates = [copy.copy(self.simulator.task.model) for _ in range(unit.shape[1])]
        for candidate, point in zip(candidates, unit.T, strict=True):
            self.set_parameters(candidate, self.from_unit(point))
        n_points = len(candidates)
        models = [candidate for candidate in candidates for _ in range(len(self.states))]
        next_states = self.simulator.advance(np.tile(self.states, (n_points, 1)), np.tile(self.action, (n_points, 1)), models)
        predicted = self.simulator.task.visible(next_states).reshape(n_points, *self.next_visible.shape)
        error = (predicted - self.next_visible) * self.weight
        # Parameters under which the simulation diverges get a large error that is still finite
        return np.nan_to_num(error, nan=1e3, posinf=1e3, neginf=-1e3).clip(-1e3, 1e3).reshape(n_points, -1).T

    def check_effects(self) -> None:
        """
        :raises ValueError: a parameter has the same effect at both of its bounds
        """
        start = self.to_unit(self.initial)
        n = len(start)
        points = np.tile(start[:, None], (1, 2 * n))
        points[np.arange(n), np.arange(n)], points[np.arange(n), n + np.arange(n)] = 0.0, 1.0
        residuals = self.residual(points)
        for index, name in enumerate(self.names):
            if np.abs(residuals[:, n + index] - residuals[:, index]).max() < 1e-6:
                raise ValueError(
                    f"{name!r} has no effect on these {len(self.states)} transitions: predictions are the same at "
                    f"{self.low[index]} and at {self.high[index]}. Leave it out, or log transitions in which it matters (a "
                    "friction needs a contact, and only the larger one of the two geoms counts)."
                )

    def set_parameters(self, model: Any, values: np.ndarray) -> None:
        """
        :param model: the ``MjModel`` to change
        :param values: in MuJoCo's units, (P,)
        """
        for (field, index), value in zip(self.places, values, strict=True):
            getattr(model, field)[index] = value

    def to_unit(self, values: np.ndarray) -> np.ndarray:
        """
        :param values: in MuJoCo's units, (P,)
        :return: positions between the bounds, in [0, 1], (P,)
        """
        return (values - self.low) / (self.high - self.low)

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """
        :param unit: positions between the bounds, in [0, 1], (P,)
        :return: values in MuJoCo's units, (P,)
        """
        return self.low + unit * (self.high - self.low)

    def _check_initial(self) -> None:
        for name, low, value, high in zip(self.names, self.low, self.initial, self.high, strict=True):
            if not low <= value <= high:
                raise ValueError(
                    f"The simulator's current value of {name!r}, {value}, is outside its bounds ({low}, {high}). Widen them."
                )


def _accepted_names(model: Any) -> dict[str, tuple[str, Any]]:
    """
    :param model: an ``MjModel``
    :return: field and index of each parameter, by its name
    """
    counts = {"body": model.nbody, "dof": model.njnt, "jnt": model.njnt, "geom": model.ngeom, "actuator": model.nu}
    accepted: dict[str, tuple[str, Any]] = {}
    single = (int(mujoco.mjtJoint.mjJNT_SLIDE), int(mujoco.mjtJoint.mjJNT_HINGE))
    for field, kind in _FIELDS.items():
        prefix = field.split("_")[0]
        for element in range(counts[prefix]):
            name = mujoco.mj_id2name(model, int(kind), element)
            # A free or ball joint has several degrees of freedom under one name
            if not name or (prefix == "dof" and model.jnt_type[element] not in single):
                continue
            index: Any = int(model.jnt_dofadr[element]) if prefix == "dof" else element
            accepted[f"{field}/{name}"] = (field, (index, 0) if getattr(model, field).ndim == 2 else index)
    return accepted


def _place(model: Any, name: str) -> tuple[str, Any]:
    """
    :param model: an ``MjModel``
    :param name: ``field/element``
    :return: field and index
    :raises ValueError: there is no such parameter
    """
    accepted = _accepted_names(model)
    if name not in accepted:
        raise ValueError(f"Unknown parameter {name!r}, expected one of {sorted(accepted)}.")
    return accepted[name]


def _checked_bounds(name: str, low: float, high: float) -> tuple[float, float]:
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"The bounds of {name!r} must be two finite numbers, the lower one first, got ({low}, {high}).")
    return float(low), float(high)


def _rms(residual: np.ndarray) -> float:
    return float(np.sqrt(np.mean(residual**2)))
