"""A mixin for algorithms that plan their actions."""

import io
import pathlib
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv

from sb3_mbrl.algorithms.base import MakesItsPolicy
from sb3_mbrl.algorithms.checkpoints import restore_generator
from sb3_mbrl.mpc import PlanningPolicy

SelfActsByPlanning = TypeVar("SelfActsByPlanning", bound="ActsByPlanning")


class ActsByPlanning(MakesItsPolicy):
    """
    Mixin: list it before an off-policy SB3 class. Its policy is a :class:`PlanningPolicy`, whose plans are carried from one
    step of the training environments to the next.
    """

    policy: PlanningPolicy
    _planner_state: tuple[np.ndarray, ...] | None = None

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        if seed is not None and hasattr(self, "policy"):  # SB3 sets the seeds before it makes the policy
            self.policy.generator.manual_seed(seed)

    def _planned_actions(self) -> np.ndarray:
        """
        :return: actions for the training environments, in their scale, (n_envs, \\*action_space.shape)
        """
        if np.all(self._last_episode_starts):  # type: ignore[arg-type]  # these may be other environments
            self._planner_state = None
        assert self._last_obs is not None and not isinstance(self._last_obs, tuple)
        with self._timed("planning"):
            actions, self._planner_state = self.policy.predict(
                self._last_obs, self._planner_state, self._last_episode_starts, deterministic=False
            )
        self._log_plan()
        return actions

    def _log_plan(self) -> None:
        plan = self.policy.last_plan
        if plan is not None:
            self.logger.record_mean("planner/value", plan.value.mean().item())
            self.logger.record_mean("planner/std", plan.std[:, 0].mean().item())
            self.logger.record_mean("planner/n_iterations", plan.n_iterations)

    @classmethod
    def load(
        cls: type[SelfActsByPlanning],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfActsByPlanning:
        if kwargs.keys() & {"planner", "horizon", "planner_kwargs"}:
            kwargs["_planner_state"] = None  # another planner made that plan
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def _checkpoint_extras(self) -> dict[str, Any]:
        return {**super()._checkpoint_extras(), "planner_generator": self.policy.generator.get_state()}

    def _restore_checkpoint_extras(self, extras: dict[str, Any]) -> None:
        super()._restore_checkpoint_extras(extras)
        restore_generator(self.policy.generator, extras["planner_generator"])
