"""Rules for arguments. Every number or boolean in every public constructor either works or is refused by name."""

import inspect
import math
import typing
from collections.abc import Sequence
from copy import deepcopy
from types import UnionType

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import PPO, SAC, TD3

from sb3_mbrl import (
    MBPO,
    MBTD3,
    MBTQC,
    PETS,
    TDMPC,
    TDMPC2,
    Dyna,
    DynaQ,
    LearnedModelEnv,
    LearnedModelVecEnv,
    MBCrossQ,
    MPCPolicy,
)
from sb3_mbrl.callbacks import ExactCheckpointCallback, ModelDiagnosticsCallback
from sb3_mbrl.common.arguments import BOOLEAN, OFF_POLICY, SCHEDULE, SEED, Rule, check_arguments, integer, list_of, number
from sb3_mbrl.common.sequences import SequenceReplayBuffer
from sb3_mbrl.dynamics import AdaptiveRolloutLength, LearnedTermination, ProbabilisticEnsemble, SimulatorModel
from sb3_mbrl.dynamics.fitting import fit
from sb3_mbrl.envs import ImaginationRules, collect
from sb3_mbrl.planning import CATEGORICAL_PLANNERS, PLANNERS, ModelObjective
from sb3_mbrl.tasks.identification import identify

NASTY = [
    *(math.nan, math.inf, -math.inf, -1, 0, 1.0, 2.5, 1e308),
    *(10**15, 2**70, 10**400, True, False, None, "3", "", b"1", 1j),
    *([], [1, 2], {}, object(), np.float32("nan"), np.int64(-1), np.int64(2), np.float32(0.5)),
    *(np.array(2), np.array([1, 2]), th.tensor(2), th.tensor([0.5, 0.5])),
]


class Line(gym.Env):
    """An environment in which the action moves a position."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.5, 0.5, 2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        self.state = np.clip(self.state + 0.1 * action, -1, 1).astype(np.float32)
        return self.state, float(-abs(self.state[0])), False, False, {}


def line():
    return gym.wrappers.TimeLimit(Line(), 10)


OBS = np.zeros(2, dtype=np.float32)
ENSEMBLE = {"ensemble_size": 2, "n_elites": 2, "net_arch": [4]}
FIT = {"max_epochs": 1, "batch_size": 64}
OFF_POLICY_TINY = {"policy": "MlpPolicy", "buffer_size": 100, "policy_kwargs": {"net_arch": [4]}, "dynamics_kwargs": ENSEMBLE}
PLANNER = {"horizon": 3, "n_iterations": 1}
SAMPLES = {"population_size": 4, "n_elites": 2}
FEW_SAMPLES = {"gradient": {"n_starts": 2}, "random_shooting": {"population_size": 4}}
LATENT = {"policy": "MlpPolicy", "buffer_size": 100, "planner_kwargs": {**SAMPLES, "n_iterations": 1}, "n_proposals": 1}
TERMINATION_ARGUMENTS = {"observation_dim": 2, "action_dim": 1, "net_arch": [4]}


def make_ensemble(**arguments):
    return ProbabilisticEnsemble(Line.observation_space, Line.action_space, device="cpu", **{**ENSEMBLE, **arguments})


def fitted():
    model = make_ensemble()
    model.holdout_mse.zero_()
    return model


def acts(policy):
    assert np.isfinite(policy.predict(OBS)[0]).all()


def steps(env):
    env.reset()
    observation = env.step(np.zeros((getattr(env, "num_envs", 1), 1), dtype=np.float32))[0]
    assert np.isfinite(observation).all()


def predicts(model):
    model.step(th.zeros(3, 2), th.zeros(3, 1), th.Generator())


def plans(planner):
    n_actions = 2 if planner.categorical else 1
    plan = planner.plan(lambda actions: actions.sum(dim=(2, 3)), planner.initial_state(1, n_actions), th.Generator())
    assert plan.actions.isfinite().all()


def exists(_):
    """Does nothing, because constructing the object is enough."""


def starts_from(cls, **arguments):
    return cls(**{**arguments, "start_states": np.zeros((1, 2), np.float32)})


TRANSITIONS = collect(line(), 40, seed=0)
FITTED = fitted()
CONSTRUCTORS = {
    **{cls.__name__: (cls, (cls,), {**OFF_POLICY_TINY, "env": line}, acts) for cls in (MBPO, MBTQC, MBCrossQ, MBTD3)},
    "TDMPC": (TDMPC, (TDMPC,), {**LATENT, "env": line, "model_size": {"encoder": 8, "mlp": 8, "latent": 8}}, acts),
    "TDMPC2": (
        TDMPC2,
        (TDMPC2,),
        {
            **LATENT,
            "env": line,
            "model_size": {"encoder": 8, "mlp": 8, "latent": 8, "encoder_layers": 1, "n_critics": 2},
        },
        acts,
    ),
    "PETS": (
        PETS,
        (PETS,),
        {
            "policy": "MPCPolicy",
            "env": line,
            "buffer_size": 100,
            "horizon": 3,
            "planner_kwargs": {**SAMPLES, "n_iterations": 1},
            "dynamics_kwargs": ENSEMBLE,
        },
        exists,
    ),
    "Dyna": (
        Dyna,
        (Dyna,),
        {
            "env": line,
            "buffer_size": 100,
            "algorithm_class": PPO,
            "algorithm_kwargs": {"n_steps": 4, "batch_size": 4, "policy_kwargs": {"net_arch": [4]}},
            "n_imagined_envs": 2,
            "dynamics_kwargs": ENSEMBLE,
        },
        acts,
    ),
    "DynaQ": (
        DynaQ,
        (DynaQ,),
        {"policy": "TabularPolicy", "env": lambda: gym.make("FrozenLake-v1")},
        lambda model: model.predict(0),
    ),
    "MPCPolicy": (
        MPCPolicy,
        (MPCPolicy,),
        {"model": FITTED, "planner_kwargs": {**SAMPLES, "n_iterations": 1}, "horizon": 3},
        acts,
    ),
    "ModelObjective": (
        ModelObjective,
        (ModelObjective,),
        {"model": FITTED},
        lambda objective: objective.score_states(th.zeros(1, 2)),
    ),
    **{
        f"{kind}{name}": (cls, (cls,), {**PLANNER, **FEW_SAMPLES.get(name, SAMPLES)}, plans)
        for kind, planners in (("", PLANNERS), ("categorical ", CATEGORICAL_PLANNERS))
        for name, cls in planners.items()
    },
    "ProbabilisticEnsemble": (make_ensemble, (ProbabilisticEnsemble,), {}, predicts),
    "LearnedTermination": (LearnedTermination, (LearnedTermination,), TERMINATION_ARGUMENTS, exists),
    "AdaptiveRolloutLength": (AdaptiveRolloutLength, (AdaptiveRolloutLength,), {}, exists),
    "ImaginationRules": (ImaginationRules, (ImaginationRules,), {"max_episode_steps": 3}, exists),
    "LearnedModelEnv": (
        lambda **arguments: starts_from(LearnedModelEnv, **arguments),
        (LearnedModelEnv, ImaginationRules),
        {"env": line, "dynamics": FITTED},
        steps,
    ),
    "LearnedModelVecEnv": (
        lambda **arguments: starts_from(LearnedModelVecEnv, **arguments),
        (LearnedModelVecEnv, ImaginationRules),
        {"dynamics": FITTED, "n_envs": 2, "max_episode_steps": 3},
        steps,
    ),
    "from_env": (
        LearnedModelVecEnv.from_env,
        (LearnedModelVecEnv.from_env,),
        {"env": line, "n_envs": 2, "n_steps": 40, "dynamics_kwargs": ENSEMBLE, "fit_kwargs": FIT},
        steps,
    ),
    "from_dataset": (
        LearnedModelVecEnv.from_dataset,
        (LearnedModelVecEnv.from_dataset,),
        {"dataset": TRANSITIONS, "env": line, "n_envs": 2, "dynamics_kwargs": ENSEMBLE, "fit_kwargs": FIT},
        steps,
    ),
    "collect": (collect, (collect,), {"env": line, "n_steps": 4}, exists),
    "fit": (
        lambda **arguments: make_ensemble().fit(TRANSITIONS[0], th.Generator(), **arguments),
        (fit,),
        FIT,
        exists,
    ),
    "SequenceReplayBuffer": (
        SequenceReplayBuffer,
        (SequenceReplayBuffer,),
        {
            "buffer_size": 20,
            "observation_space": Line.observation_space,
            "action_space": Line.action_space,
            "horizon": 3,
        },
        exists,
    ),
    "ModelDiagnosticsCallback": (ModelDiagnosticsCallback, (ModelDiagnosticsCallback,), {}, exists),
    "ExactCheckpointCallback": (
        ExactCheckpointCallback,
        (ExactCheckpointCallback,),
        {"save_freq": 1, "folder": "nowhere"},
        exists,
    ),
    "SimulatorModel": (SimulatorModel, (SimulatorModel,), {"env": lambda: gym.make("Pendulum-v1")}, exists),
}
"""For each name: the callable, functions with its arguments in their signatures, fixed arguments, a trial of the result."""


def holds_numbers(annotation):
    """Whether the annotation is int, float or bool, or a union or sequence of them."""
    if typing.get_origin(annotation) in (typing.Union, UnionType, Sequence):
        return any(holds_numbers(each) for each in typing.get_args(annotation))
    return annotation in (int, float, bool)


def numbers_of(functions):
    parameters = {name: each for function in functions for name, each in inspect.signature(function).parameters.items()}
    return [name for name, each in parameters.items() if holds_numbers(each.annotation) and not name.startswith("_")]


def given(arguments):
    """Copies the arguments, since SB3 writes to some, and calls functions among them, which make environments."""
    return {key: each() if inspect.isfunction(each) else deepcopy(each) for key, each in arguments.items()}


def complaint(make, works, arguments, name, value):
    """Describes what is wrong with the reaction to a value; empty if it is right."""
    try:
        works(make(**{**given(arguments), name: value}))
    except (ValueError, TypeError) as error:
        return "" if name in str(error) else f"{name}={value!r}: {error!r}"
    except Exception as error:
        return f"{name}={value!r}: {error!r}"
    return ""


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_nasty_values_are_refused_by_name_or_work(constructor):
    make, functions, arguments, works = CONSTRUCTORS[constructor]
    works(make(**given(arguments)))
    names = numbers_of(functions)
    assert len(names) > 0
    complaints = [complaint(make, works, arguments, name, value) for name in names for value in NASTY]
    assert list(filter(None, complaints)) == []


def test_identify_checks_its_iterations():
    for iterations in (0, 2.5, math.nan, True):
        with pytest.raises(ValueError, match="max_iterations must be an integer from 1"):
            identify("InvertedPendulum-v5", TRANSITIONS[0], {}, max_iterations=iterations)


def test_arguments_replaced_by_load_are_checked_too(tmp_path):
    make, _, arguments, _ = CONSTRUCTORS["MBPO"]
    make(**given(arguments)).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"gamma must be a number in \[0, 1\], got 2.5"):
        MBPO.load(tmp_path / "model.zip", gamma=2.5)


def test_what_stable_baselines3_accepts_is_accepted():
    make, _, arguments, works = CONSTRUCTORS["MBPO"]
    given_alike = {
        "learning_rate": np.float32(1e-3),
        "learning_starts": 1e4,
        "train_freq": (2, "episode"),
        "ent_coef": "auto_0.1",
        "target_entropy": -2,
        "seed": np.int64(3),
        "verbose": False,
        "tau": th.tensor(0.005),
        "buffer_size": np.array(100),
    }
    works(make(**{**given(arguments), **given_alike}))
    works(make(**{**given(arguments), "learning_rate": lambda progress: 1e-3 * progress, "ent_coef": "0.1"}))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("train_freq", (1, "epoch"), 'train_freq must be an integer of at least 1, or .*"step".*"episode"'),
        ("buffer_size", 1e6, "buffer_size must be an integer from 1 to 1_000_000_000, got 1000000.0. Write 1000000."),
        ("rollouts_per_step", 10**7, "at most 1_000_000_000 are accepted"),
    ],
)
def test_refusals_of_algorithms_say_what_is_accepted(name, value, message):
    make, _, arguments, _ = CONSTRUCTORS["MBPO"]
    with pytest.raises(ValueError, match=message):
        make(**{**given(arguments), name: value})


@pytest.mark.parametrize(
    "rule, accepted, refused",
    [
        (integer(0), [0, 7, np.int64(3), 10**15], [-1, 1.0, 2.5, "3", None, True, math.nan, 10**16, [1], 1j]),
        (integer(2, 5), [2, 5], [1, 6]),
        (integer(1, whole_floats=True), [1.0, 1e4, np.float32(2)], [0.0, 1.5, math.inf, math.nan, True]),
        (
            number(),
            [-1e30, 0, 2.5, np.float32(0.5), np.int64(2)],
            [math.nan, math.inf, -math.inf, 1e308, 2**70, "1", True, [1]],
        ),
        (number(0), [0, 0.0, 1e38], [-1e-9, -1, None]),
        (number(0, above=True), [1e-9, 1], [0, 0.0, -1]),
        (number(0, 1), [0, 0.5, 1], [-0.1, 1.1, math.nan]),
        (number(0, 1, below=True), [0, 0.99], [1, 1.0]),
        (number(0, 1) | None, [None, 0.5], [2, "None"]),
        (number(0) | SCHEDULE, [1.0, abs], [-1, "lin_1e-3"]),
        (list_of(integer(1, 9), 2, 3), [[1, 9], (1, 2, 3), np.array([1, 2])], [[1], [1, 2, 3, 4], [0, 1], "12", np.eye(2), 5]),
        (BOOLEAN, [True, np.False_], [0, 1, "True", None]),
        (SEED, [None, 0, 2**32 - 1], [-1, 2**32, 0.5, True]),
        (OFF_POLICY["train_freq"], [3, (1, "step"), (2, "episode")], [0, (0, "step"), (1, "epoch"), (1,), [1, "step"]]),
        (OFF_POLICY["ent_coef"], [0.1, "auto", "auto_0.1", "0.1"], [-1, "auto_-1", "auto_0", "automatic", "-1", None]),
    ],
    ids=lambda value: value.words if isinstance(value, Rule) else "",
)
def test_rules(rule, accepted, refused):
    assert [value for value in accepted if not rule.accepts(value)] == []
    assert [value for value in refused if rule.accepts(value)] == []


def test_rules_say_the_range_and_what_was_given():
    rules = {"share": number(0, 1, above=True, below=True) | None, "sizes": list_of(integer(1, 5), 2, 2), "flag": BOOLEAN}
    check_arguments({"share": None, "sizes": (1, np.int64(5)), "flag": np.True_, "another": "thing"}, rules)
    for name, value, words in [
        ("share", 1, r"share must be a number in \(0, 1\), or None, got 1\."),
        ("share", 2**80, r"got 1208925819614629174706176\."),
        ("sizes", [1], r"sizes must be a list of 2 elements, each an integer from 1 to 5, got \[1\]\."),
        ("sizes", [1, True], "sizes must be"),
        ("flag", 1, r"flag must be True or False, got 1\."),
        ("flag", "x" * 1000, r"got 'x{199}\.\.\. \(str\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            check_arguments({name: value}, rules)


def test_every_number_that_an_algorithm_inherits_has_a_rule():
    assert set(numbers_of((SAC, TD3, TQC, CrossQ))) <= {*OFF_POLICY, "tensorboard_log"}


def test_truncated_critics_must_keep_a_quantile():
    make, _, arguments, _ = CONSTRUCTORS["MBTQC"]
    make(**given(arguments), top_quantiles_to_drop_per_net=24)
    with pytest.raises(ValueError, match="top_quantiles_to_drop_per_net=25 leaves no quantile of the n_quantiles=25"):
        make(**given(arguments), top_quantiles_to_drop_per_net=25)
