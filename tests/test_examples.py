"""Every script in examples/ runs without an error. Each of them takes `--timesteps`."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

DEFAULT = ["--timesteps", "530"]
# What keeps the others short, or lets them show something
ARGUMENTS = {
    "adroit_pddm.py": ["--timesteps", "100", "--episodes", "1"],
    "custom_environment.py": ["--timesteps", "260"],
    "dyna_q.py": ["--timesteps", "600", "--seeds", "2"],
    "ladder.py": ["--timesteps", "205", "--episodes", "1"],
    "learned_env.py": ["--timesteps", "150"],
    "look_at_the_model.py": ["--timesteps", "260"],
    "mpc.py": ["--timesteps", "560", "--episodes", "1"],
    "offline.py": ["--timesteps", "150", "--updates", "50"],
    "resume.py": ["--timesteps", "440"],
    "swap_the_reward.py": ["--timesteps", "300", "--steps", "8"],
    "tdmpc2.py": ["--timesteps", "205", "--episodes", "1"],
    "tdmpc2_pixels.py": ["--timesteps", "140"],
    "tdmpc2_resume.py": ["--timesteps", "120"],
    "tdmpc2_vec_env.py": ["--timesteps", "240"],
    "terminal_value.py": ["--timesteps", "300", "--episodes", "5"],
}
# Beyond the extra `tests`
NEEDS = {"adroit_pddm.py": "gymnasium_robotics"}


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_example_runs(script: Path, tmp_path: Path) -> None:
    needed = NEEDS.get(script.name)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    done = subprocess.run(
        [sys.executable, str(script), *ARGUMENTS.get(script.name, DEFAULT)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:]
