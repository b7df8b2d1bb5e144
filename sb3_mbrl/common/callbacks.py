"""Callbacks shared by the algorithms."""

from stable_baselines3.common.callbacks import ProgressBarCallback


class ModelProgressBarCallback(ProgressBarCallback):
    """
    SB3's progress bar, which also says what a model-based algorithm does between two environment steps: a fit of
    the model takes seconds to minutes, during which SB3's bar looks frozen.
    """

    def describe(self, text: str) -> None:
        """
        :param text: what is going on now, e.g. ``"fitting model, epoch 12"``; empty while stepping the environment
        """
        if hasattr(self, "pbar"):
            self.pbar.set_description(text)
