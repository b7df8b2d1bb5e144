"""
Writes the golden files: ``python -m tests.golden.make``, in the root of the repository.

Every later version must load the files in this folder, so they are never overwritten. A version that changes a format writes
its files into a new folder beside the older ones, which it keeps loading.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_mbrl
from sb3_mbrl import MBPO, PETS, TDMPC, TDMPC2, Dyna, DynaQ, MPCPolicy
from sb3_mbrl.common.trajectories import real_transitions
from sb3_mbrl.dynamics import LearnedTermination, ProbabilisticEnsemble

ENSEMBLE: dict[str, Any] = {"ensemble_size": 2, "n_elites": 1, "net_arch": [8]}
PLANNER: dict[str, Any] = {"population_size": 12, "n_elites": 3, "n_iterations": 2}
COMMON: dict[str, Any] = {"seed": 0, "device": "cpu", "buffer_size": 100, "learning_starts": 40}
MODEL_BASED: dict[str, Any] = {**COMMON, "model_train_freq": 20, "dynamics_kwargs": ENSEMBLE}
LATENT: dict[str, Any] = {**COMMON, "batch_size": 8, "pretrain_steps": 1, "n_proposals": 2, "planner_kwargs": PLANNER}
TDMPC_SIZES = {"encoder": 8, "mlp": 8, "latent": 8}
TDMPC2_SIZES = {**TDMPC_SIZES, "encoder_layers": 2, "n_critics": 2}

OBSERVATIONS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, -2.0], [-1.0, 0.0, 5.0]], dtype=np.float32)
"""Three observations of Pendulum-v1."""


def algorithms() -> dict[str, BaseAlgorithm]:
    """
    :return: one small algorithm of each kind, by the name of its file, trained for a few steps
    """
    env_id = "Pendulum-v1"
    mbpo = MBPO(
        "MlpPolicy",
        env_id,
        **MODEL_BASED,
        batch_size=32,
        gradient_steps=1,
        rollouts_per_step=2,
        model_retain_steps=20,
        policy_kwargs={"net_arch": [8]},
    )
    pets = PETS("MPCPolicy", env_id, **MODEL_BASED, planner="cem", planner_kwargs=PLANNER, horizon=3, n_particles=2)
    dyna = Dyna(
        PPO,
        "MlpPolicy",
        env_id,
        **MODEL_BASED,
        imagined_steps_per_step=4,
        n_imagined_envs=4,
        max_episode_steps=10,
        algorithm_kwargs={"n_steps": 16, "batch_size": 32, "policy_kwargs": {"net_arch": [8]}},
    )
    return {
        "mbpo": mbpo.learn(60),
        "pets": pets.learn(60),
        "dyna": dyna.learn(60),
        "dyna_q": DynaQ("TabularPolicy", "CliffWalking-v1", seed=0).learn(60),
        "tdmpc": TDMPC("MlpPolicy", env_id, **LATENT, model_size=TDMPC_SIZES).learn(60),
        "tdmpc2": TDMPC2("MlpPolicy", env_id, **LATENT, model_size=TDMPC2_SIZES).learn(60),
    }


def learned_termination(mbpo: MBPO) -> ProbabilisticEnsemble:
    """
    :param mbpo: trained
    :return: an ensemble that has learned when an episode ends from its transitions, whose velocities are taken to end it
    """
    assert mbpo.replay_buffer is not None
    transitions = real_transitions(mbpo.replay_buffer, "cpu")
    generator = th.Generator().manual_seed(0)
    dynamics = ProbabilisticEnsemble(
        mbpo.observation_space,
        mbpo.action_space,
        **ENSEMBLE,
        termination_fn=LearnedTermination(3, 1, net_arch=(8,), generator=generator),
        generator=generator,
        device="cpu",
    )
    dynamics.fit(replace(transitions, terminated=transitions.next_observations[:, 2].abs() > 2), generator, max_epochs=2)
    return dynamics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / sb3_mbrl.__version__)
    folder = parser.parse_args().folder
    folder.mkdir()  # never into one that exists

    models = algorithms()
    for name, model in models.items():
        model.save(folder / f"{name}.zip")
    mbpo = models["mbpo"]
    assert isinstance(mbpo, MBPO)
    mbpo.save_checkpoint(folder / "mbpo_checkpoint")
    learned_termination(mbpo).save(folder / "dynamics.safetensors")
    planned = MPCPolicy(mbpo.dynamics, planner="cem", horizon=3, planner_kwargs=PLANNER, seed=0)
    planned.save(folder / "mpc_policy.zip")

    policies: dict[str, Any] = {**models, "mpc_policy": planned}
    observations = {name: np.arange(3) if name == "dyna_q" else OBSERVATIONS for name in policies}
    answers = {name: policy.predict(observations[name], deterministic=True)[0].tolist() for name, policy in policies.items()}
    (folder / "answers.json").write_text(json.dumps(answers, indent=4) + "\n")


if __name__ == "__main__":
    main()
