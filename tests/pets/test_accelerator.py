"""On an accelerator, plans in an ensemble equal those of the CPU, and the host does not wait in between."""

import numpy as np
import pytest
import torch as th

DEVICE = "lazy"
PLANNERS = {
    "icem": {"population_size": 12, "n_elites": 4, "n_iterations": 2},
    "cem": {"population_size": 12, "n_elites": 4, "n_iterations": 2, "min_variance": 1e-9},
    "mppi": {"population_size": 12, "n_iterations": 2},
    "random_shooting": {"population_size": 12},
    "gradient": {"n_iterations": 2},
}
CONVERGENCE = {"cem": 2}
"""CEM checks before each iteration whether it has converged."""


@pytest.mark.parametrize("planner", PLANNERS)
def test_plans_equal_those_of_the_cpu_and_do_not_wait(make_pets, accelerator, planner):
    models = [make_pets(planner=planner, planner_kwargs=PLANNERS[planner], device=device) for device in ("cpu", DEVICE)]
    models[1].dynamics.load_state_dict(models[0].dynamics.state_dict())
    obs, values = np.array([[0.3, 0.1], [-0.5, 0.0]], np.float32), []
    for model in models:
        model.dynamics.holdout_mse.copy_(th.tensor([0.2, 0.1]))
        plan, policy = model.policy.planner.plan, model.policy

        def counted(*args, plan=plan):
            with accelerator.read() as readings:
                result = plan(*args)
            assert sum(readings.values()) in (0, CONVERGENCE.get(planner, 0))
            return result

        policy.planner.plan = counted
        policy.predict(obs, deterministic=True)
        values.append(policy.last_plan.value.cpu())
    th.testing.assert_close(values[1], values[0], atol=1e-4, rtol=1e-3)
