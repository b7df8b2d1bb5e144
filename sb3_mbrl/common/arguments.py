"""Rules for arguments, declared in one table per class, and the one function that checks them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th

FLOAT32_MAX = float(np.finfo(np.float32).max)
"""Every number ends up in a float32 tensor, where a larger one would be infinite."""

MOST_STEPS = 10**15
"""Upper limit for steps that are only counted: no run makes so many, and sums and products of them stay 64-bit integers."""


@dataclass(frozen=True)
class Rule:
    """
    What an argument may be. ``rule | None`` also accepts None; ``rule | other`` accepts what one of the two accepts.

    :param accepts: returns whether a value is accepted, and never raises an error
    :param words: what is accepted, in words that complete "it must be ..."
    """

    accepts: Callable[[Any], bool]
    words: str

    def __or__(self, other: "Rule | None") -> "Rule":
        alternative = Rule(lambda value: value is None, "None") if other is None else other
        return Rule(lambda value: self.accepts(value) or alternative.accepts(value), f"{self.words}, or {alternative.words}")


def integer(lowest: int, highest: int = MOST_STEPS, whole_floats: bool = False) -> Rule:
    """
    :param lowest: smallest value accepted
    :param highest: largest value accepted
    :param whole_floats: accept whole floats such as 1e4 too, as SB3 does where it only compares a number with others
    :return: the rule; it does not take True and False for integers
    """

    def accepts(value: Any) -> bool:
        plain = value.item() if isinstance(value, np.generic) else value
        if whole_floats and isinstance(plain, float) and plain.is_integer():
            plain = int(plain)
        return isinstance(plain, int) and not isinstance(plain, bool) and lowest <= plain <= highest

    bounds = f"of at least {lowest:_}" if highest == MOST_STEPS else f"from {lowest:_} to {highest:_}"
    return Rule(accepts, f"an integer {bounds}")


def number(lowest: float = -FLOAT32_MAX, highest: float = FLOAT32_MAX, above: bool = False, below: bool = False) -> Rule:
    """
    :param lowest: smallest value accepted
    :param highest: largest value accepted
    :param above: refuse ``lowest`` itself
    :param below: refuse ``highest`` itself
    :return: the rule; it refuses NaN and infinity whatever the range, and does not take True and False for numbers
    """

    def accepts(value: Any) -> bool:
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(plain, (int, float)) or isinstance(plain, bool) or not lowest <= plain <= highest:
            return False
        if isinstance(plain, int) and abs(plain) >= 2**63:  # PyTorch cannot convert such an integer
            return False
        return not (above and plain == lowest) and not (below and plain == highest)

    if lowest == -FLOAT32_MAX:
        return Rule(accepts, "a finite number")
    if highest == FLOAT32_MAX:
        return Rule(accepts, f"a number {'above' if above else 'of at least'} {lowest}")
    return Rule(accepts, f"a number in {'(' if above else '['}{lowest}, {highest}{')' if below else ']'}")


def list_of(rule: Rule, fewest: int = 1, most: int = 100) -> Rule:
    """
    :param rule: the rule for each element
    :param fewest: smallest number of elements
    :param most: largest number of elements
    :return: the rule for a list, tuple or one-dimensional array
    """

    def accepts(value: Any) -> bool:
        if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)) or getattr(value, "ndim", 1) != 1:
            return False
        return fewest <= len(value) <= most and all(rule.accepts(each) for each in value)

    length = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return Rule(accepts, f"a list of {length} elements, each {rule.words}")


def one_of(*names: str) -> Rule:
    """
    :param names: texts that are accepted
    :return: the rule
    """
    return Rule(lambda value: isinstance(value, str) and value in names, f"one of {names}")


BOOLEAN = Rule(lambda value: isinstance(value, (bool, np.bool_)), "True or False")
SCHEDULE = Rule(callable, "a function of the remaining progress, from 1 to 0")
NET_ARCH = list_of(integer(1, 100_000))
"""The number of units of each hidden layer."""
SHARE = number(0, 1)
SEED = integer(0, 2**32 - 1) | None
"""The seeds that NumPy accepts."""
DISCOUNT = number(0, 1)


def _is_train_freq(value: Any) -> bool:
    if not isinstance(value, tuple):
        return integer(1).accepts(value)
    unit = getattr(value[1], "value", value[1]) if len(value) == 2 else None
    return isinstance(unit, str) and unit in ("step", "episode") and integer(1).accepts(value[0])


def _is_coefficient_in_words(value: Any) -> bool:
    """Whether it is a text that SB3 understands, such as ``"auto"``, ``"auto_0.1"`` or ``"0.1"``."""
    if not isinstance(value, str):
        return False
    start, _, initial = value.partition("_")
    try:
        return value == "auto" or number(0, above=start == "auto").accepts(float(initial if start == "auto" else value))
    except ValueError:
        return False


OFF_POLICY: dict[str, Rule] = {
    "learning_rate": number(0) | SCHEDULE,
    "buffer_size": integer(1, 10**9),
    "learning_starts": integer(0, whole_floats=True),
    "batch_size": integer(1, 10**7),
    "tau": SHARE,
    "gamma": DISCOUNT,
    "train_freq": Rule(_is_train_freq, 'an integer of at least 1, or such an integer and a unit: (1, "step"), (1, "episode")'),
    "gradient_steps": integer(-1, 10**7),
    "n_steps": integer(1, 10**6),
    "optimize_memory_usage": BOOLEAN,
    "ent_coef": number(0) | Rule(_is_coefficient_in_words, '"auto", or "auto_0.1" to begin at 0.1'),
    "target_entropy": number() | Rule(lambda value: isinstance(value, str) and value == "auto", '"auto"'),
    "target_update_interval": integer(1, whole_floats=True),
    "policy_delay": integer(1, whole_floats=True),
    "target_policy_noise": number(0),
    "target_noise_clip": number(0),
    "top_quantiles_to_drop_per_net": integer(0, 10**6),
    "use_sde": BOOLEAN,
    "sde_sample_freq": integer(-1),
    "use_sde_at_warmup": BOOLEAN,
    "stats_window_size": integer(1, 10**9),
    "verbose": integer(0) | BOOLEAN,
    "seed": SEED,
}
"""
Rules for the arguments of the off-policy algorithms of Stable-Baselines3 and sb3-contrib, by their names there. Whole floats
such as 1e4 are accepted where SB3 only compares them, and refused where SB3 would fail on them later, allocating or looping.
"""


def check_arguments(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """
    :param values: the arguments by name: ``locals()`` of a constructor, or ``vars()`` of an object that stores each under its
        own name; further entries are ignored
    :param rules: the rules by name of the argument; a rule whose argument is not among ``values`` is skipped
    :raises ValueError: a value is not accepted; the message has the name, what is accepted and what was given
    """
    for name, rule in rules.items():
        if name in values and not rule.accepts(values[name]):
            raise ValueError(f"{name} must be {rule.words}, got {_shown(values[name])}.{_hint(values[name], rule)}")


def plain_arguments(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """
    :param values: the arguments by name, as for :func:`check_arguments`
    :param rules: the rules by name of the argument
    :return: the arguments that have a rule. Numbers of NumPy, and arrays and tensors without dimensions, have become Python's
        numbers, because Stable-Baselines3 does not accept them everywhere
    :raises ValueError: a value is not accepted
    """
    plain = {name: _plain(values[name]) for name in rules if name in values}
    check_arguments(plain, rules)
    return plain


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (np.generic, np.ndarray, th.Tensor)) and value.ndim == 0 else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({type(value).__name__})"


def _hint(value: Any, rule: Rule) -> str:
    plain = _plain(value)
    if not isinstance(plain, float):
        return ""
    if FLOAT32_MAX < abs(plain) < np.inf:
        return " It is infinite in float32."
    return f" Write {int(plain)}." if plain.is_integer() and rule.accepts(int(plain)) else ""
