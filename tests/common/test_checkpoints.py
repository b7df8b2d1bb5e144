"""A save is whole or not there; a checkpoint that cannot be loaded says why."""

import io
import itertools
import json
import os
import pathlib
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.common.checkpoints import ExactCheckpointCallback, ExactCheckpoints


class ExactSAC(ExactCheckpoints, SAC):
    pass


class MyExactSAC(ExactSAC):
    pass


class ExactPPOLike(ExactCheckpoints, SAC):
    """Another algorithm, as far as files are concerned."""


class PrioritisedBuffer(ReplayBuffer):
    """What users add: more arrays, of any shape and in any container."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.priorities = np.ones((self.buffer_size, self.n_envs))
        self.tree = {"sums": np.zeros(2 * self.buffer_size), "counts": [np.zeros(self.buffer_size, dtype=int)]}
        self.names = np.array(["a"] * self.buffer_size, dtype=object)


TINY = {
    "learning_starts": 10,
    "buffer_size": 200,
    "batch_size": 8,
    "policy_kwargs": {"net_arch": [4]},
    "seed": 0,
    "device": "cpu",
}


def make_model(cls=ExactSAC, env="Pendulum-v1", **changes):
    return cls("MlpPolicy", env, **{**TINY, **changes})


def save_for_ever(folder):
    """What the process that gets killed does."""
    th.set_num_threads(1)
    model = make_model().learn(20)
    for number in itertools.count(100):
        model.num_timesteps = model.replay_buffer.pos = number
        print("saving", number, flush=True)
        model.save_checkpoint(folder)
        print("saved", number, flush=True)


if __name__ == "__main__":
    save_for_ever(sys.argv[1])


import pytest  # noqa: E402  the process above does without

FILES = ["model.zip", "replay_buffer.pkl", "extras.pth", "environment.pkl", "random.pkl", "manifest.json"]


@pytest.fixture(scope="module")
def trained():
    return make_model().learn(20)


@pytest.fixture(scope="module")
def saved_once(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved_once")
    trained.save_checkpoint(folder)
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    """A folder with a checkpoint, to be damaged."""
    return pathlib.Path(shutil.copytree(saved_once, tmp_path / "saved"))


def only_version(folder):
    (version,) = folder.iterdir()
    return version


class TestFolder:
    def test_the_last_one_is_kept(self, trained, tmp_path):
        for _ in range(3):
            trained.save_checkpoint(tmp_path / "new" / "folder")
        assert only_version(tmp_path / "new" / "folder").name == "checkpoint-00000003"

    def test_files(self, saved):
        version = only_version(saved)
        assert sorted(path.name for path in version.iterdir()) == sorted(FILES)
        manifest = json.loads((version / "manifest.json").read_text())
        assert (manifest["algorithm"], manifest["num_timesteps"], manifest["n_envs"]) == ("ExactSAC", 20, 1)

    def test_strangers_and_leftovers(self, trained, saved):
        (saved / "notes.txt").write_text("mine")
        (saved / "checkpoint-best").mkdir()
        (saved / ".saving").mkdir()
        (saved / ".saving" / "model.zip").write_text("half")
        assert ExactSAC.load_checkpoint(saved).num_timesteps == 20
        trained.save_checkpoint(str(saved))
        assert sorted(os.listdir(saved)) == ["checkpoint-00000002", "checkpoint-best", "notes.txt"]

    def test_the_newest_is_loaded(self, saved):
        shutil.copytree(saved / "checkpoint-00000001", saved / "checkpoint-00000010")
        (saved / "checkpoint-00000001" / "model.zip").unlink()  # killed while deleting it
        assert ExactSAC.load_checkpoint(saved).num_timesteps == 20

    def test_a_failed_save_leaves_nothing(self, trained, saved, monkeypatch):
        monkeypatch.setattr(ExactSAC, "_checkpoint_extras", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained.save_checkpoint(saved)
        assert os.listdir(saved) == ["checkpoint-00000001"]


class TestRoundTrip:
    def test_env_and_streams(self, saved, trained):
        random.seed(1)
        np.random.seed(1)
        th.manual_seed(1)
        env = make_vec_env("Pendulum-v1")
        model = ExactSAC.load_checkpoint(saved, env=env)
        state = pickle.loads((only_version(saved) / "random.pkl").read_bytes())
        assert random.getstate() == state["python"]
        assert np.array_equal(np.random.get_state()[1], state["numpy"][1])
        assert th.equal(th.get_rng_state(), state["torch"])
        assert model.action_space is env.action_space
        assert model.action_space.np_random.bit_generator.state == trained.action_space.np_random.bit_generator.state
        assert np.array_equal(env.envs[0].unwrapped.state, trained.get_env().envs[0].unwrapped.state)
        assert np.array_equal(model._last_obs, trained._last_obs)

    def test_force_reset(self, saved):
        model = ExactSAC.load_checkpoint(saved, env="Pendulum-v1", force_reset=True)
        assert model._last_obs is None
        model.learn(5, reset_num_timesteps=False)
        # Not the first episode of the run once more
        assert not np.array_equal(model.replay_buffer.observations[20], model.replay_buffer.observations[0])

    def test_observation_space_stream(self, tmp_path):
        model = make_model()
        model.observation_space.seed(7)
        model.save_checkpoint(tmp_path)
        loaded = ExactSAC.load_checkpoint(tmp_path, env="Pendulum-v1")
        assert np.array_equal(loaded.observation_space.sample(), model.observation_space.sample())

    def test_arguments_of_load(self, saved):
        model = ExactSAC.load_checkpoint(saved, batch_size=3, custom_objects={"learning_rate": 1e-5})
        assert (model.batch_size, model.learning_rate) == (3, 1e-5)

    def test_subclass_of_a_user(self, saved):
        assert isinstance(MyExactSAC.load_checkpoint(saved), MyExactSAC)


class TestReplayBuffer:
    def test_room_on_disk(self, tmp_path):
        model = make_model(buffer_size=1_000_000).learn(20)
        model.save_checkpoint(tmp_path)
        assert (only_version(tmp_path) / "replay_buffer.pkl").stat().st_size < 10_000
        loaded = ExactSAC.load_checkpoint(tmp_path)
        assert loaded.replay_buffer.observations.shape == (1_000_000, 1, 3)
        assert np.array_equal(loaded.replay_buffer.observations[:25], model.replay_buffer.observations[:25])

    @pytest.mark.parametrize("steps", [0, 13, 16, 20])
    def test_empty_filled_full_and_wrapped_around(self, tmp_path, steps):
        model = make_model(buffer_size=16).learn(steps)
        model.save_checkpoint(tmp_path)
        loaded = ExactSAC.load_checkpoint(tmp_path).replay_buffer
        assert (loaded.pos, loaded.full) == (steps % 16, steps >= 16)
        for name, value in vars(model.replay_buffer).items():
            assert np.array_equal(getattr(loaded, name), value)

    @pytest.mark.parametrize("steps", [13, 20])
    def test_class_of_a_user(self, tmp_path, steps):
        model = make_model(buffer_size=16, replay_buffer_class=PrioritisedBuffer).learn(steps)
        model.replay_buffer.tree["sums"][-1] = 5
        model.replay_buffer.tree["counts"][0][2] = 5
        model.save_checkpoint(tmp_path)
        loaded = ExactSAC.load_checkpoint(tmp_path).replay_buffer
        assert type(loaded) is PrioritisedBuffer
        assert np.array_equal(loaded.priorities, np.ones((16, 1)))  # also where nothing was written
        assert np.array_equal(loaded.tree["sums"], model.replay_buffer.tree["sums"])
        assert np.array_equal(loaded.tree["counts"][0], model.replay_buffer.tree["counts"][0])
        assert loaded.names.tolist() == ["a"] * 16

    def test_dict_observations(self, tmp_path):
        from sb3_mbrl.common.checkpoints import _write_replay_buffer

        buffer = DictReplayBuffer(10_000, spaces.Dict({"a": spaces.Box(0, 1, (5,))}), spaces.Box(0, 1, (1,)), device="cpu")
        one = np.ones((1, 5))
        buffer.add({"a": one}, {"a": one}, np.ones((1, 1)), np.ones(1), np.ones(1), [{}])
        _write_replay_buffer(tmp_path / "buffer.pkl", buffer)
        assert (tmp_path / "buffer.pkl").stat().st_size < 10_000
        assert np.array_equal(pickle.loads((tmp_path / "buffer.pkl").read_bytes()).observations["a"], buffer.observations["a"])


class TestBadCheckpoints:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("damage", ["cut", "changed", "empty", "missing"])
    def test_damaged_files(self, saved, name, damage):
        file = only_version(saved) / name
        content = bytearray(file.read_bytes())
        if damage == "missing":
            file.unlink()
        elif damage == "empty":
            file.write_bytes(b"")
        elif damage == "cut":
            file.write_bytes(content[: len(content) // 2])
        else:
            content[len(content) // 2] ^= 255
            file.write_bytes(content)
        with pytest.raises(ValueError, match=f"is damaged or was not written .*{name}|manifest|JSON|UTF|utf"):
            ExactSAC.load_checkpoint(saved, env="Pendulum-v1")

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"no checkpoint in .*nowhere\. Pass the folder"):
            ExactSAC.load_checkpoint(tmp_path / "nowhere")

    def test_foreign_folder(self, tmp_path):
        (tmp_path / "model.zip").write_text("")
        with pytest.raises(ValueError, match="no checkpoint in"):
            ExactSAC.load_checkpoint(tmp_path)

    def test_foreign_folder_of_the_same_name(self, tmp_path):
        (tmp_path / "checkpoint-00000500").mkdir()
        (tmp_path / "checkpoint-00000500" / "manifest.json").write_text('{"files": []}')
        with pytest.raises(ValueError, match="not written by save_checkpoint"):
            ExactSAC.load_checkpoint(tmp_path)

    def test_another_algorithm(self, saved):
        with pytest.raises(ValueError, match="was saved by ExactSAC, not by ExactPPOLike"):
            ExactPPOLike.load_checkpoint(saved)

    def test_other_spaces(self, saved):
        with pytest.raises(ValueError, match="Observation spaces do not match"):
            ExactSAC.load_checkpoint(saved, env=make_vec_env("MountainCarContinuous-v0"))

    def test_another_number_of_envs(self, saved):
        with pytest.raises(ValueError, match="saved with 1 environments, the one given has 2"):
            ExactSAC.load_checkpoint(saved, env=make_vec_env("Pendulum-v1", 2))

    def test_other_wrappers(self, saved):
        with pytest.raises(ValueError, match="Wrap it in the same way"):
            ExactSAC.load_checkpoint(saved, env=VecNormalize(make_vec_env("Pendulum-v1")))

    def test_a_class_that_is_gone(self, trained, saved, monkeypatch):
        make_model(replay_buffer_class=PrioritisedBuffer).save_checkpoint(saved)
        monkeypatch.setattr(ExactSAC, "load", lambda *args, **kwargs: trained)  # the zip would need the class too
        monkeypatch.delattr(sys.modules[__name__], "PrioritisedBuffer")
        with pytest.raises(ValueError, match=r"holds an object of a class that is not here .*PrioritisedBuffer"):
            ExactSAC.load_checkpoint(saved)


class Dead(BaseException):
    """No code runs after a kill: neither ``except Exception`` nor a clean-up does."""


def die_at(monkeypatch, call):
    """The process dies at the given call to the file system, and stays dead."""
    calls = itertools.count(1)

    def deadly(function):
        def wrapper(*args, **kwargs):
            if next(calls) >= call:
                raise Dead
            return function(*args, **kwargs)

        return wrapper

    for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (shutil, "rmtree"), (os, "open")):
        monkeypatch.setattr(module, name, deadly(getattr(module, name)))


def test_dying_at_every_call_to_the_file_system(tmp_path):
    model = make_model().learn(20)
    model.save_checkpoint(tmp_path)
    for call in itertools.count(1):
        model.num_timesteps = model.replay_buffer.pos = 20 + call
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, call)
            try:
                model.save_checkpoint(tmp_path)
                survived = True
            except Dead:
                survived = False
        loaded = ExactSAC.load_checkpoint(tmp_path)
        assert loaded.num_timesteps == loaded.replay_buffer.pos
        assert loaded.num_timesteps == 20 + call or not survived
        if survived:
            break
    assert call > 15
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
@pytest.mark.parametrize("after", [0.03, 0.11, 0.2])
def test_killed_at_a_random_moment(tmp_path, after):
    with subprocess.Popen([sys.executable, __file__, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        read = [next(lines) for _ in range(2)]
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        read += list(lines)
    begun, done = ([int(line.split()[1]) for line in read if line.startswith(f"{what} ")] for what in ("saving", "saved"))
    loaded = ExactSAC.load_checkpoint(tmp_path, env="Pendulum-v1")
    assert done[-1] <= loaded.num_timesteps <= begun[-1]
    assert loaded.replay_buffer.pos == loaded.num_timesteps


class TestCallback:
    def test_saves_after_the_updates(self, tmp_path):
        model = make_model(learning_starts=0)
        seen = []

        def save_checkpoint(folder):
            ExactSAC.save_checkpoint(model, folder)
            seen.append((model.num_timesteps, model.replay_buffer.pos, model._n_updates))

        model.save_checkpoint = save_checkpoint
        model.learn(40, ExactCheckpointCallback(15, tmp_path), log_interval=None)
        assert seen == [(15, 15, 15), (30, 30, 30)]
        model.learn(20, ExactCheckpointCallback(20, tmp_path), reset_num_timesteps=False)
        assert seen[2:] == [(60, 60, 60)]

    def test_says_so(self, tmp_path, capsys):
        make_model().learn(10, ExactCheckpointCallback(10, tmp_path, verbose=2))
        assert "Checkpoint at step 10" in capsys.readouterr().out

    def test_bad_frequency(self, tmp_path):
        with pytest.raises(ValueError, match="save_freq must be at least 1"):
            ExactCheckpointCallback(0, tmp_path)

    def test_algorithms_of_sb3(self, tmp_path):
        with pytest.raises(ValueError, match="SAC has no save_checkpoint"):
            SAC("MlpPolicy", "Pendulum-v1", **TINY).learn(5, ExactCheckpointCallback(1, tmp_path))


class TestSaveAndLoad:
    """``save`` and ``load`` keep SB3's rules."""

    @pytest.mark.parametrize("kind", [str, pathlib.Path])
    @pytest.mark.parametrize("name, file", [("model", "model.zip"), ("model.zip", "model.zip"), ("model.v1", "model.v1")])
    def test_suffix(self, trained, tmp_path, kind, name, file):
        trained.save(kind(tmp_path / name))
        assert os.listdir(tmp_path) == [file]
        assert ExactSAC.load(kind(tmp_path / name)).num_timesteps == 20

    def test_buffers_and_open_files(self, trained, tmp_path):
        buffer = io.BytesIO()
        trained.save(buffer)
        assert ExactSAC.load(buffer).num_timesteps == 20
        with open(tmp_path / "model", "wb") as file:
            trained.save(file)
        with open(tmp_path / "model", "rb") as file:
            assert ExactSAC.load(file).num_timesteps == 20
            assert not file.closed

    def test_folders(self, trained, tmp_path):
        with pytest.warns(UserWarning, match="does not exist. Will create it"):
            trained.save(tmp_path / "new" / "model")
        (tmp_path / "model.zip").mkdir()
        with pytest.warns(UserWarning, match=r"is a folder. Will save instead to .*model.zip_2"):
            trained.save(tmp_path / "model")
        assert ExactSAC.load(tmp_path / "model.zip_2").num_timesteps == 20

    @pytest.mark.parametrize("call", range(1, 6))
    def test_dying_leaves_the_old_file(self, trained, tmp_path, call):
        trained.save(tmp_path / "model")
        before = (tmp_path / "model.zip").read_bytes()
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, call)
            with pytest.raises(Dead):
                make_model(gamma=0.5).save(tmp_path / "model")
        assert ((tmp_path / "model.zip").read_bytes() == before) == (call < 4)
        assert ExactSAC.load(tmp_path / "model").gamma == (0.99 if call < 4 else 0.5)

    def test_sb3_reads_it(self, trained, tmp_path):
        trained.save(tmp_path / "model")
        assert SAC.load(tmp_path / "model").num_timesteps == 20

    @pytest.mark.parametrize("cls", [SAC, PPO, ExactPPOLike])
    @pytest.mark.parametrize("through", ["path", "buffer"])
    def test_zip_of_another_algorithm(self, tmp_path, cls, through):
        target = tmp_path / "other" if through == "path" else io.BytesIO()
        cls("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4]}).save(target)
        by = "ExactPPOLike" if cls is ExactPPOLike else "another library"
        with pytest.raises(ValueError, match=f"was saved by {re.escape(by)}.*, not by ExactSAC: load it with"):
            ExactSAC.load(target)

    @pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
    def test_cut_zip(self, trained, tmp_path, part):
        trained.save(tmp_path / "model")
        content = (tmp_path / "model.zip").read_bytes()
        (tmp_path / "model.zip").write_bytes(content[: int(part * len(content))])
        with pytest.raises(ValueError, match="is damaged, cut short or wasn't a zip-file"):
            ExactSAC.load(tmp_path / "model")

    def test_changed_zip(self, trained, tmp_path):
        trained.save(tmp_path / "model")
        content = bytearray((tmp_path / "model.zip").read_bytes())
        content[len(content) // 2] ^= 255
        (tmp_path / "model.zip").write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            ExactSAC.load(tmp_path / "model")

    def test_missing_zip(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            ExactSAC.load(tmp_path / "nothing")

    def test_other_shapes(self, trained, tmp_path):
        trained.save(tmp_path / "model")
        with pytest.raises(ValueError, match=r"(?s)does not fit the arguments .*size mismatch"):
            ExactSAC.load(tmp_path / "model", custom_objects={"policy_kwargs": {"net_arch": [5], "use_sde": False}})
