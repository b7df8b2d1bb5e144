import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.tasks.identification import identify
from sb3_mbrl.tasks.simulator import SimulatorModel


def log(env, n=200, seed=0):
    """Transitions of a random policy in an environment with symmetric action bounds."""
    env.action_space.seed(seed)
    obs, _ = env.reset(seed=seed)
    rows = []
    for _ in range(n):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action / env.action_space.high, next_obs, reward, terminated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    columns = [th.as_tensor(np.array(column), dtype=th.float32) for column in zip(*rows, strict=True)]
    return Transitions(*columns[:4], columns[4].bool())


def test_mass_and_damping_of_a_pendulum_are_recovered():
    env = gym.make("InvertedPendulum-v5")
    true = env.unwrapped.model
    true.body_mass[2] *= 1.4
    true.dof_damping[0] *= 0.5

    report = identify("InvertedPendulum-v5", log(env), {"body_mass/pole": (1.0, 20.0), "dof_damping/slider": (0.0, 5.0)})

    assert report.parameters == {
        "body_mass/pole": pytest.approx(true.body_mass[2], rel=0.02),
        "dof_damping/slider": pytest.approx(true.dof_damping[0], rel=0.02),
    }
    assert report.initial["dof_damping/slider"] == 1.0
    assert report.residual_after < 0.01 * report.residual_before
    assert report.at_bound == ()
    assert report.n_transitions == 200
    found = report.model.simulator.task.model
    assert found.body_mass[2] == report.parameters["body_mass/pole"]


def test_a_body_in_contact_is_recovered():
    env = gym.make("HalfCheetah-v5")
    true = env.unwrapped.model
    torso, joint = true.body("torso").id, true.joint("bthigh").dofadr[0]
    true.body_mass[torso] *= 1.3
    true.dof_damping[joint] *= 0.7
    true.geom_friction[:, 0] *= 1.5
    model = SimulatorModel("HalfCheetah-v5")

    report = identify(
        model,
        log(env),
        {"body_mass/torso": (2.0, 20.0), "dof_damping/bthigh": (1.0, 20.0), "geom_friction/floor": (0.4, 2.0)},
    )

    assert report.model is model
    assert report.parameters["body_mass/torso"] == pytest.approx(true.body_mass[torso], rel=0.02)
    assert report.parameters["dof_damping/bthigh"] == pytest.approx(true.dof_damping[joint], rel=0.02)
    assert report.parameters["geom_friction/floor"] == pytest.approx(0.6, rel=0.02)


def test_a_task_with_contact_forces_in_its_observation_is_identified_too():
    env = gym.make("InvertedDoublePendulum-v5")
    env.unwrapped.model.body_mass[1] *= 1.2

    report = identify("InvertedDoublePendulum-v5", log(env, 100), {"body_mass/cart": (1.0, 30.0)})

    assert report.parameters["body_mass/cart"] == pytest.approx(env.unwrapped.model.body_mass[1], rel=0.02)


def test_the_environment_keeps_its_parameters():
    env = gym.make("InvertedPendulum-v5")
    transitions = log(env, 20)
    env.unwrapped.model.body_mass[1] *= 2

    report = identify(env, transitions, {"body_mass/cart": (1.0, 30.0)})

    assert report.initial["body_mass/cart"] == env.unwrapped.model.body_mass[1]
    assert report.parameters["body_mass/cart"] == pytest.approx(env.unwrapped.model.body_mass[1] / 2, rel=0.02)


def test_a_bound_that_is_too_tight_is_reported():
    env = gym.make("InvertedPendulum-v5")
    env.unwrapped.model.body_mass[1] *= 2
    initial = SimulatorModel("InvertedPendulum-v5").simulator.task.model.body_mass[1]

    report = identify("InvertedPendulum-v5", log(env, 20), {"body_mass/cart": (1.0, 1.1 * initial)})

    assert report.at_bound == ("body_mass/cart",)
    assert report.parameters["body_mass/cart"] == pytest.approx(1.1 * initial)


def test_clipped_velocities_are_left_out():
    env = gym.make("Hopper-v5")
    transitions = log(env, 20)
    transitions.observations[3, -1] = 10.0

    report = identify("Hopper-v5", transitions, {"body_mass/torso": (1.0, 10.0)})

    assert report.n_transitions == 19


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"body_mass/nose": (1.0, 2.0)}, "Unknown parameter 'body_mass/nose', expected one of .*body_mass/pole"),
        ({"body_mass/pole": (2.0, 1.0)}, r"bounds of .body_mass/pole. must be .*the lower one first, got \(2.0, 1.0\)"),
        ({"body_mass/pole": (1.0, float("inf"))}, "must be two finite numbers"),
        ({"body_mass/pole": (100.0, 200.0)}, "outside its bounds .* Widen them"),
        ({"body_mass/pole": (1.0, 20.0), "geom_friction/rail": (0.5, 2.0)}, "'geom_friction/rail' has no effect"),
    ],
)
def test_parameters_that_cannot_be_identified_are_named(parameters, message):
    env = gym.make("InvertedPendulum-v5")

    with pytest.raises(ValueError, match=message):
        identify(env, log(env, 20), parameters)


def test_only_mujoco():
    env = gym.make("Pendulum-v1")

    with pytest.raises(ValueError, match="needs one of Gymnasium's MuJoCo tasks, got a _Pendulum"):
        identify(env, log(env, 20), {"body_mass/pole": (1.0, 2.0)})
