import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.common.random import rand, randint, randn

DRAWS = {
    "randn": lambda shape, generator: randn(shape, generator, "cpu"),
    "rand": lambda shape, generator: rand(shape, generator, "cpu"),
    "randint": lambda shape, generator: randint(1000, shape, generator, "cpu"),
}
TORCH = {
    "randn": th.randn,
    "rand": th.rand,
    "randint": lambda shape, generator: th.randint(1000, shape, generator=generator),
}
each_draw = pytest.mark.parametrize("name", sorted(DRAWS))


def seeded(seed=0):
    return th.Generator().manual_seed(seed)


@given(
    name=st.sampled_from(sorted(DRAWS)),
    n_generators=st.integers(1, 5),
    rows=st.integers(0, 4),
    rest=st.lists(st.integers(1, 3), max_size=2),
)
def test_each_block_of_rows_equals_the_draw_of_its_generator_alone(name, n_generators, rows, rest):
    together = DRAWS[name]((n_generators * rows, *rest), [seeded(g) for g in range(n_generators)])
    assert together.shape == (n_generators * rows, *rest)
    for g in range(n_generators):
        assert together[g * rows : (g + 1) * rows].equal(DRAWS[name]((rows, *rest), seeded(g)))


@each_draw
def test_streams_continue_from_draw_to_draw(name):
    several, alone = [seeded(0), seeded(1)], seeded(1)
    for rows in (1, 3, 2):
        assert DRAWS[name]((2 * rows, 4), several)[rows:].equal(DRAWS[name]((rows, 4), alone))


@each_draw
def test_one_generator_draws_the_same_as_torch(name):
    assert DRAWS[name]((5, 3), seeded()).equal(TORCH[name]((5, 3), generator=seeded()))


@each_draw
def test_only_without_generators_is_the_global_stream_used(name):
    th.manual_seed(7)
    DRAWS[name]((4, 3), seeded())
    DRAWS[name]((4, 3), [seeded(), seeded(1)])
    assert DRAWS[name]((4, 3), None).equal(TORCH[name]((4, 3), generator=seeded(7)))


@each_draw
@pytest.mark.parametrize(("rows", "n_generators"), [(5, 2), (1, 3), (7, 4)])
def test_rows_that_cannot_be_divided_among_the_generators_are_refused(name, rows, n_generators):
    message = f"{n_generators} generators serve equal blocks of rows; {rows} rows cannot be divided equally"
    with pytest.raises(ValueError, match=message):
        DRAWS[name]((rows, 2), [seeded()] * n_generators)


def test_integers_are_int64_and_below_high():
    drawn = randint(3, (300,), [seeded(0), seeded(1)], "cpu")
    assert drawn.dtype == th.long
    assert drawn.unique().tolist() == [0, 1, 2]
