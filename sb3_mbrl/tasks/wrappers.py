"""The wrappers around a task: which ones leave a step as it is, and which ones change observations."""

import gymnasium as gym
from gymnasium.wrappers import (
    HumanRendering,
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    RecordVideo,
    RenderCollection,
    TimeLimit,
)
from stable_baselines3.common.monitor import Monitor

TRANSPARENT = {
    HumanRendering,
    Monitor,
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    RecordVideo,
    RenderCollection,
    TimeLimit,
}
"""Wrappers that only record, count, check or render: they change no state, observation, reward or termination of a step."""


def layers(env: gym.Env) -> list[gym.Env]:
    """
    :param env: an environment
    :return: the unwrapped environment, then each wrapper around it
    """
    inwards = [env]
    while isinstance(inwards[-1], gym.Wrapper):
        inwards.append(inwards[-1].env)
    return inwards[::-1]


def without_transparent(env: gym.Env) -> gym.Env:
    """
    :param env: an environment
    :return: the environment without its outermost transparent wrappers
    """
    while type(env) in TRANSPARENT:
        env = env.env  # type: ignore[attr-defined]
    return env


def observation_is_rewritten(env: gym.Env) -> bool:
    """
    :param env: an environment
    :return: whether a wrapper changes the observation of the task
    """
    wrapped = any(isinstance(layer, gym.ObservationWrapper) for layer in layers(env))
    return wrapped or env.observation_space.shape != env.unwrapped.observation_space.shape
