"""Every script of examples/ runs to its end. Each of them takes `--timesteps`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

DEFAULT_TIMESTEPS = 600
# Scripts that have nothing to show after so few steps
TIMESTEPS: dict[str, int] = {}


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_example_runs(script: Path, tmp_path: Path) -> None:
    timesteps = TIMESTEPS.get(script.name, DEFAULT_TIMESTEPS)
    done = subprocess.run(
        [sys.executable, str(script), "--timesteps", str(timesteps)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:]
