"""The benchmark scripts: curves resume without losing data, and tables are computed correctly."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th

from benchmarks import curves, fit_rules, plot, speed, step_cost
from sb3_mbrl.zoo import load_hyperparams

PENDULUM = ["--env", "Pendulum-v1", "--eval-freq", "50", "--eval-episodes", "1", "--checkpoint-freq", "60"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function ``run(steps, algo="sac")`` that returns the lines of the CSV."""
    monkeypatch.setattr(curves, "RESULTS", tmp_path)

    def called(steps, algo="sac"):
        monkeypatch.setattr(sys, "argv", ["curves", "--algo", algo, "--seeds", "0", "--steps", str(steps), *PENDULUM])
        curves.main()
        return (tmp_path / f"{algo}_Pendulum-v1_0.csv").read_text().splitlines()

    return called


def rows(lines):
    return [line.split(",") for line in lines if line[0].isdigit()]


def returns(lines):
    return [row[3:] for row in rows(lines)]


def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path):
    first = run(150)
    longer = run(250)
    assert rows(longer)[:3] == rows(first)
    assert [json.loads(line[2:])["command"].split()[7] for line in longer if line[0] == "#"] == ["150", "250"]
    (tmp_path / "sac_Pendulum-v1_0.csv").unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    assert returns(run(250)) == returns(longer)


def test_an_interrupted_run_has_all_its_evaluations(run, tmp_path, monkeypatch):
    """The CSV may have changed in any way since the last checkpoint, at 120."""

    def cut(self):
        evaluate(self)
        if self.model.num_timesteps == 150:
            raise KeyboardInterrupt

    evaluate = curves.CurveCallback.evaluate
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(curves.CurveCallback, "evaluate", cut)
        run(200)
    csv = tmp_path / "sac_Pendulum-v1_0.csv"
    assert [row[0] for row in rows(csv.read_text().splitlines())] == ["50", "100", "150"]
    csv.write_text("")
    whole = run(200)
    assert [row[0] for row in rows(whole)] == ["50", "100", "150", "200"]
    csv.unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    assert returns(run(200)) == returns(whole)


def test_a_curve_without_a_checkpoint_is_not_overwritten(run, tmp_path):
    lines = run(100)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(SystemExit, match="no checkpoint to resume from"):
        run(150)
    assert run(100) == lines


def test_a_run_does_not_resume_with_other_hyperparameters(run, monkeypatch):
    lines = run(100)
    monkeypatch.setattr(curves, "hyperparams", lambda *_: {"policy": "MlpPolicy", "learning_starts": 50})
    with pytest.raises(SystemExit, match="Remove its checkpoint"):
        run(150)
    assert run(100) == lines


def test_a_run_interrupted_before_its_first_checkpoint_starts_again(run, tmp_path):
    (tmp_path / "checkpoints" / "sac_Pendulum-v1_0" / ".saving").mkdir(parents=True)
    assert len(rows(run(100))) == 2


def test_seconds_increase_over_a_resumed_run(run):
    run(100)
    seconds = np.array([row[1:3] for row in rows(run(200))], dtype=float)
    assert (np.diff(seconds, axis=0) >= 0).all() and seconds[-1, 1] > 0


def test_a_finished_run_is_not_repeated(run):
    lines = run(100)
    assert run(100) == run(50) == lines


@pytest.mark.parametrize("algo", ["mbpo", "sac-utd", "ppo-zoo", "tdmpc2-4envs"])
def test_other_algorithms(run, algo):
    expected = {"ppo-zoo": ["4096"], "tdmpc2-4envs": ["52", "100"]}  # after a rollout; all environments step at once
    assert [row[0] for row in rows(run(100, algo))] == expected.get(algo, ["50", "100"])


def test_every_variant_has_hyperparameters():
    for algo in curves.ALGORITHMS:
        assert curves.hyperparams(algo, "Hopper-v5")["policy"]
        assert algo in plot.LABELS


def test_interquartile_mean_and_interval():
    """As defined by Agarwal et al. 2021: the mean of the middle half; the interval of three runs covers all of them."""
    np.testing.assert_allclose(plot.interquartile_mean(np.arange(8.0)), 3.5)
    np.testing.assert_allclose(plot.interquartile_mean(np.array([0.0, 1, 2, 100])), 1.5)
    low, high = plot.interval(np.array([[1.0], [2.0], [6.0]]))
    assert (low.item(), high.item()) == (1.0, 6.0)
    low, high = plot.interval(np.random.default_rng(0).normal(size=(100, 2)))
    assert (low < 0.1).all() and (high > -0.1).all() and (high - low < 0.6).all()


def test_the_table_has_a_row_for_each_algorithm():
    seed = np.array([[100, 1, 1, 5.0, 0], [200, 120, 120, 7.0, 0]])
    text = plot.table({"Pendulum-v1": {"mbpo": [seed, seed + np.array([0, 0, 0, 2, 0])], "sac": [seed[:1]]}})
    assert "| Pendulum-v1 | 200 | MBPO | 8 | 7 to 9 | 7, 9 | 2 |" in text
    assert "| Pendulum-v1 | 100 | SAC | 5 |  | 5 | 0 |" in text
    longer = np.vstack([seed, [300, 180, 180, 11.0, 0]])
    text = plot.table({"Pendulum-v1": {"mbpo": [seed], "sac": [longer]}})
    assert text.count("SAC") == 2
    assert "| 200 | SAC | 7 |  | 7 | 2 |" in text and "| 300 | SAC | 11 |  | 11 | 3 |" in text


def test_the_first_evaluation_that_reaches_the_target():
    seeds = [np.array([[100, 0, 0, -300.0, 0], [200, 0, 0, -150.0, 0], [300, 0, 0, last, 0]]) for last in (-400.0, -100.0)]
    never = np.array([[100, 0, 0, -201.0, 0]])
    text = plot.steps_to_targets({"Pendulum-v1": {"mbpo": [*seeds, never]}, "Other-v0": {"mbpo": seeds}})
    assert text.splitlines()[2:] == ["| Pendulum-v1 | -200 | MBPO | 200, 200, not by 100 |"]


def test_seeds_are_compared_at_steps_that_all_of_them_have():
    seeds = [np.array([[100, 0, 0, 1.0, 0], [200, 0, 0, 3.0, 0]]), np.array([[50, 0, 0, 9.0, 0], [100, 0, 0, 2.0, 0]])]
    steps, values = plot.in_common(seeds)
    assert steps.tolist() == [100]
    assert values[:, :, 3].tolist() == [[1.0], [2.0]]


def test_the_results_of_the_docs_are_found():
    assert Path(plot.RESULTS).name == "results" and plot.load_curves()


def printed(monkeypatch, capsys, module, arguments):
    """The last line that a benchmark prints, as JSON."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()
    return capsys.readouterr().out.splitlines()[-1]


def test_the_cost_of_a_step_does_not_include_random_steps(monkeypatch, capsys):
    arguments = ["--env", "Pendulum-v1", "--random-steps", "60", "--steps", "20", "--threads", "1"]
    measured = json.loads(printed(monkeypatch, capsys, step_cost, arguments))
    assert measured["sac_updates"] == 20 * load_hyperparams("mbpo", "Pendulum-v1")["gradient_steps"]
    parts = measured["fitting_seconds"] + measured["imagining_seconds"] + measured["updating_seconds"]
    assert 0 < parts <= measured["seconds"] + 0.2  # each is rounded to a tenth


def test_an_update_has_a_duration(monkeypatch, capsys):
    monkeypatch.setattr(speed, "UPDATES", 1)
    monkeypatch.setattr(speed, "IMAGINED_ROWS", 1_000)
    measured = json.loads(printed(monkeypatch, capsys, speed, ["--only", "update"]))
    assert set(measured) == {"Stable-Baselines3", *speed.OURS}
    assert all(seconds > 0 for seconds in measured.values())  # how many is the machine's affair


SMALL = {"ensemble_size": 2, "n_elites": 1, "net_arch": [16]}


def test_rules_are_judged_on_transitions_that_they_have_not_seen(monkeypatch, capsys):
    """The stream has 750 steps, 250 of them random; one fit on two thirds of it is judged once on the rest."""
    rule = fit_rules.Rule(0.4, dynamics_kwargs=SMALL)
    monkeypatch.setattr(fit_rules, "RULES", {"a rule": rule, "another": rule})
    args = ["--env", "Pendulum-v1", "--random-steps", "250", "--steps", "750", "--start", "500", "--rules", "a rule"]
    row = printed(monkeypatch, capsys, fit_rules, args)
    name, n_gradient_steps, _, *errors = row.strip("| ").split(" | ")
    assert (name, n_gradient_steps) == ("a rule", "200")
    assert all(0 < float(error) < 3 for error in errors)


@pytest.mark.parametrize("args", [["--rules", "no such rule"], ["--start", "15000"]])
def test_bad_arguments_are_refused_before_the_stream_is_collected(monkeypatch, args):
    monkeypatch.setattr(fit_rules, "stream", lambda *_: pytest.fail("a stream was made"))
    monkeypatch.setattr("sys.argv", ["fit_rules", *args])
    with pytest.raises(SystemExit):
        fit_rules.main()


@pytest.mark.parametrize(
    "when, n_pieces_of_fitting",
    [({}, 3), ({"newest": 100}, 3), ({"train_freq": 500}, 3), ({"train_freq": 750}, 1), ({"surprise": 1e9}, 1)],
)
def test_when_rules_fit(when, n_pieces_of_fitting):
    """250 transitions arrive three times, and each time allows a hundred gradient steps in the next fit."""
    buffer = fit_rules.stream("Pendulum-v1", random_steps=1000, steps=1000, seed=0)
    rule = fit_rules.Rule(0.4, dynamics_kwargs=SMALL, **when)
    one_step, later, n_gradient_steps, _ = fit_rules.follow(buffer, "Pendulum-v1", 250, rule, seed=0)
    assert n_gradient_steps == 100 * n_pieces_of_fitting
    assert len(one_step) == len(later) == 3


def test_half_of_the_rows_are_the_newest():
    rows = fit_rules.chosen(100, 10, th.Generator().manual_seed(0))
    assert len(rows.unique()) == 20 and set(range(90, 100)) <= set(rows.tolist())
    assert fit_rules.chosen(15, 10, th.Generator()).tolist() == list(range(15))
