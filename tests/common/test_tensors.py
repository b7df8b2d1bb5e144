"""Tensors from a file are checked before they reach kernels, which check nothing."""

import copy

import pytest
import torch as th
from stable_baselines3 import PPO, SAC

from sb3_mbrl import MBPO, MBTD3, PETS, TDMPC, TDMPC2, Dyna
from sb3_mbrl.algorithms.checkpoints import ExactCheckpoints
from sb3_mbrl.common.tensors import check_finite_tensors, check_optimizer_state, check_tensors, load_tensors, save_tensors

TENSORS = {"weight": th.arange(6.0).reshape(2, 3), "count": th.tensor(3), "empty": th.zeros(0, 2), "on": th.tensor([True])}


def test_tensors_survive_a_round_trip(tmp_path):
    transposed = {**TENSORS, "turned": th.arange(6.0).reshape(2, 3).T}
    save_tensors(tmp_path / "file", transposed, "library.Thing", "{}")
    loaded, config = load_tensors(tmp_path / "file", "library.Thing")
    assert config == "{}" and loaded.keys() == transposed.keys()
    assert all(tensor.equal(loaded[name]) and tensor.dtype == loaded[name].dtype for name, tensor in transposed.items())


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    path = tmp_path / "file"
    save_tensors(path, TENSORS, "library.Thing", '{"a": "\u00e9"}')
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 11):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="damaged"):
            load_tensors(path, "library.Thing")


def test_another_format_is_refused(tmp_path):
    save_tensors(tmp_path / "file", TENSORS, "library.Thing", "{}")
    with pytest.raises(ValueError, match=r"not written by Other.save: format 'library.Thing'"):
        load_tensors(tmp_path / "file", "library.Other")


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"weight": th.zeros(1)},
            r"size mismatch for 'weight', which is torch.float32 of shape \(1,\) instead of torch.float32 of shape \(2, 3\)",
        ),
        ({"weight": th.zeros(2, 3).double()}, "type mismatch for 'weight', which is torch.float64"),
        ({"weight": th.zeros(2, 3).to_sparse()}, "as torch.sparse"),
        ({"weight": th.zeros(1).expand(2, 3)}, "'weight' has another layout in memory"),
        ({"weight": th.zeros(3, 2).T}, "'weight' has another layout in memory"),
        ({"weight": [[0.0] * 3] * 2}, "type mismatch for 'weight', which is a list"),
        ({"surplus": th.zeros(1)}, r"it lacks \[\] and holds the unknown \['surplus'\]"),
    ],
)
def test_other_tensors_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=f"The file does not fit: .*{message}"):
        check_tensors({**TENSORS, **changes}, TENSORS, "The file")


def test_a_missing_tensor_does_not_fit():
    with pytest.raises(ValueError, match=r"it lacks \['weight'\]"):
        check_tensors({"count": TENSORS["count"]}, {name: TENSORS[name] for name in ("count", "weight")}, "The file")


def test_an_axis_of_one_entry_may_have_any_stride():
    check_tensors({"a": th.zeros(4, 1).T}, {"a": th.zeros(1, 4)}, "The file")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_named(value):
    with pytest.raises(ValueError, match="The file holds NaN or infinity in 'b'"):
        check_finite_tensors({"a": th.zeros(2), "b": th.tensor([0, value])}, "The file")
    check_finite_tensors({"b": th.tensor(value)}, "The file", except_for=["b"])


# ---------------------------------------------------------------- states of optimizers


def trained(kind=th.optim.Adam, **options):
    parameters = [th.nn.Parameter(th.zeros(shape)) for shape in ((40, 3), (3,))]
    optimizer = kind([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=0.1, **options)
    for parameter in parameters:
        parameter.grad = th.ones_like(parameter)
    optimizer.step()
    return optimizer


def change(name, value):
    def apply(state):
        state["state"][0][name] = value

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        change("exp_avg", th.zeros(1)),
        change("exp_avg_sq", th.zeros(1).expand(40, 3)),
        change("exp_avg", th.zeros(40, 3).double()),
        change("step", th.zeros(0)),
        change("step", th.tensor(1)),
        change("step", 1),
        change("surplus", th.zeros(40, 3)),
        lambda state: state["state"][0].pop("exp_avg"),
        lambda state: state["state"].update({0: state["state"][1], 1: state["state"][0]}),
        lambda state: state["state"].update({7: state["state"][0]}),
        lambda state: state["state"].update({0: 3}),
        lambda state: state["param_groups"].pop(),
        lambda state: state["param_groups"][0].update(amsgrad=True),
        lambda state: state["param_groups"][0].update(params=[1, 0]),
        lambda state: state.pop("state"),
        lambda state: state.update(param_groups=3),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_state_of_other_parameters_is_refused(damage, fused):
    optimizer = trained(fused=fused)
    state = copy.deepcopy(optimizer.state_dict())
    check_optimizer_state(optimizer, state, "The state")
    damage(state)
    with pytest.raises(ValueError, match="The state.* does not fit"):
        check_optimizer_state(optimizer, state, "The state")


@pytest.mark.parametrize("kind", [th.optim.Adam, th.optim.AdamW, th.optim.SGD, th.optim.RMSprop])
def test_states_of_the_same_parameters_fit(kind):
    new = kind(trained(kind).param_groups, lr=0.1)
    check_optimizer_state(new, trained(kind).state_dict(), "The state")
    check_optimizer_state(new, new.state_dict(), "The state")  # before its first step
    if kind is not th.optim.RMSprop:
        check_optimizer_state(new, trained(kind, fused=True).state_dict(), "The state")
    if kind in (th.optim.Adam, th.optim.AdamW):
        check_optimizer_state(new, trained(kind, amsgrad=True).state_dict(), "The state")


def test_a_fused_kernel_of_another_optimizer_is_protected_too():
    optimizer = trained(th.optim.SGD, fused=True, momentum=0.9)
    state = copy.deepcopy(optimizer.state_dict())
    change("momentum_buffer", th.zeros(1))(state)
    with pytest.raises(ValueError, match="does not fit"):
        check_optimizer_state(optimizer, state, "The state")


# ---------------------------------------------------------------- algorithms


class ExactSAC(ExactCheckpoints, SAC):
    pass


@pytest.fixture(scope="module")
def agent():
    kwargs = {"learning_starts": 5, "buffer_size": 50, "batch_size": 4, "policy_kwargs": {"net_arch": [4]}, "device": "cpu"}
    return ExactSAC("MlpPolicy", "Pendulum-v1", **kwargs).learn(10)


@pytest.mark.parametrize("name", ["actor.optimizer", "critic.optimizer", "ent_coef_optimizer"])
@pytest.mark.parametrize("exact_match", [True, False])
def test_an_algorithm_refuses_the_state_of_another_optimizer_and_stays_as_it_is(agent, name, exact_match):
    before = copy.deepcopy(agent.get_parameters())
    parameters = copy.deepcopy(before) if exact_match else {name: copy.deepcopy(before[name])}
    parameters[name]["state"][0]["exp_avg"] = th.zeros(7)
    with pytest.raises(ValueError, match=f"The state of {name}.* does not fit: size mismatch for 'exp_avg'"):
        agent.set_parameters(parameters, exact_match)
    th.testing.assert_close(agent.get_parameters(), before, rtol=0, atol=0)
    agent.set_parameters(before)


def test_a_zip_with_the_state_of_another_optimizer_is_refused(agent, tmp_path):
    state = agent.critic.optimizer.state_dict()["state"][0]
    right = state["exp_avg"]
    state["exp_avg"] = th.zeros(1)
    agent.save(tmp_path / "model")
    state["exp_avg"] = right
    with pytest.raises(ValueError, match=r"critic.optimizer.* does not fit"):
        ExactSAC.load(tmp_path / "model")


def test_a_zip_with_an_entropy_coefficient_of_another_size_is_refused(agent, tmp_path):
    """SB3 restores the coefficient after the state of its optimizer."""
    right = agent.log_ent_coef.data
    agent.log_ent_coef.data = th.zeros(1000)
    agent.save(tmp_path / "model")
    agent.log_ent_coef.data = right
    with pytest.raises(ValueError, match=r"ent_coef_optimizer.* does not fit"):
        ExactSAC.load(tmp_path / "model")


@pytest.mark.parametrize(
    "make",
    [
        lambda: MBPO("MlpPolicy", "Pendulum-v1", device="cpu"),
        lambda: MBTD3("MlpPolicy", "Pendulum-v1", device="cpu"),
        lambda: PETS("MPCPolicy", "Pendulum-v1", device="cpu"),
        lambda: Dyna(PPO, "MlpPolicy", "Pendulum-v1", device="cpu"),
        lambda: TDMPC("MlpPolicy", "Pendulum-v1", device="cpu"),
        lambda: TDMPC2("MlpPolicy", "Pendulum-v1", model_size=1, device="cpu"),
    ],
    ids=["MBPO", "MBTD3", "PETS", "Dyna", "TDMPC", "TDMPC2"],
)
def test_every_optimizer_of_every_algorithm_is_protected(make):
    model = make()
    parameters = model.get_parameters()
    optimizers = [name for name in parameters if "optimizer" in name]
    assert len(optimizers) >= 1
    for name in optimizers:
        one_number = {"step": th.zeros(()), "exp_avg": th.zeros(1, 1, 1), "exp_avg_sq": th.zeros(1, 1, 1)}
        wrong = {**parameters[name], "state": {0: one_number}}
        with pytest.raises(ValueError, match=f"The state of {name}.* does not fit: size mismatch for 'exp_avg'"):
            model.set_parameters({**parameters, name: wrong})


def test_the_optimizer_of_an_agent_in_a_model_is_protected_too(tmp_path):
    model = Dyna(PPO, "MlpPolicy", "Pendulum-v1", device="cpu")
    optimizer = model.agent.policy.optimizer
    parameter = optimizer.param_groups[0]["params"][1]
    optimizer.state[parameter] = {"step": th.zeros(()), "exp_avg": th.zeros(1), "exp_avg_sq": th.zeros(1)}
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"The state of policy.optimizer.* does not fit"):
        Dyna.load(tmp_path / "model")
