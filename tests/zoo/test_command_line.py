"""RL Zoo trains, shows, records, tunes and shares our algorithms. It runs in a process of its own, as for users."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = [
    pytest.mark.slow,
    # Not importorskip: importing RL Zoo patches Gymnasium, for all tests that follow
    pytest.mark.skipif(importlib.util.find_spec("rl_zoo3") is None, reason="needs rl_zoo3, the extra `zoo`"),
]

ENV = "Pendulum-v1"
OFTEN = ["--eval-freq", "60", "--eval-episodes", "1", "--save-freq", "60", "--seed", "0"]
ENSEMBLE = [
    "model_train_freq:60",
    "dynamics_kwargs:dict(ensemble_size=2, n_elites=1, net_arch=[8])",
]
PLANNER = "planner_kwargs:dict(population_size=12, n_elites=3, n_iterations=1)"
LATENT = ["batch_size:16", "pretrain_steps:1", "n_proposals:2", PLANNER]
MODEL_BASED = [*ENSEMBLE, "gradient_steps:1", "rollouts_per_step:4"]
DYNA = [*ENSEMBLE, "imagined_steps_per_step:4", "n_imagined_envs:4", "max_episode_steps:10"]
TINY = {
    "mbpo": MODEL_BASED,
    "mbtqc": MODEL_BASED,
    "mbcrossq": MODEL_BASED,
    "mbtd3": MODEL_BASED,
    "pets": [*ENSEMBLE, "horizon:3", PLANNER],
    "dyna_ppo": [*DYNA, "algorithm_kwargs:dict(n_steps=16, batch_size=32)"],
    "dyna_dqn": DYNA,
    "tdmpc": LATENT,
    "tdmpc2": LATENT,
}
"""The -params for RL Zoo, in addition to a few random steps at the beginning."""

STAND_IN = """
import shutil, sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

# The newer name first
NotFound = getattr(errors, "RemoteEntryNotFoundError", errors.EntryNotFoundError)

hub = Path(sys.argv.pop(1))


def download(repo_id, filename, **_):
    if not (hub / repo_id / filename).is_file():
        raise NotFound.__new__(NotFound, filename)
    return str(hub / repo_id / filename)


api = huggingface_hub.HfApi
api.create_repo = lambda self, repo_id, **_: repo_id
api.snapshot_download = lambda self, repo_id, local_dir: Path(local_dir).mkdir(parents=True)
api.upload_folder = lambda self, repo_id, folder_path, **_: shutil.copytree(folder_path, hub / repo_id)
huggingface_hub.hf_hub_download = download

from sb3_mbrl.zoo.command_line import main

main()
"""
"""The command line, with a folder instead of the Hugging Face Hub."""

BOTH = """
import json, sys

from sb3_mbrl.zoo.command_line import main

for arguments in json.loads(sys.argv[1]):
    main(arguments)
"""


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def zoo(folder: Path, *arguments: str, **environment: str) -> str:
    done = python(folder, "-m", "sb3_mbrl.zoo", *arguments, **environment)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def train_arguments(algo: str, *arguments: str, env: str = ENV, n_timesteps: int = 130) -> list[str]:
    few = ["-n", str(n_timesteps), *OFTEN]
    # Short episodes: RL Zoo evaluates whole ones. Ant-v5 has arguments of the paper, which these would replace
    short = [] if env == "Ant-v5" else ["--env-kwargs", "max_episode_steps:20"]
    return ["train", "--algo", algo, "--env", env, *few, *short, *arguments, "-params", "learning_starts:60", *TINY[algo]]


def train(folder: Path, algo: str, *arguments: str, env: str = ENV, n_timesteps: int = 130) -> str:
    return zoo(folder, *train_arguments(algo, *arguments, env=env, n_timesteps=n_timesteps))


def enjoy_arguments(algo: str, *arguments: str, env: str = ENV, folder: str = "logs") -> list[str]:
    return ["enjoy", "--algo", algo, "--env", env, "-f", folder, "--no-render", "-n", "21", *arguments]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    train(folder, "mbpo")
    return folder


@pytest.mark.parametrize("algo", TINY)
def test_train_and_enjoy(tmp_path: Path, algo: str) -> None:
    env = "CartPole-v1" if algo == "dyna_dqn" else ENV
    # One process runs both: its imports take longer than they do
    done = python(tmp_path, "-c", BOTH, json.dumps([train_arguments(algo, env=env), enjoy_arguments(algo, env=env)]))
    assert done.returncode == 0, done.stdout[-5000:]
    run = tmp_path / "logs" / algo / f"{env}_1"
    assert {path.name for path in run.glob("*.zip")} == {
        f"{env}.zip",
        "best_model.zip",
        "rl_model_60_steps.zip",
        "rl_model_120_steps.zip",
    }
    assert "Mean reward" in done.stdout


@pytest.mark.parametrize("which", ["--load-best", "--load-last-checkpoint"])
def test_enjoy_loads_checkpoints(trained: Path, which: str) -> None:
    assert "Mean reward" in zoo(trained, *enjoy_arguments("mbpo", which))


def test_the_tuned_hyperparameters_are_used(trained: Path) -> None:
    saved = (trained / f"logs/mbpo/{ENV}_1/{ENV}/config.yml").read_text()
    assert "model_retain_steps" in saved


def test_a_file_of_the_user_comes_first(tmp_path: Path) -> None:
    entry = {ENV: {"n_timesteps": 70, "policy": "MlpPolicy", "real_ratio": 0.5}}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(entry))
    out = train(tmp_path, "mbpo", "-conf", "mine.yml")
    assert "Loading hyperparameters from: mine.yml" in out
    assert "real_ratio" in out and "model_retain_steps" not in out


def test_evaluations_use_the_environment_of_the_paper(tmp_path: Path) -> None:
    train(tmp_path, "mbpo", env="Ant-v5", n_timesteps=70)
    zoo(tmp_path, "enjoy", "--algo", "mbpo", "--env", "Ant-v5", "-f", "logs", "--no-render", "-n", "3")


def test_training_continues_with_its_replay_buffer(tmp_path: Path) -> None:
    train(tmp_path, "mbpo", "--save-replay-buffer")
    out = train(tmp_path, "mbpo", "-i", f"logs/mbpo/{ENV}_1/{ENV}.zip")
    assert "Loading replay buffer" in out
    # The 130 before, and the first 61
    assert "transitions" in out and max(map(int, re.findall(r"on (\d+) transitions", out))) > 130


def test_record(tmp_path: Path) -> None:
    env = "InvertedPendulum-v5"
    render = f"import gymnasium; env = gymnasium.make('{env}', render_mode='rgb_array'); env.reset(); env.render()"
    backends = [name for name in ("egl", "osmesa") if python(tmp_path, "-c", render, MUJOCO_GL=name).returncode == 0]
    if not backends:
        pytest.skip("MuJoCo renders neither by EGL nor by OSMesa here")
    train(tmp_path, "mbpo", env=env, n_timesteps=70)
    zoo(tmp_path, "record", "--algo", "mbpo", "--env", env, "-f", "logs", "-n", "10", MUJOCO_GL=backends[0])
    (video,) = (tmp_path / f"logs/mbpo/{env}_1/videos").glob("*.mp4")
    assert video.stat().st_size > 1_000


def test_optimize(tmp_path: Path) -> None:
    if importlib.util.find_spec("pandas") is None:
        pytest.skip("needs pandas, of the extra `zoo`")
    few = ["-n", "100", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots", "--seed", "1"]
    out = zoo(tmp_path, "optimize", "--algo", "tdmpc2", "--env", ENV, *few, "-params", "learning_starts:60", PLANNER)
    assert "Number of finished trials:  2" in out
    assert "TrialState.PRUNED" not in out


def test_push_and_pull(trained: Path) -> None:
    if python(trained, "-c", "import rl_zoo3.push_to_hub").returncode != 0:
        pytest.skip("this RL Zoo does not import what its Hub package has: 2.9.1 does")
    hub = ["-c", STAND_IN, str(trained / "the_hub")]
    of_mbpo = ["--algo", "mbpo", "--env", ENV, "-orga", "me"]
    pushed = python(trained, *hub, "push", *of_mbpo, "-f", "logs", "--no-render")
    assert pushed.returncode == 0, pushed.stdout[-5000:]
    assert "**MBPO** Agent" in (trained / f"the_hub/me/mbpo-{ENV}/README.md").read_text()
    pulled = python(trained, *hub, "pull", *of_mbpo, "-f", "pulled", TRUST_REMOTE_CODE="True")
    assert pulled.returncode == 0, pulled.stdout[-5000:]
    assert "Mean reward" in zoo(trained, *enjoy_arguments("mbpo", folder="pulled"))
