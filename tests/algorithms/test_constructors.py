"""Constructors take SB3's arguments in SB3's order, and their own as keywords."""

import inspect

import gymnasium as gym
import pytest
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import A2C, SAC, TD3

from sb3_mbrl import MBPO, MBTD3, MBTQC, PETS, TDMPC, TDMPC2, Dyna, DynaQ, MBCrossQ
from sb3_mbrl.mbpo import MBPOMixin

LIKE = {MBPO: SAC, MBTQC: TQC, MBCrossQ: CrossQ, MBTD3: TD3, PETS: SAC, TDMPC: SAC, TDMPC2: SAC, Dyna: SAC, DynaQ: A2C}
KEYWORD = inspect.Parameter.KEYWORD_ONLY


def parameters(cls):
    """Arguments without ``**unknown``, which Dyna only has for an error message."""
    return {name: each for name, each in inspect.signature(cls).parameters.items() if name != "unknown"}


@pytest.mark.parametrize("cls", LIKE)
def test_shared_arguments_have_the_order_of_stable_baselines3(cls):
    shared = [name for name in parameters(cls) if name in parameters(LIKE[cls]) and name != "_init_setup_model"]
    assert shared == [name for name in parameters(LIKE[cls]) if name in shared]
    own = [name for name in parameters(cls) if name not in shared and not name.startswith("algorithm_")]
    assert all(parameters(cls)[name].kind is KEYWORD for name in own)
    assert list(parameters(cls))[-len(own) :] == own


@pytest.mark.parametrize("cls", LIKE)
def test_a_positional_argument_means_the_same_as_in_sb3(cls):
    positional = [name for name, each in parameters(cls).items() if each.kind is not KEYWORD and name != "algorithm_class"]
    assert positional == list(parameters(LIKE[cls]))[: len(positional)]


def test_a_call_written_for_sac_fails_rather_than_meaning_something_else():
    for cls, policy in ((PETS, "MPCPolicy"), (DynaQ, "TabularPolicy")):
        with pytest.raises(TypeError, match="positional arguments"):
            cls(policy, "Pendulum-v1", 3e-4, 1_000, 100, 256, 0.005)


def test_the_signature_of_mbpo_equals_the_computed_one():
    """MBPO writes its signature out, for type checkers and editors; it may have arguments of its own."""

    class Computed(MBPOMixin, SAC): ...

    computed = parameters(Computed)
    assert {name: each for name, each in parameters(MBPO).items() if name in computed} == computed


@pytest.mark.parametrize("cls", [MBTQC, MBCrossQ, MBTD3])
def test_the_signature_over_another_algorithm_is_complete(cls):
    shown = parameters(cls)
    of_the_mixin = {name for name, each in inspect.signature(MBPOMixin.__init__).parameters.items() if each.kind is KEYWORD}
    assert shown.keys() == parameters(LIKE[cls]).keys() | of_the_mixin
    assert shown["learning_starts"].default == 1_000  # ours
    assert shown["gradient_steps"].default == cls.own_defaults["gradient_steps"]
    assert shown["buffer_size"].default == parameters(LIKE[cls])["buffer_size"].default  # theirs
    assert shown["real_ratio"].kind is KEYWORD


def test_the_signature_of_a_subclass_with_its_own_constructor():
    class Mine(MBPO):
        def __init__(self, name, *args, **kwargs): ...

    class Theirs(MBTQC):
        def __init__(self, env, flag=False): ...

    assert list(parameters(Mine)) == ["name", *parameters(MBPO)]
    assert list(parameters(Theirs)) == ["env", "flag"]


def test_the_signature_shows_the_default_that_a_subclass_names():
    class Patient(MBPOMixin, SAC):
        def __init__(self, *args, learning_starts=50, **kwargs):
            super().__init__(*args, learning_starts=learning_starts, **kwargs)

    assert parameters(Patient)["learning_starts"].default == 50
    assert Patient("MlpPolicy", "Pendulum-v1").learning_starts == 50


def test_own_defaults_without_effect_are_refused():
    with pytest.raises(TypeError, match=r"no effect on \['learning_starts'\]"):
        type("Mine", (MBPO,), {"own_defaults": {"learning_starts": 50}})


@pytest.mark.parametrize("cls", LIKE)
def test_a_misspelled_argument_is_named(cls):
    env = "FrozenLake-v1" if cls is DynaQ else gym.make("Pendulum-v1")
    with pytest.raises(TypeError, match=rf"{cls.__name__}\b.*'learning_rat'"):
        cls(policy=next(iter(cls.policy_aliases or ["MlpPolicy"])), env=env, learning_rat=1e-3)
