"""A callback that saves checkpoints."""

import pathlib

from stable_baselines3.common.callbacks import BaseCallback

from sb3_mbrl.algorithms.checkpoints import ExactCheckpoints
from sb3_mbrl.common.arguments import OFF_POLICY, check_arguments, integer


class ExactCheckpointCallback(BaseCallback):
    """
    Saves checkpoints from which the run resumes bit for bit. Each replaces the previous one. After a run of ``n`` steps has
    crashed::

        model = MBPO.load_checkpoint("folder", env=env)
        model.learn(n - model.num_timesteps, callback, reset_num_timesteps=False)

    :param save_freq: minimum number of environment steps between two checkpoints, since a checkpoint waits until the rollout
        and its updates are complete
    :param folder: the folder of the checkpoints, as :meth:`~sb3_mbrl.MBPO.save_checkpoint` takes it
    :param verbose: Verbosity level: 0 for no output, 2 for a line per checkpoint
    """

    model: ExactCheckpoints

    def __init__(self, save_freq: int, folder: str | pathlib.Path, verbose: int = 0):
        check_arguments(locals(), {"save_freq": integer(1), "verbose": OFF_POLICY["verbose"]})
        super().__init__(verbose)
        self.save_freq = save_freq
        self.folder = folder
        self._last_save = 0

    def _init_callback(self) -> None:
        if not isinstance(self.model, ExactCheckpoints):
            raise ValueError(
                f"{type(self.model).__name__} has no save_checkpoint; use stable_baselines3.common.callbacks."
                "CheckpointCallback."
            )

    def _on_training_start(self) -> None:
        self._last_save = self.model.num_timesteps

    def _on_step(self) -> bool:
        if self.num_timesteps - self._last_save >= self.save_freq:
            # The algorithm saves later, because the transition of this step is stored after the callbacks
            self.model._checkpoint_due = self.folder
            self._last_save = self.num_timesteps
            if self.verbose >= 2:
                print(f"Checkpoint at step {self.num_timesteps} in {self.folder}")
        return True

    def _on_training_end(self) -> None:
        if self.model._checkpoint_due is not None:
            self.model.save_checkpoint(self.model._checkpoint_due)
