"""Long operations show their progress."""

import pytest

from sb3_mbrl.common import progress as callbacks
from sb3_mbrl.common.progress import EveryHalfMinute, remaining_time, showing

# SB3 silences this warning when it is imported, but pytest sets its own filters for each test
pytestmark = pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")


@pytest.fixture
def clock(monkeypatch):
    """A list whose entry ``clock[0]`` holds the elapsed seconds."""
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    return now


def test_a_line_is_printed_every_half_minute(clock, capsys):
    say = EveryHalfMinute()
    for second in range(100):
        clock[0] = second
        say(f"second {second}")
    assert capsys.readouterr().out == "Second 30\nSecond 60\nSecond 90\n"


@pytest.mark.parametrize(("verbose", "expected"), [(0, ""), (1, "Working\n")])
def test_without_a_progress_bar_lines_are_printed_only_if_verbose(clock, capsys, verbose, expected):
    with showing(verbose, progress_bar=False) as show:
        clock[0] = 40
        show("working")
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("total", [3, None])
def test_with_a_progress_bar_no_lines_are_printed(clock, capsys, total):
    with showing(verbose=1, progress_bar=True, total=total) as show:
        clock[0] = 40
        show("working", 2)
    assert "Working" not in capsys.readouterr().out


def test_the_remaining_time_grows_while_nothing_is_done():
    times = [remaining_time(elapsed, done=100, total=1_100) for elapsed in (1.0, 2.0, 720.0)]
    assert times == ["0:00:10", "0:00:20", "2:00:00"]
    assert remaining_time(None, 0, 10) == remaining_time(1.0, 0, 10) == remaining_time(1.0, 1, None) == "-:--:--"


def test_the_remaining_time_of_the_bar_moves_between_two_steps():
    bar = callbacks._bar(10)
    try:
        bar.update(5)
        bar.refresh()
        (task,) = bar._prog.tasks
        (column,) = [each for each in bar._prog.columns if type(each).__name__ == "Remaining"]
        start, shown = task.start_time, []
        for seconds in (5.0, 65.0):
            task._get_time = lambda seconds=seconds: start + seconds
            shown.append(str(column.render(task)))
        assert shown == ["0:00:05", "0:01:05"]
    finally:
        bar.close()
