import io

import pytest

from sb3_mbrl.diagnostics.figures import MAX_PANELS, plot_one_step, plot_open_loop, plot_state_distribution
from sb3_mbrl.diagnostics.one_step import one_step_error
from sb3_mbrl.diagnostics.open_loop import open_loop_error
from sb3_mbrl.diagnostics.state_distribution import state_distribution
from tests.diagnostics.linear import LinearModel, linear_world


@pytest.mark.parametrize("n_dims, n_panels", [(1, 2), (20, MAX_PANELS)])
def test_figures_show_the_worst_dimensions(n_dims, n_panels):
    world = linear_world(60, noise=0.1, n_dims=n_dims)
    world.observations[:, 0] = 1.0
    world.next_observations[:, 0] = 1.0  # never moves
    model = LinearModel(noise=0.1, epistemic=0.05)
    one_step, open_loop = one_step_error(model, world), open_loop_error(model, [world], n_steps=5)
    states = state_distribution(world.next_observations, world.next_observations + 0.1)
    figures = [plot_one_step(one_step), plot_open_loop(open_loop), plot_state_distribution(states)]
    for figure, n in zip(figures, (n_panels, n_panels, min(n_dims, MAX_PANELS)), strict=True):
        assert len(figure.axes) == 2 + n
        figure.savefig(io.BytesIO(), dpi=20)


def test_figures_of_a_model_that_diverges_or_claims_nothing_are_drawn():
    world = linear_world(30)
    for model in (LinearModel(gain=1e30), LinearModel()):
        plot_one_step(one_step_error(model, world)).savefig(io.BytesIO(), dpi=20)
        plot_open_loop(open_loop_error(model, [world], n_steps=5)).savefig(io.BytesIO(), dpi=20)


def test_figures_carry_the_names_of_the_dimensions():
    result = one_step_error(LinearModel(noise=0.1), linear_world(30))
    titles = [ax.get_title() for ax in plot_one_step(result, ["height", "speed"]).axes[2:]]
    assert [title.split(":")[0] for title in titles] == ["height", "speed", "reward"]
    with pytest.raises(ValueError, match="2 observation dimensions"):
        plot_one_step(result, ["height"])
