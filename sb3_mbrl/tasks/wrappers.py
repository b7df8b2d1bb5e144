"""What stands between a task and the one who sees it: wrappers that change nothing, and wrappers that change observations."""

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
"""Wrappers that watch, count or draw; what a step does is decided below them."""


def layers(env: gym.Env) -> list[gym.Env]:
    """
    :param env: an environment
    :return: the unwrapped environment, then each wrapper around it
    """
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers[::-1]


def without_transparent(env: gym.Env) -> gym.Env:
    """
    :param env: an environment
    :return: what is left when the outer wrappers that change no step are taken off
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
