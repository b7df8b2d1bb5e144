import json
import pickle

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from safetensors.torch import save_file

from sb3_mbrl.common.tensors import load_tensors, save_tensors
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from sb3_mbrl.dynamics.files import FILE_FORMAT
from sb3_mbrl.dynamics.learned_termination import LearnedTermination
from sb3_mbrl.tasks.termination_rules import Bound, NeverTerminates, TerminatesOutside
from tests.dynamics.models import (
    ACTION_DIM,
    DISCRETE,
    OBS_DIM,
    assert_equal_states,
    discrete_transitions,
    ensemble,
    inputs,
    seeded,
    transitions,
)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    """A model that has everything a file can contain, and its parts."""
    model = ensemble(termination_fn=LearnedTermination(OBS_DIM, ACTION_DIM, net_arch=(4,)))
    model.fit(transitions(terminated=th.arange(200) % 4 == 0), seeded(), max_epochs=1)
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save(path)
    tensors, config = load_tensors(path, FILE_FORMAT)
    return path, tensors, json.loads(config)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"probabilistic": False, "activation": "relu", "weight_decay": (0.1, 0.2, 0.3), "normalize_targets": False},
        {"learn_logvar_bounds": False, "nll_beta": 0.0, "learning_rate": 1e-4, "ensemble_size": 5, "n_elites": 3},
    ],
)
def test_a_loaded_model_steps_and_keeps_learning_bit_for_bit(tmp_path, kwargs):
    model = ensemble(**kwargs)
    model.fit(transitions(), seeded(), max_epochs=3)
    model.save(tmp_path / "folder" / "model.safetensors")
    loaded = ProbabilisticEnsemble.load(tmp_path / "folder" / "model.safetensors", device="cpu")
    assert_equal_states(model, loaded)
    for name in (*kwargs, "net_arch", "weight_decay", "observation_space", "action_space"):
        assert getattr(loaded, name) == getattr(model, name), name
    steps = [m.step(*inputs(), seeded(3), uncertainty=True) for m in (model, loaded)]
    assert all(th.equal(left, right) for left, right in zip(*steps, strict=True))
    reports = [m.fit(transitions(300, seed=5), seeded(7), max_epochs=3) for m in (model, loaded)]
    assert reports[0].holdout_mse == reports[1].holdout_mse
    assert_equal_states(model, loaded)


def test_an_unfitted_model_stays_unfitted(tmp_path):
    ensemble().save(tmp_path / "model")
    assert not ProbabilisticEnsemble.load(str(tmp_path / "model")).is_fitted


def test_a_loaded_termination_keeps_learning(tmp_path):
    data = transitions(terminated=th.arange(200) % 4 == 0)
    model = ensemble(termination_fn=LearnedTermination(OBS_DIM, ACTION_DIM, net_arch=(8, 6), learning_rate=3e-3))
    model.fit(data, seeded(), max_epochs=1)
    model.save(tmp_path / "model")
    loaded = ProbabilisticEnsemble.load(tmp_path / "model", device="cpu")
    assert_equal_states(model, loaded)
    for m in (model, loaded):
        m.fit(data, seeded(1), max_epochs=1)
    assert_equal_states(model, loaded)


def test_a_known_termination_is_restored(tmp_path):
    model = ensemble(termination_fn=TerminatesOutside((Bound(0, 1, 0.7, float("inf")),)))
    model.save(tmp_path / "model")
    assert ProbabilisticEnsemble.load(tmp_path / "model").termination_fn == model.termination_fn


def test_a_model_of_discrete_actions_is_restored(tmp_path):
    model = ensemble(action_space=DISCRETE, termination_fn=LearnedTermination(OBS_DIM, 3, net_arch=(8,)))
    model.fit(discrete_transitions(), seeded(), max_epochs=1)
    model.save(tmp_path / "model")
    loaded = ProbabilisticEnsemble.load(tmp_path / "model", device="cpu")
    assert loaded.action_space == DISCRETE
    assert_equal_states(model, loaded)
    steps = [each.step(th.zeros(3, OBS_DIM), th.eye(3), seeded(3)) for each in (model, loaded)]
    assert steps[0].next_obs.equal(steps[1].next_obs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_spaces_are_restored_with_infinite_bounds_and_their_type(tmp_path, dtype):
    low = np.array([-np.inf, -0.1, 1 / 3], dtype)
    obs_space = spaces.Box(low, np.array([np.inf, np.inf, 2 / 3], dtype), dtype=dtype)
    action_space = spaces.Box(-0.4, 0.1, (2, 2), np.float32)
    ensemble(obs_space=obs_space, action_space=action_space).save(tmp_path / "model")
    loaded = ProbabilisticEnsemble.load(tmp_path / "model")
    assert loaded.observation_space == obs_space
    assert loaded.action_space == action_space


@pytest.mark.parametrize("name", ["reward_fn", "termination_fn"])
def test_functions_of_the_user_must_be_passed_again(tmp_path, name):
    def function(obs, action, next_obs):
        return next_obs[:, 0] > 0 if name == "termination_fn" else next_obs[:, 0]

    ensemble(**{name: function}).save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"your own {name}, .*: pass it again"):
        ProbabilisticEnsemble.load(tmp_path / "model")
    assert getattr(ProbabilisticEnsemble.load(tmp_path / "model", **{name: function}), name) is function


def test_a_function_takes_the_place_of_a_learned_termination(saved_once):
    model = ProbabilisticEnsemble.load(saved_once[0], termination_fn=NeverTerminates())
    assert model.termination_fn == NeverTerminates()


def test_modules_of_the_user_may_hold_infinity(tmp_path):
    class Reward(th.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", th.tensor([0.0, -float("inf")]))

        def forward(self, obs, action, next_obs):
            return obs[:, 0]

    ensemble(reward_fn=Reward()).save(tmp_path / "model")
    ProbabilisticEnsemble.load(tmp_path / "model", reward_fn=Reward())


def test_a_model_that_diverged_does_not_replace_a_good_file(tmp_path):
    good, diverged = ensemble(seed=1), ensemble(seed=2)
    good.save(tmp_path / "model")
    with th.no_grad():
        diverged.weights[1][0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"was not saved: it holds NaN or infinity in 'weights.1'"):
        diverged.save(tmp_path / "model")
    assert_equal_states(ProbabilisticEnsemble.load(tmp_path / "model", device="cpu"), good)


def test_a_file_is_json_and_numbers_and_nothing_is_unpickled(tmp_path, monkeypatch):
    model = ensemble(termination_fn=LearnedTermination(OBS_DIM, ACTION_DIM))
    model.fit(transitions(terminated=th.arange(200) % 4 == 0), seeded(), max_epochs=1)
    model.save(tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header.pop("__metadata__")["config"])["ensemble_size"] == 3
    numbers = sum(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in header.values())
    assert 8 + int.from_bytes(content[:8], "little") + numbers == len(content)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (th, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert_equal_states(ProbabilisticEnsemble.load(tmp_path / "model", device="cpu"), model)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    ensemble().save(tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    (tmp_path / "model").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        ProbabilisticEnsemble.load(tmp_path / "model")
    save_file({"weights.0": th.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="not written by ProbabilisticEnsemble"):
        ProbabilisticEnsemble.load(tmp_path / "foreign")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"weights": [0.0] * 100}))
    with pytest.raises(ValueError, match="not a safetensors file"):
        ProbabilisticEnsemble.load(tmp_path / "pickle")
    with pytest.raises(FileNotFoundError):
        ProbabilisticEnsemble.load(tmp_path / "missing")


@pytest.mark.parametrize(
    "name, change",
    [
        ("optimizer.0.exp_avg", lambda tensor: tensor.flatten()[:1].clone()),  # the kernel would write beyond it
        ("optimizer.0.exp_avg_sq", lambda tensor: None),
        ("optimizer.3.step", lambda tensor: tensor[None]),
        ("optimizer.99.step", lambda tensor: th.zeros(())),
        ("optimizer.x.step", lambda tensor: th.zeros(())),
        ("termination_optimizer.0.exp_avg", lambda tensor: tensor[:1].clone()),
        ("optimizer.1.exp_avg", lambda tensor: tensor.double()),
        ("weights.1", lambda tensor: tensor[:, :1].clone()),
        ("biases.0", lambda tensor: None),
        ("biases.0", lambda tensor: tensor.half()),
        ("input_normalizer.std", lambda tensor: tensor * float("nan")),
        ("optimizer.0.exp_avg", lambda tensor: tensor + float("inf")),
        ("surplus", lambda tensor: th.zeros(1)),
    ],
)
def test_tensors_of_another_model_are_refused(saved_once, tmp_path, name, change):
    _, tensors, config = saved_once
    changed = change(tensors.get(name))
    kept = {other: tensor for other, tensor in tensors.items() if other != name}
    save_tensors(tmp_path / "model", {**kept, **({} if changed is None else {name: changed})}, FILE_FORMAT, json.dumps(config))
    with pytest.raises(ValueError, match="does not fit|holds NaN or infinity|do not have the sizes"):
        ProbabilisticEnsemble.load(tmp_path / "model")


NASTY = [None, -1, "os.system", [[]], {"n": 10**12, "start": 0, "dtype": "int64"}]


def test_a_configuration_of_anything_else_is_refused(saved_once, tmp_path):
    _, tensors, config = saved_once
    bounds = [{"start": 9, "stop": None, "low": 0, "high": None, "inclusive": True}]
    changes = [{name: value} for name in config for value in NASTY if value != config[name]]
    changes += [{"termination_fn": {"kind": "outside", "bounds": bounds}, "termination_kwargs": None}]
    changes += [{"net_arch": [10**9, 12]}, {"ensemble_size": 10**9}, {"termination_kwargs": {"net_arch": [10**9]}}]
    configs = [{**config, **change} for change in changes]
    configs += [{key: value for key, value in config.items() if key != name} for name in config]
    for wrong in (*configs, [], None, "config"):
        save_tensors(tmp_path / "model", tensors, FILE_FORMAT, json.dumps(wrong))
        with pytest.raises(ValueError):
            ProbabilisticEnsemble.load(tmp_path / "model")
