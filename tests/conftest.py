"""Every test: one torch thread, no screen, the same examples from hypothesis on every run."""

import os

# Before anything imports pyplot
os.environ["MPLBACKEND"] = "Agg"

import torch as th
from hypothesis import settings

# `make test` runs two processes on two cores; results must not depend on how many threads sum
th.set_num_threads(1)

# Neither a slow machine nor luck may decide whether a test passes
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")
