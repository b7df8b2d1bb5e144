"""The statistics of VecNormalize applied on the device."""

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize


def normalize_obs(obs: th.Tensor, env: VecNormalize | None) -> th.Tensor:
    """
    ``env.normalize_obs`` on the device.

    :param obs: raw observations, (B, O)
    :param env: the ``VecNormalize`` whose current statistics are used; None: observations are returned unchanged
    :return: (B, O) float32
    """
    if env is None or not env.norm_obs:
        return obs
    assert isinstance(env.obs_rms, RunningMeanStd)  # only a Dict space has several of them
    mean = th.as_tensor(env.obs_rms.mean, dtype=th.float32, device=obs.device)
    std = th.as_tensor(np.sqrt(env.obs_rms.var + env.epsilon), dtype=th.float32, device=obs.device)
    return ((obs - mean) / std).clamp(-env.clip_obs, env.clip_obs)


def normalize_reward(reward: th.Tensor, env: VecNormalize | None) -> th.Tensor:
    """
    ``env.normalize_reward`` on the device.

    :param reward: raw rewards, (B,)
    :param env: the ``VecNormalize`` whose current statistics are used; None: rewards are returned unchanged
    :return: (B,)
    """
    if env is None or not env.norm_reward:
        return reward
    std = float(np.sqrt(env.ret_rms.var + env.epsilon))
    return (reward / std).clamp(-env.clip_reward, env.clip_reward)
