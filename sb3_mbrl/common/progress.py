"""Shows the progress of long work, in a bar or by a line every half minute."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from stable_baselines3.common.callbacks import ProgressBarCallback

HALF_A_MINUTE = 30.0


class ModelProgressBarCallback(ProgressBarCallback):
    """
    SB3's progress bar, which also says what a model-based algorithm does between two environment steps. A fit of the model
    takes seconds to minutes, during which SB3's own bar looks frozen.
    """

    def _on_training_start(self) -> None:
        self.pbar = _bar(self.locals["total_timesteps"] - self.model.num_timesteps)

    def describe(self, text: str) -> None:
        """
        :param text: what is being done, e.g. ``"fitting model, epoch 12"``; empty while the environment is stepped
        """
        if hasattr(self, "pbar"):
            self.pbar.set_description(text)


class EveryHalfMinute:
    """Prints a text if half a minute has passed since the last text, or since this object was made."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        """
        :param text: what is being done
        """
        if time.monotonic() - self._last >= HALF_A_MINUTE:
            print(text[:1].upper() + text[1:])
            self._last = time.monotonic()


class Show(Protocol):
    """A function that shows how far the work is."""

    def __call__(self, text: str, n: int = 1) -> None:
        """
        :param text: what is being done
        :param n: steps done since the last call
        """


@contextmanager
def showing(verbose: int, progress_bar: bool, total: int | None = None) -> Iterator[Show]:
    """
    Show the progress of work that no callback watches.

    :param verbose: from 1 on, without a progress bar, a line is printed every half minute
    :param progress_bar: whether to show a progress bar
    :param total: steps until the work is done; None: not known
    :return: a context with a function to call after each step
    :raises ImportError: tqdm or rich, which draw the progress bar, is not installed
    """
    if not progress_bar:
        say = EveryHalfMinute() if verbose >= 1 else None
        yield lambda text, n=1: None if say is None else say(text)
        return
    ProgressBarCallback()  # raises an error that says which package to install
    bar = _bar(total)

    def show(text: str, n: int = 1) -> None:
        bar.set_description(text)
        bar.update(n)

    try:
        yield show
    finally:
        bar.close()


def remaining_time(elapsed: float | None, done: float, total: float | None) -> str:
    """
    :param elapsed: seconds so far
    :param done: steps done in them
    :param total: steps to do
    :return: the time for the remaining steps, at the average pace since the beginning. It grows while no step is made, as
        during a fit, when rich's own estimate, from the pace of the latest steps, would stand still
    """
    if not elapsed or not done or total is None:
        return "-:--:--"
    minutes, seconds = divmod(math.ceil(elapsed * (total - done) / done), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:d}:{minutes:02d}:{seconds:02d}"


def _bar(total: int | None) -> Any:
    """A progress bar of tqdm that rich draws, like SB3's. Both packages are optional."""
    from rich.progress import BarColumn, ProgressColumn, Task, TimeElapsedColumn
    from rich.text import Text
    from tqdm.rich import FractionColumn, RateColumn, tqdm

    class Remaining(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(remaining_time(task.elapsed, task.completed, task.total), style="progress.remaining")

    description = "[progress.description]{task.description}"
    if total is None:
        return tqdm(progress=(description, BarColumn(bar_width=None), TimeElapsedColumn()))
    columns = (
        description + "[progress.percentage]{task.percentage:>4.0f}%",
        BarColumn(bar_width=None),
        FractionColumn(),
        *("[", TimeElapsedColumn(), "<", Remaining(), ",", RateColumn(unit="it"), "]"),
    )
    return tqdm(total=total, progress=columns)
