"""Checks of environments, and what can be read from them. The type of an environment is checked before its spaces."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, unwrap_vec_normalize
from stable_baselines3.common.vec_env.patch_gym import _patch_env

MAKE_VEC_ENV = 'stable_baselines3.common.env_util.make_vec_env("Pendulum-v1", n_envs=4)'


def accepted_environment(env: Any) -> GymEnv:
    """
    :param env: what was passed as an environment
    :return: the same; an environment of OpenAI Gym is converted by shimmy, as Stable-Baselines3 does
    :raises ValueError: this is not an environment; the message says what it is and what to pass instead
    """
    if isinstance(env, (gym.Env, VecEnv)):
        return env
    if isinstance(env, gym.vector.VectorEnv):
        raise ValueError(
            f"env must be an environment or a VecEnv of Stable-Baselines3, got {env}, a VectorEnv of Gymnasium, which resets "
            f"its environments in another way. Make the same environments with {MAKE_VEC_ENV}."
        )
    if isinstance(env, type):
        raise ValueError(
            f"env must be an environment, got the class {env.__name__}. Pass an object, {env.__name__}(), or a vector of such "
            f"objects, make_vec_env({env.__name__}, n_envs=4) of stable_baselines3.common.env_util."
        )
    if callable(env):
        raise ValueError(
            f"env must be an environment, got the function {env!r}. Pass what it returns, or a vector of such environments, "
            "DummyVecEnv([function, function]) of stable_baselines3.common.vec_env."
        )
    try:
        return _patch_env(env)
    except ValueError as error:
        raise ValueError(
            f"env must be an environment of Gymnasium, its id, or a VecEnv of Stable-Baselines3, got {env!r}."
        ) from error


def check_constructed_with_env(algorithm: BaseAlgorithm) -> None:
    """
    :param algorithm: an algorithm that is about to be built
    :raises ValueError: it has neither an environment nor, if it is being loaded, the spaces of one
    """
    if not hasattr(algorithm, "observation_space"):
        raise ValueError("env must be an environment of Gymnasium, its id, or a VecEnv of Stable-Baselines3, got None.")


def check_has_env(algorithm: BaseAlgorithm) -> None:
    """
    :param algorithm: an algorithm that is about to learn
    :raises ValueError: it was loaded without an environment
    """
    if algorithm.env is None:
        name = type(algorithm).__name__
        raise ValueError(
            f"{name} has no environment to learn in: it was loaded without one. Load it with one, {name}.load(path, env=env), "
            "or call set_env(env)."
        )


def check_normalization(env: VecEnv) -> None:
    """
    :param env: a vector of environments
    :raises ValueError: a wrapper around ``VecNormalize`` changes observations: those in the replay buffer, which are stored
        as they reach ``VecNormalize``, would lack the change
    """
    normalize = unwrap_vec_normalize(env)
    if normalize is None or env.observation_space == normalize.observation_space:
        return
    outside = []
    while env is not normalize:
        assert isinstance(env, VecEnvWrapper)
        outside.append(type(env).__name__)
        env = env.venv
    raise ValueError(
        f"VecNormalize goes outside of {' and '.join(outside)}, which changes observations: "
        f"VecNormalize({'('.join(outside)}(venv{')' * len(outside)}, ...). "
        "The replay buffer stores observations as they reach VecNormalize."
    )


RealEnv = gym.Env | VecEnv | EnvSpec | str
"""An environment, a vector of them, or what ``gymnasium.make`` makes one of."""


@contextmanager
def as_vec_env(env: RealEnv) -> Iterator[VecEnv]:
    """
    :param env: an environment, which stays open, or what ``gymnasium.make`` makes one of, which is closed at the end
    :return: a context with the environment as a vector
    """
    if isinstance(env, VecEnv):
        check_normalization(env)
        yield env
        return
    made: Any = gym.make(env) if isinstance(env, (str, EnvSpec)) else accepted_environment(env)
    try:
        yield DummyVecEnv([lambda: made])
    finally:
        if made is not env:
            made.close()


def spec_of(env: VecEnv | None) -> EnvSpec | None:
    """
    :param env: a vector of environments
    :return: how the first environment is made, without SB3's ``Monitor``, which Gymnasium cannot make; None: not known
    """
    spec = env.get_attr("spec", indices=[0])[0] if env is not None and env.has_attr("spec") else None
    if spec is None:
        return None
    return replace(spec, additional_wrappers=tuple(each for each in spec.additional_wrappers if each.name != "Monitor"))


MAX_EPISODE_STEPS = 1_000
"""Steps until an imagined episode is truncated if the real time limit is not known: the limit of most MuJoCo tasks."""


def time_limit(env: VecEnv | None) -> int | None:
    """
    :param env: a vector of environments; None: there is none
    :return: steps after which an episode is truncated; None: not known, for instance because the environment truncates itself
    """
    spec = spec_of(env)
    if spec is not None and spec.max_episode_steps is not None:
        return int(spec.max_episode_steps)
    # An attribute of gymnasium.wrappers.TimeLimit, which may be around an environment without a spec
    if env is not None and env.has_attr("_max_episode_steps"):
        return int(env.get_attr("_max_episode_steps", indices=[0])[0])
    return None


def time_limit_or_warn(env: VecEnv | None, otherwise: str) -> int | None:
    """
    :param env: a vector of environments; None: there is none
    :param otherwise: what is done if the time limit is not known, and which argument to pass instead; a sentence or two
    :return: as :func:`time_limit`, with a warning if the time limit is not known
    """
    limit = time_limit(env)
    if limit is None:
        warnings.warn(f"The time limit of the environment is not known. {otherwise}")
    return limit


def max_episode_steps_for(env: VecEnv | None) -> int:
    """
    :param env: a vector of real environments; None: there is none
    :return: steps until an imagined episode is truncated: the time limit of the real environment. If it is not known, the
        answer is ``MAX_EPISODE_STEPS``, with a warning
    :raises ValueError: there is no environment to ask
    """
    if env is None:
        raise ValueError("There is no environment to ask for its time limit: pass max_episode_steps=, in steps.")
    otherwise = (
        f"Imagined episodes are truncated after {MAX_EPISODE_STEPS} steps; pass max_episode_steps= to choose their length."
    )
    return time_limit_or_warn(env, otherwise) or MAX_EPISODE_STEPS
