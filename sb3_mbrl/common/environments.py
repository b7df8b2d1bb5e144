"""Which environments are accepted. Their kind is checked first, before anything looks at their spaces."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_normalize
from stable_baselines3.common.vec_env.patch_gym import _patch_env

MAKE_VEC_ENV = 'stable_baselines3.common.env_util.make_vec_env("Pendulum-v1", n_envs=4)'


def accepted_environment(env: Any) -> GymEnv:
    """
    :param env: what was passed as an environment
    :return: the same; an environment of OpenAI Gym is converted by shimmy, as Stable-Baselines3 does
    :raises ValueError: it is not an environment; the message says what it is and what to pass instead
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
    :param algorithm: about to be built
    :raises ValueError: it has neither an environment nor, where it is loaded, the spaces of one
    """
    if not hasattr(algorithm, "observation_space"):
        raise ValueError("env must be an environment of Gymnasium, its id, or a VecEnv of Stable-Baselines3, got None.")


def check_has_env(algorithm: BaseAlgorithm) -> None:
    """
    :param algorithm: about to learn
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
