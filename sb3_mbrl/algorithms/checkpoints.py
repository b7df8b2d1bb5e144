"""Checkpoints from which a run resumes bit for bit."""

import io
import json
import pathlib
import pickle
import random
from copy import deepcopy
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn

from sb3_mbrl.algorithms.checkpoint_folders import (
    FILES,
    FORMAT,
    checksum_of_json,
    fingerprint,
    new_version,
    newest_version,
    unpickle,
)
from sb3_mbrl.algorithms.env_state import restore_env_state, save_env_state
from sb3_mbrl.algorithms.replay_files import write_replay_buffer
from sb3_mbrl.algorithms.saves import AtomicSaves, check_algorithm, name_in_files, saved_as
from sb3_mbrl.common.environments import check_has_env
from sb3_mbrl.common.files import open_atomically, write_atomically
from sb3_mbrl.common.replay_buffers import end_trajectories

SelfExactCheckpoints = TypeVar("SelfExactCheckpoints", bound="ExactCheckpoints")


class ExactCheckpoints(AtomicSaves, OffPolicyAlgorithm):
    """
    Mixin: list it before an off-policy SB3 class. It adds :meth:`save_checkpoint` and :meth:`load_checkpoint`, and makes
    ``save_replay_buffer`` atomic.
    """

    _checkpoint_due: str | pathlib.Path | None = None
    _was_resumed = False
    """Whether a checkpoint was loaded and ``learn`` has not been called since."""

    def _checkpoint_extras(self) -> dict[str, Any]:
        """
        An algorithm overrides this method to add its own state.

        :return: state that neither ``save`` nor the replay buffer holds: tensors, numbers and strings, in dicts and lists
        """
        return {"gsde_noise": {name: _noise_of(gsde) for name, gsde in _gsde_distributions(self.policy).items()}}

    def _restore_checkpoint_extras(self, extras: dict[str, Any]) -> None:
        """
        :param extras: the result of :meth:`_checkpoint_extras`, with tensors on the device of the model
        """
        for name, gsde in _gsde_distributions(self.policy).items():
            vars(gsde).update(extras["gsde_noise"][name])

    def save_checkpoint(self, folder: str | pathlib.Path) -> None:
        """
        Save everything that the run consists of: the model, the replay buffer, state that only this algorithm has, wrappers
        (``VecNormalize``), environments in the middle of their episodes, and all random streams. ``N`` steps,
        ``save_checkpoint``, :meth:`load_checkpoint` in a new process and ``N`` steps equal ``2N`` steps bit for bit on
        the CPU.

        Call it between two calls of ``learn``, or use :class:`~sb3_mbrl.callbacks.ExactCheckpointCallback`. Other callbacks
        run within a step of the environment, when the last transition is not in the replay buffer yet. Environments in a
        ``SubprocVecEnv`` and those whose simulator keeps its state out of Python's sight (Box2D) are not stored: they are
        reset when the checkpoint is loaded. Callbacks and loggers are not part of a checkpoint.

        The save is atomic: if the process is killed, the folder still holds the last complete checkpoint. Older checkpoints
        are deleted once a new one is complete. Several processes may save to one folder, for instance a job that was queued
        again before its predecessor ended: the checkpoint that was completed last is kept.

        :param folder: the folder, created if needed; other files in it are left alone
        :raises ValueError: a file stands where the folder should be
        """
        with new_version(pathlib.Path(folder)) as version:
            self.save(version / "model.zip")
            write_replay_buffer(version / "replay_buffer.pkl", self.replay_buffer)
            extras = io.BytesIO()
            th.save(self._checkpoint_extras(), extras)
            write_atomically(version / "extras.pth", extras.getvalue())
            env_state = None if self.env is None else save_env_state(self.env)
            write_atomically(version / "environment.pkl", pickle.dumps(env_state))
            write_atomically(version / "random.pkl", pickle.dumps(self._random_state()))
            # Written last, because it holds the sizes and checksums of the other files
            manifest = {
                "format": FORMAT,
                "algorithm": name_in_files(type(self)),
                "num_timesteps": self.num_timesteps,
                "n_envs": self.n_envs,
                "files": {name: fingerprint(version / name) for name in FILES},
            }
            manifest["crc32"] = checksum_of_json(manifest)
            write_atomically(version / "manifest.json", json.dumps(manifest, indent=4).encode())
        self._checkpoint_due = None

    @classmethod
    def load_checkpoint(
        cls: type[SelfExactCheckpoints],
        folder: str | pathlib.Path,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        force_reset: bool = False,
        **kwargs: Any,
    ) -> SelfExactCheckpoints:
        """
        Load the newest complete checkpoint of a folder, even while other processes save to it. To resume the run, call
        ``learn(n, reset_num_timesteps=False)``. The random streams of this process (Python, NumPy, PyTorch) are set to their
        saved states. Parts of a checkpoint are pickled: load only what you trust.

        :param folder: the folder that was passed to :meth:`save_checkpoint`
        :param env: an environment made and wrapped like the one that was saved, or its name. ``VecNormalize`` may be new,
            since its statistics are restored. None is enough to predict
        :param device: Device on which the code should run
        :param force_reset: start new episodes instead of continuing the saved ones
        :param kwargs: further arguments of ``load``, such as attributes to change
        :return: the algorithm
        :raises ValueError: there is no checkpoint, it is damaged, or another algorithm saved it; or ``env`` has other spaces,
            another number of environments or other wrappers
        """
        with newest_version(pathlib.Path(folder)) as (manifest, files):
            check_algorithm(cls, manifest["algorithm"], folder)
            if env is not None:
                env = cls._wrap_env(maybe_make_env(env, verbose=0))
                if env.num_envs != manifest["n_envs"]:
                    raise ValueError(
                        f"The checkpoint was saved with {manifest['n_envs']} environments, but env has {env.num_envs}. "
                        f"Pass a VecEnv of {manifest['n_envs']}, e.g. make_vec_env(..., n_envs={manifest['n_envs']})."
                    )
            model = cls.load(files["model.zip"], env=env, device=device, force_reset=False, **kwargs)
            model._adopt_replay_buffer(unpickle(files["replay_buffer.pkl"]))
            extras = th.load(files["extras.pth"], map_location=model.device, weights_only=True)
            model._restore_checkpoint_extras(extras)
            if model.env is not None:
                model._restore_env(unpickle(files["environment.pkl"]), force_reset)
            # Restored last, because everything above may draw random numbers, and SB3's load seeds all streams
            model._restore_random_state(unpickle(files["random.pkl"]))
            model._was_resumed = True
            return model

    def _adopt_replay_buffer(self, replay_buffer: ReplayBuffer | None) -> None:
        self.replay_buffer = replay_buffer
        if replay_buffer is not None:
            replay_buffer.device = self.device

    def _restore_env(self, state: dict[str, Any] | None, force_reset: bool) -> None:
        assert self.env is not None
        # As after construction, the algorithm and the environment share their spaces and the generators of these
        self.action_space, self.observation_space = self.env.action_space, self.env.observation_space
        if state is not None and restore_env_state(self.env, state, tasks=not force_reset):
            return
        self._last_obs = None  # tells SB3's learn() to reset the environment
        if self.seed is not None:  # with the seed itself, the first episodes of the run would be repeated
            self.env.seed(self.seed + self.num_timesteps)

    def _random_state(self) -> dict[str, Any]:
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": th.get_rng_state(),
            "cuda": th.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "action_space": self.action_space._np_random,
            "observation_space": self.observation_space._np_random,
        }

    def _restore_random_state(self, state: dict[str, Any]) -> None:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        th.set_rng_state(state["torch"])
        if self.device.type == "cuda" and len(state["cuda"]) == th.cuda.device_count():
            th.cuda.set_rng_state_all(state["cuda"])
        self.action_space._np_random = state["action_space"]
        self.observation_space._np_random = state["observation_space"]

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        # Here, between the updates and the next noise of gSDE, a run can be saved and resumed bit for bit
        if self._checkpoint_due is not None:
            self.save_checkpoint(self._checkpoint_due)
        rollout = None
        try:
            rollout = super().collect_rollouts(*args, **kwargs)
            return rollout
        finally:
            if rollout is None or not rollout.continue_training:
                # A callback, an exception or Ctrl-C stopped the rollout before its last transition was stored. The next
                # observation does not follow _last_obs, so the next learn() has to start new episodes
                self._last_obs = None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        check_has_env(self)
        keep_noise = self._was_resumed and not reset_num_timesteps and self.num_timesteps > 0
        self._fit_to_environments()
        if reset_num_timesteps or self._last_obs is None:  # SB3 will reset the environments, which cuts running episodes
            end_trajectories(self.replay_buffer)
        action_noise = deepcopy(self.action_noise)
        start = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if keep_noise:  # SB3 resets it in each learn(), while an uninterrupted run would not have reset it here
            self.action_noise = action_noise
        self._was_resumed = False
        return start

    def _fit_to_environments(self) -> None:
        """
        Adapt state that was saved with another number of environments to the number of this run.

        :raises ValueError: the replay buffer has room for another number of environments
        """
        assert self.env is not None
        n_envs, buffer = self.env.num_envs, self.replay_buffer
        if buffer is not None and buffer.n_envs != n_envs:
            raise ValueError(
                f"The replay buffer holds transitions of {buffer.n_envs} parallel environments, but this run has {n_envs}. "
                f"Use a VecEnv of {buffer.n_envs}, e.g. make_vec_env(..., n_envs={buffer.n_envs}), or do not load that replay "
                "buffer."
            )
        self.action_noise = noise_for(self.action_noise, n_envs)
        if self._last_episode_starts is not None and len(self._last_episode_starts) != n_envs:
            self._last_obs = None  # it belongs to the other environments

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer as a pickle file, as SB3 does; atomic where ``path`` is a path.

        :param path: path to the file where the replay buffer should be saved
        """
        if isinstance(path, (str, pathlib.Path)):
            with open_atomically(saved_as(path, "pkl")) as file:
                super().save_replay_buffer(file)  # type: ignore[arg-type]
        else:
            super().save_replay_buffer(path)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_checkpoint_due", "_was_resumed"]


def _gsde_distributions(policy: th.nn.Module) -> dict[str, StateDependentNoiseDistribution]:
    """The gSDE distributions of a policy, by the name of the module that holds each: the actor, or the policy itself."""
    distributions = {name: getattr(module, "action_dist", None) for name, module in policy.named_modules()}
    return {name: each for name, each in distributions.items() if isinstance(each, StateDependentNoiseDistribution)}


def _noise_of(gsde: StateDependentNoiseDistribution) -> dict[str, th.Tensor]:
    """The noise matrices. They are not parameters, so SB3 does not save them, and draws new ones when it loads."""
    return {name: getattr(gsde, name).detach() for name in ("exploration_mat", "exploration_matrices")}


def noise_for(action_noise: ActionNoise | None, n_envs: int) -> ActionNoise | None:
    """
    :param action_noise: noise that was used with any number of environments
    :param n_envs: number of environments to whose actions it will be added
    :return: the same noise; if it was vectorized for another number of environments, the noise of a single one, which SB3
        vectorizes again in ``learn``
    """
    if isinstance(action_noise, VectorizedActionNoise) and action_noise.n_envs != n_envs:
        return action_noise.base_noise
    return action_noise


def restore_generator(generator: th.Generator, state: th.Tensor) -> None:
    """
    :param generator: the generator that is set to ``state``, unless the state comes from another type of device
    :param state: the return value of :meth:`torch.Generator.get_state`
    """
    if state.numel() == generator.get_state().numel():
        generator.set_state(state.cpu())
