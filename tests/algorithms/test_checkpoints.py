"""A save is complete or does not exist, and the error for a checkpoint that cannot be loaded says why."""

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
import threading
from concurrent.futures import Future

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.algorithms import checkpoint_folders, checkpoints
from sb3_mbrl.algorithms.checkpoints import ExactCheckpoints
from sb3_mbrl.algorithms.replay_files import write_replay_buffer
from sb3_mbrl.callbacks import ExactCheckpointCallback


class ExactSAC(ExactCheckpoints, SAC):
    algorithm_name = "ExactSAC"


class MyExactSAC(ExactSAC):
    pass


class ExactPPOLike(ExactCheckpoints, SAC):
    """A class that counts as another algorithm for files."""


class PrioritisedBuffer(ReplayBuffer):
    """A buffer to which a user adds arrays of any shape in any container."""

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


class Dead(BaseException):
    """A simulated kill, after which no code runs: neither ``except Exception`` nor a clean-up."""


def die_at(monkeypatch, call, die=None):
    """Simulates that the process is killed at the given call to the file system."""
    calls = itertools.count(1)

    def deadly(function):
        def wrapper(*args, **kwargs):
            if next(calls) >= call:
                (die or raise_dead)()
            return function(*args, **kwargs)

        return wrapper

    for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (shutil, "rmtree"), (os, "open")):
        monkeypatch.setattr(module, name, deadly(getattr(module, name)))


def raise_dead():
    raise Dead


def kill_at_every_call(folder):
    """Child processes save, and each is killed one call to the file system later than the one before."""
    th.set_num_threads(1)
    model = make_model().learn(20)
    model.save_checkpoint(folder)
    for call in itertools.count(1):
        model.num_timesteps = model.replay_buffer.pos = 20 + call
        child = os.fork()
        if child == 0:
            die_at(pytest.MonkeyPatch(), call, lambda: os.kill(os.getpid(), signal.SIGKILL))
            model.save_checkpoint(folder)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        loaded = ExactSAC.load_checkpoint(folder)
        assert loaded.num_timesteps == loaded.replay_buffer.pos
        assert loaded.num_timesteps == 20 + call or killed
        if not killed:
            break
    assert call > 15
    assert len(os.listdir(folder)) == 1


if __name__ == "__main__":
    kill_at_every_call(sys.argv[1])


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
    """A folder with a checkpoint, which a test may damage."""
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
        (saved / ".sb3_mbrl-1-0a0b0c0d.work").mkdir()  # of a save that was killed
        (saved / ".sb3_mbrl-1-0a0b0c0d.work" / "model.zip").write_text("half")
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
    def test_a_folder_without_a_checkpoint(self, tmp_path):
        model = make_model().learn(20)
        model.replay_buffer = None
        model.save_checkpoint(tmp_path)
        assert ExactSAC.load_checkpoint(tmp_path).replay_buffer is None

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

        buffer = DictReplayBuffer(10_000, spaces.Dict({"a": spaces.Box(0, 1, (5,))}), spaces.Box(0, 1, (1,)), device="cpu")
        one = np.ones((1, 5))
        buffer.add({"a": one}, {"a": one}, np.ones((1, 1)), np.ones(1), np.ones(1), [{}])
        write_replay_buffer(tmp_path / "buffer.pkl", buffer)
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

    def test_a_bit_of_the_manifest(self, saved):
        file = only_version(saved) / "manifest.json"
        content = file.read_bytes()
        for bit in range(0, 8 * len(content), 7):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            with pytest.raises(ValueError, match="is damaged"):
                ExactSAC.load_checkpoint(saved)

    @pytest.mark.parametrize("name", FILES[:-1])
    def test_a_manifest_without_one_of_its_files(self, saved, name):
        file = only_version(saved) / "manifest.json"
        manifest = json.loads(file.read_text())
        del manifest["files"][name], manifest["crc32"]
        manifest["crc32"] = checkpoint_folders.checksum_of_json(manifest)
        file.write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match="is damaged"):
            ExactSAC.load_checkpoint(saved)

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
        with pytest.raises(ValueError, match="saved with 1 environments, but env has 2"):
            ExactSAC.load_checkpoint(saved, env=make_vec_env("Pendulum-v1", 2))

    def test_other_wrappers(self, saved):
        with pytest.raises(ValueError, match="Wrap it in the same way"):
            ExactSAC.load_checkpoint(saved, env=VecNormalize(make_vec_env("Pendulum-v1")))

    def test_a_class_that_is_gone(self, trained, saved, monkeypatch):
        make_model(replay_buffer_class=PrioritisedBuffer).save_checkpoint(saved)
        monkeypatch.setattr(ExactSAC, "load", lambda *args, **kwargs: trained)  # the zip would need the class too
        monkeypatch.delattr(sys.modules[__name__], "PrioritisedBuffer")
        with pytest.raises(ValueError, match=r"holds an object of a class that cannot be imported .*PrioritisedBuffer"):
            ExactSAC.load_checkpoint(saved)


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
def test_killed_at_every_call_to_the_file_system(tmp_path):
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True)


class TestSeveralProcesses:
    """Threads take the place of processes, because saves within one process do not share any state."""

    def test_two_saves_that_are_complete_at_the_same_time(self, tmp_path, monkeypatch):
        both_are_complete = threading.Barrier(2, timeout=60)
        rename = os.rename

        def rename_together(source, target):
            if target == tmp_path / "checkpoint-00000001":
                both_are_complete.wait()
            rename(source, target)

        monkeypatch.setattr(os, "rename", rename_together)
        savers = [save_in_thread(make_model().learn(steps), tmp_path) for steps in (12, 15)]
        assert [saver.result() for saver in savers] == [None, None]
        assert only_version(tmp_path).name == "checkpoint-00000002"
        assert ExactSAC.load_checkpoint(tmp_path).num_timesteps in (12, 15)

    def test_a_save_that_is_overtaken_does_not_delete_the_newer_one(self, tmp_path, monkeypatch):
        slow, fast = make_model().learn(12), make_model().learn(15)
        extras, rename = ExactSAC._checkpoint_extras, os.rename

        def overtaken(self):
            if self is slow:
                fast.save_checkpoint(tmp_path)
            return extras(self)

        def overtaken_again(source, target):
            rename(source, target)
            if target == tmp_path / "checkpoint-00000002":
                fast.save_checkpoint(tmp_path)

        monkeypatch.setattr(ExactSAC, "_checkpoint_extras", overtaken)
        monkeypatch.setattr(os, "rename", overtaken_again)
        slow.save_checkpoint(tmp_path)
        assert only_version(tmp_path).name == "checkpoint-00000003"
        assert ExactSAC.load_checkpoint(tmp_path).num_timesteps == 15

    def test_what_is_replaced_while_it_is_looked_for(self, trained, tmp_path, monkeypatch):
        make_model().save_checkpoint(tmp_path)
        listed = list(tmp_path.iterdir())

        def list_and_replace(folder):
            monkeypatch.undo()
            trained.save_checkpoint(tmp_path)
            return iter(listed)

        monkeypatch.setattr(type(tmp_path), "iterdir", list_and_replace)
        assert ExactSAC.load_checkpoint(tmp_path).num_timesteps == 20

    @pytest.mark.parametrize("step", ["listed", "opened"])
    def test_what_is_replaced_while_it_is_loaded(self, trained, tmp_path, monkeypatch, step):
        make_model().save_checkpoint(tmp_path)
        module, name = {"listed": (checkpoint_folders, "_versions"), "opened": (checkpoints, "unpickle")}[step]
        function = getattr(module, name)

        def then_another_saves(argument):
            result = function(argument)
            monkeypatch.undo()
            trained.save_checkpoint(tmp_path)
            return result

        monkeypatch.setattr(module, name, then_another_saves)
        loaded = ExactSAC.load_checkpoint(tmp_path)
        assert loaded.num_timesteps == loaded.replay_buffer.pos == (20 if step == "listed" else 0)
        assert only_version(tmp_path).name == "checkpoint-00000002"

    def test_savers_and_a_loader_for_a_while(self, tmp_path):
        models = [make_model(buffer_size=20).learn(steps) for steps in (12, 15)]
        models[0].save_checkpoint(tmp_path)
        savers = [save_in_thread(model, tmp_path, times=10) for model in models]
        while not all(saver.done() for saver in savers):
            loaded = ExactSAC.load_checkpoint(tmp_path)
            assert loaded.num_timesteps == loaded.replay_buffer.pos
        assert [saver.result() for saver in savers] == [None, None]
        models[0].save_checkpoint(tmp_path)
        assert len(os.listdir(tmp_path)) == 1


def save_in_thread(model, folder, times=1):
    future = Future()

    def save():
        try:
            for _ in range(times):
                model.save_checkpoint(folder)
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=save).start()
    return future


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

    def test_a_save_prints_a_line(self, tmp_path, capsys):
        make_model().learn(10, ExactCheckpointCallback(10, tmp_path, verbose=2))
        assert "Checkpoint at step 10" in capsys.readouterr().out

    def test_algorithms_of_sb3(self, tmp_path):
        with pytest.raises(ValueError, match="SAC has no save_checkpoint"):
            SAC("MlpPolicy", "Pendulum-v1", **TINY).learn(5, ExactCheckpointCallback(1, tmp_path))


class TestSaveAndLoad:
    """``save`` and ``load`` follow SB3's rules."""

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
        with pytest.raises(ValueError, match="is damaged, cut short or not a zip file"):
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
