"""Every ``save`` leaves either the old file or the new one, and files of other algorithms are refused."""

import os

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO, SAC

from sb3_mbrl import MBPO, MBTD3, MBTQC, PETS, TDMPC, TDMPC2, Dyna, DynaQ, MBCrossQ, MPCPolicy
from sb3_mbrl.dynamics import ProbabilisticEnsemble, SimulatorModel
from sb3_mbrl.mbpo import MBPOMixin

SMALL = {"buffer_size": 10, "seed": 0, "device": "cpu"}
ALGORITHMS = {
    **{
        cls.__name__: lambda cls=cls: cls("MlpPolicy", "Pendulum-v1", **SMALL)
        for cls in (MBPO, MBTQC, MBCrossQ, MBTD3, TDMPC, TDMPC2)
    },
    "PETS": lambda: PETS("MPCPolicy", "Pendulum-v1", **SMALL),
    "Dyna": lambda: Dyna(SAC, env="Pendulum-v1", algorithm_kwargs={"buffer_size": 10}, **SMALL),
    "DynaQ": lambda: DynaQ("TabularPolicy", "FrozenLake-v1", seed=0),
}


def ensemble():
    box = spaces.Box(-1, 1, (2,), np.float32)
    return ProbabilisticEnsemble(box, box, ensemble_size=1, n_elites=1, net_arch=[4], device="cpu")


SAVES = {
    **{name: lambda make=make: make().save for name, make in ALGORITHMS.items()},
    **{
        f"{name}'s replay buffer": lambda make=make: make().save_replay_buffer
        for name, make in ALGORITHMS.items()
        if name != "DynaQ"
    },
    "ProbabilisticEnsemble": lambda: ensemble().save,
    "MPCPolicy": lambda: MPCPolicy(SimulatorModel("Pendulum-v1")).save,
}


class Interrupted(BaseException):
    """An interruption that, like KeyboardInterrupt, is not an Exception."""


def interrupt(*args, **kwargs):
    raise Interrupted


@pytest.mark.parametrize("name", SAVES)
def test_a_save_that_is_interrupted_leaves_the_old_file(name, tmp_path, monkeypatch):
    save, path = SAVES[name](), tmp_path / "saved.zip"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(Interrupted):
        save(path)
    assert path.read_bytes() == b"old" and [each.name for each in tmp_path.iterdir()] == ["saved.zip"]


@pytest.mark.parametrize("name", ["MBPO", "TDMPC2", "Dyna"])
def test_a_replay_buffer_goes_where_stable_baselines3_saves_it(name, tmp_path):
    model = ALGORITHMS[name]()
    model.replay_buffer.pos = 7
    model.save_replay_buffer(str(tmp_path / "buffer"))
    with open(tmp_path / "file", "wb") as file:
        model.save_replay_buffer(file)
    assert (tmp_path / "buffer.pkl").read_bytes() == (tmp_path / "file").read_bytes()
    other = ALGORITHMS[name]()
    other.load_replay_buffer(tmp_path / "buffer")
    assert other.replay_buffer.pos == 7


@pytest.mark.parametrize("name", ["MBPO", "DynaQ"])
def test_a_folder_is_refused_as_a_file(name, tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path} is a folder\..*load_checkpoint"):
        type(ALGORITHMS[name]()).load(tmp_path)


def test_the_table_of_another_algorithm_is_refused_and_the_file_is_named(tmp_path):
    ALGORITHMS["DynaQ"]().save(tmp_path / "table")
    ALGORITHMS["MBPO"]().save(tmp_path / "networks")
    PPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "foreign")
    for cls, name, saver in [(DynaQ, "networks", "MBPO"), (MBPO, "table", "DynaQ"), (DynaQ, "foreign", "another library")]:
        for path in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(ValueError, match=f"{tmp_path / name} was saved by {saver}"):
                cls.load(path)
    assert DynaQ.load(tmp_path / "table").policy.q.shape == (16, 4)


def test_a_subclass_and_its_algorithm_load_each_others_files(tmp_path):
    class Mine(MBPO):
        """A subclass that inherits the name of the algorithm."""

    class MyOwn(MBPO):
        algorithm_name = "MyOwn"

    for saver, loader in ((Mine, MBPO), (MBPO, Mine)):
        saver("MlpPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "model")
        loader.load(tmp_path / "model")
    with pytest.raises(ValueError, match="was saved by MBPO, not by MyOwn"):
        MyOwn.load(tmp_path / "model")


def test_an_algorithm_without_a_name_is_identified_by_its_class(tmp_path):
    class MBMine(MBPOMixin, SAC): ...

    MBMine("MlpPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "model")
    MBMine.load(tmp_path / "model")
    with pytest.raises(ValueError, match="was saved by MBMine, not by MBPO"):
        MBPO.load(tmp_path / "model")
