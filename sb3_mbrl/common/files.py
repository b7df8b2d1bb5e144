"""Atomic writes: a file holds its old or its new content, never a part, whoever else writes at the same time."""

import os
import pathlib
import secrets
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no advisory locks, so that leftovers of killed processes are not removed there
    fcntl = None  # type: ignore[assignment]

ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError)
"""Errors that Python's zipfile raises for a damaged file, depending on where the damage is."""

_WORK = ".sb3_mbrl-"
"""Prefix of the files and folders that a process is still writing; its id and a random number follow."""


def write_atomically(path: str | pathlib.Path, content: bytes) -> None:
    """
    :param path: the file, as for :func:`open_atomically`
    :param content: the whole content
    :raises ValueError: ``path`` is a folder or a device, or a file stands where its folder should be
    """
    with open_atomically(path) as file:
        file.write(content)


@contextmanager
def open_atomically(path: str | pathlib.Path) -> Iterator[IO[bytes]]:
    """
    Write to a temporary file in the same folder, flush to disk, then rename. A kill or an exception at any moment leaves the
    old file or the new one. Several threads or processes may write to one path: each reader sees the complete content of one
    of them.

    :param path: the file, whose folder is created if needed. Links are followed, and a file that is replaced keeps its mode
    :return: a context with an empty file; its content replaces ``path`` at the end of the context
    :raises ValueError: ``path`` is a folder or a device, or a file stands where its folder should be
    """
    target = pathlib.Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} is a {'folder' if target.is_dir() else 'device'}. Pass the name of a file.")
    make_folder(target.parent)
    with new_file(target.parent) as file:
        if target.exists() and target.stat().st_mode != os.fstat(file.fileno()).st_mode:
            os.chmod(file.name, stat.S_IMODE(target.stat().st_mode))  # while the file has no content that others might read
        yield file
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:  # Windows cannot rename an open file
            file.close()
        os.replace(file.name, target)
    sync_folder(target.parent)


def make_folder(path: pathlib.Path) -> None:
    """
    :param path: a folder, which is created with its parents unless it exists
    :raises ValueError: a file stands where the folder should be
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{path} cannot be created as a folder: a file has its name, or that of a folder above it."
        ) from error


def sync_folder(path: pathlib.Path) -> None:
    """
    :param path: a folder whose renamed and new entries must survive a power cut
    """
    if os.name == "nt":  # Windows cannot open a folder, and keeps renames in order itself
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_file(folder: pathlib.Path) -> Iterator[IO[bytes]]:
    """
    A context with a file under a name that nobody else uses. It is removed at the end of the context, unless it was renamed.
    Leftovers of killed processes are removed first.

    :param folder: folder in which the file is made
    """
    _remove_leftovers(folder)
    file = _open_and_lock(folder)
    try:
        with file:
            yield file
    finally:
        pathlib.Path(file.name).unlink(missing_ok=True)  # on a full disk a leftover would make matters worse


@contextmanager
def new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """
    A context with a folder under a name that nobody else uses. It is removed at the end of the context, with what is still in
    it. Leftovers of killed processes are removed first.

    :param folder: folder in which the folder is made
    """
    with new_file(folder) as file:  # the lock of this file tells others that the folder is in use
        work = pathlib.Path(file.name).with_suffix(".work")
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _open_and_lock(folder: pathlib.Path) -> IO[bytes]:
    """A new, locked file. The system releases the lock when the process ends, in whatever way and on whatever machine."""
    while True:
        file = open(folder / f"{_WORK}{os.getpid()}-{secrets.token_hex(4)}.tmp", "xb")
        if fcntl is None:
            return file
        with suppress(OSError):  # some network file systems have no locks, and nothing there is taken for a leftover
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        if os.path.exists(file.name):
            return file
        file.close()  # before the file was locked, another process took it for a leftover and removed it


def _remove_leftovers(folder: pathlib.Path) -> None:
    if fcntl is None:
        return
    for path in folder.glob(f"{_WORK}*.tmp"):
        with suppress(OSError), open(path, "r+b") as file:  # network file systems only lock files open for writing
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises an error if a process still writes the file
            path.unlink()
    for work in folder.glob(f"{_WORK}*.work"):
        if not work.with_suffix(".tmp").exists():
            shutil.rmtree(work, ignore_errors=True)
