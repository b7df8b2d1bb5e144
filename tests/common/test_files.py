import os

import pytest

from sb3_mbrl.common import files
from sb3_mbrl.common.files import write_atomically


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
    """Like KeyboardInterrupt: not an Exception."""


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
