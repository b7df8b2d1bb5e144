"""Files of older versions load, and act as they did."""

import json
from pathlib import Path

import numpy as np
import pytest

from sb3_mbrl import MBPO, PETS, TDMPC, TDMPC2, Dyna, DynaQ, MPCPolicy
from sb3_mbrl.dynamics import ProbabilisticEnsemble
from tests.golden.make import OBSERVATIONS

VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "answers.json").is_file())
CLASSES = {
    "mbpo": MBPO,
    "pets": PETS,
    "dyna": Dyna,
    "dyna_q": DynaQ,
    "tdmpc": TDMPC,
    "tdmpc2": TDMPC2,
    "mpc_policy": MPCPolicy,
}

pytestmark = pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)


def answers(folder: Path) -> dict[str, list]:
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.parametrize("name", CLASSES)
def test_a_zip_acts_as_it_did(folder: Path, name: str) -> None:
    model = CLASSES[name].load(folder / f"{name}.zip", device="cpu")
    observations = np.arange(3) if name == "dyna_q" else OBSERVATIONS
    actions, _ = model.predict(observations, deterministic=True)
    # Another processor rounds otherwise, and a plan may then prefer another of two equally good samples
    assert np.allclose(actions, answers(folder)[name], atol=1e-3)


def test_a_dynamics_file_steps(folder: Path) -> None:
    dynamics = ProbabilisticEnsemble.load(folder / "dynamics.safetensors", device="cpu")
    assert dynamics.is_fitted and dynamics.n_fitted == 60


def test_a_checkpoint_goes_on(folder: Path) -> None:
    model = MBPO.load_checkpoint(folder / "mbpo_checkpoint", env="Pendulum-v1", device="cpu")
    assert model.num_timesteps == model.replay_buffer.size() == 60
    assert model.learn(10, reset_num_timesteps=False).num_timesteps == 70
