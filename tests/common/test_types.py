import dataclasses

import pytest
import torch as th

from sb3_mbrl.common.types import Transitions

ROWS = Transitions(
    observations=th.arange(8.0).reshape(4, 2),
    actions=th.arange(4.0).reshape(4, 1),
    next_observations=th.arange(8.0).reshape(4, 2) + 100,
    rewards=th.arange(4.0) + 10,
    terminated=th.tensor([False, True, False, True]),
)


def test_length_is_the_number_of_rows():
    assert len(ROWS) == 4
    assert len(ROWS[:0]) == 0


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(1, 3), [1, 2]),
        (th.tensor([3, 0, 0]), [3, 0, 0]),
        (th.tensor([True, False, False, True]), [0, 3]),
    ],
)
def test_rows_are_chosen_in_all_fields_alike(rows, expected):
    chosen = ROWS[rows]
    assert chosen.observations[:, 0].tolist() == [2.0 * row for row in expected]
    assert chosen.actions[:, 0].tolist() == [float(row) for row in expected]
    assert chosen.next_observations[:, 1].tolist() == [2.0 * row + 101 for row in expected]
    assert chosen.rewards.tolist() == [row + 10.0 for row in expected]
    assert chosen.terminated.tolist() == [row % 2 == 1 for row in expected]


def test_fields_cannot_be_reassigned():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROWS.rewards = th.zeros(4)
