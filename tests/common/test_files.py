import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from sb3_mbrl.common import files
from sb3_mbrl.common.files import new_file, new_folder, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_and_its_folders_are_made(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "model.bin", b"new")
    assert (tmp_path / "a" / "b" / "model.bin").read_bytes() == b"new"


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    target = tmp_path / "model.bin"
    target.write_bytes(b"a longer old content")
    write_atomically(str(target), b"new")
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["model.bin"]


def test_empty_content_makes_an_empty_file(tmp_path):
    write_atomically(tmp_path / "empty", b"")
    assert (tmp_path / "empty").read_bytes() == b""


class Interrupted(BaseException):
    """An interruption that, like KeyboardInterrupt, is not an Exception."""


def interrupt(*args, **kwargs):
    raise Interrupted


@pytest.mark.parametrize("stage", ["open", "fsync", "replace"])
def test_an_interruption_before_the_rename_leaves_the_old_file_alone(tmp_path, monkeypatch, stage):
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")
    if stage == "open":
        monkeypatch.setattr(files, "open", interrupt, raising=False)
    else:
        monkeypatch.setattr(os, stage, interrupt)
    with pytest.raises(Interrupted):
        write_atomically(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["model.bin"]


def test_a_full_disk_leaves_the_old_file_alone(tmp_path, monkeypatch):
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")

    class FullDisk:
        def __init__(self, path, mode):
            self.file = open(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            self.file.write(content[:1])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "open", FullDisk, raising=False)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["model.bin"]


def test_an_interruption_after_the_rename_leaves_the_new_file(tmp_path, monkeypatch):
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")
    monkeypatch.setattr(files, "sync_folder", interrupt)
    with pytest.raises(Interrupted):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["model.bin"]


def test_the_content_is_on_disk_before_the_rename(tmp_path, monkeypatch):
    target = tmp_path / "model.bin"
    events = []
    fsync, replace = os.fsync, os.replace

    def observed_fsync(handle):
        events.append(("fsync", os.fstat(handle).st_size if not target.exists() else "folder"))
        fsync(handle)

    def observed_replace(source, destination):
        events.append(("rename", os.path.dirname(source) == str(tmp_path)))
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", observed_fsync)
    monkeypatch.setattr(os, "replace", observed_replace)
    write_atomically(target, b"12345")
    assert events == [("fsync", 5), ("rename", True), ("fsync", "folder")]


# ---------------------------------------------------------------- what stands in the place of the file

linux_and_macos = pytest.mark.skipif(os.name == "nt", reason="Windows has neither these modes nor advisory locks")


@linux_and_macos
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_a_file_that_is_replaced_keeps_its_mode_while_it_is_written_too(tmp_path, monkeypatch, mode):
    target = tmp_path / "secret"
    target.write_bytes(b"old")
    target.chmod(mode)
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(os.fstat(handle).st_mode), fsync(handle)))
    write_atomically(target, b"new")
    assert stat.S_IMODE(seen[0]) == stat.S_IMODE(target.stat().st_mode) == mode


@linux_and_macos
def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "model.bin").write_bytes(b"old")
    link = tmp_path / "latest"
    link.symlink_to(tmp_path / "store" / "model.bin")
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "store" / "model.bin").read_bytes() == b"new"
    assert names(tmp_path / "store") == ["model.bin"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    write_atomically(tmp_path / ("x" * 250), b"new")
    assert names(tmp_path) == ["x" * 250]


def test_a_folder_or_device_is_not_replaced(tmp_path):
    with pytest.raises(ValueError, match="is a folder. Pass the name of a file"):
        write_atomically(tmp_path, b"new")
    if os.name != "nt":
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="is a device"):
            write_atomically(tmp_path / "pipe", b"new")
        assert names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("place", ["model/latest", "model/of/today/latest"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, place):
    (tmp_path / "model").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"model.* cannot be created as a folder"):
        write_atomically(tmp_path / place, b"new")


# ---------------------------------------------------------------- several writers, and those that were killed


def test_two_writers_of_one_path_do_not_disturb_each_other(tmp_path, monkeypatch):
    """Each writer waits before its rename until the other has written everything, too."""
    target = tmp_path / "model.bin"
    both_have_written = threading.Barrier(2, timeout=60)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (both_have_written.wait(), replace(*paths)))
    errors = []

    def write(content):
        try:
            write_atomically(target, content)
        except BaseException as error:
            errors.append(error)

    contents = [b"a" * 1000, b"b" * 2000]
    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert target.read_bytes() in contents
    assert names(tmp_path) == ["model.bin"]


def test_many_writers_and_readers_of_one_path(tmp_path):
    target = tmp_path / "model.bin"
    contents = [bytes([number]) * (1000 + number) for number in range(4)]
    write_atomically(target, contents[0])
    errors = []

    def write(content):
        try:
            for _ in range(20):
                write_atomically(target, content)
                assert target.read_bytes() in contents
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert names(tmp_path) == ["model.bin"]


# The module alone: it needs none of the imports of the package, which take seconds
IMPORT = f"""
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("files", {files.__file__!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
"""
DIES = """

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

what, stage, folder = sys.argv[1:]
setattr(files.shutil if stage == "rmtree" else os, stage, die)
if what == "file":
    files.write_atomically(os.path.join(folder, "model.bin"), b"new")
else:
    with files.new_folder(files.pathlib.Path(folder)) as work:
        (work / "large").write_bytes(b"x")
        if stage == "abort":
            die()
"""


def kill_at(stage, folder, what="file"):
    """Another process writes, and is killed at the given call."""
    process = subprocess.run([sys.executable, "-c", IMPORT + DIES, what, stage, str(folder)], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr


@linux_and_macos
@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_leftovers_of_a_killed_writer_are_removed_at_the_next_write_in_the_folder(tmp_path, stage):
    (tmp_path / "model.bin").write_bytes(b"old")
    kill_at(stage, tmp_path)
    assert len(names(tmp_path)) == 2 and (tmp_path / "model.bin").read_bytes() == b"old"
    write_atomically(tmp_path / "another", b"new")
    assert names(tmp_path) == ["another", "model.bin"]


@linux_and_macos
@pytest.mark.parametrize("stage", ["abort", "rmtree"])
def test_a_folder_of_a_killed_process_is_removed_too(tmp_path, stage):
    kill_at(stage, tmp_path, "folder")
    assert len(names(tmp_path)) == 2
    write_atomically(tmp_path / "model.bin", b"new")
    assert names(tmp_path) == ["model.bin"]


@linux_and_macos
def test_a_file_in_use_is_not_removed_as_a_leftover(tmp_path):
    with new_file(tmp_path) as file, new_folder(tmp_path) as folder:
        before = names(tmp_path)
        write = IMPORT + "files.write_atomically(sys.argv[1], b'')"
        subprocess.run([sys.executable, "-c", write, str(tmp_path / "a")], check=True)
        write_atomically(tmp_path / "b", b"")
        assert names(tmp_path) == [*before, "a", "b"]
        assert os.path.exists(file.name) and folder.exists()
    assert names(tmp_path) == ["a", "b"]


@linux_and_macos
def test_a_new_file_that_was_removed_as_a_leftover_is_created_again(tmp_path, monkeypatch):
    """Between a file's creation and its lock another process may see it."""
    lock, taken = files.fcntl.flock, []

    def lock_late(handle, operation):
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        lock(handle, operation)

    monkeypatch.setattr(files.fcntl, "flock", lock_late)
    with new_file(tmp_path) as file:
        assert os.path.exists(file.name) and file.name != str(taken[0])


@linux_and_macos
def test_without_locks_no_leftovers_are_removed(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with new_folder(tmp_path) as folder:
        write_atomically(tmp_path / "model.bin", b"new")
        assert folder.exists()
    assert names(tmp_path) == ["model.bin"]


def test_files_are_written_even_without_advisory_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with new_folder(tmp_path):
        write_atomically(tmp_path / "model.bin", b"new")
    assert (tmp_path / "model.bin").read_bytes() == b"new"
    assert names(tmp_path) == ["model.bin"]
