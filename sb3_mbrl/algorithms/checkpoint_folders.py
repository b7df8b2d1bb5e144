"""Folders of checkpoints: a new checkpoint replaces the older ones once it is complete."""

import io
import json
import pathlib
import pickle
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from sb3_mbrl.common.files import make_folder, new_folder, sync_folder

FORMAT = "sb3_mbrl.checkpoint.1"

FILES = ("model.zip", "replay_buffer.pkl", "extras.pth", "environment.pkl", "random.pkl")
"""Files that every checkpoint holds, in addition to its manifest."""


@contextmanager
def new_version(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A context with a new folder for the files of a checkpoint. At its end the new version replaces the older ones."""
    make_folder(folder)
    with new_folder(folder) as work:
        complete = work / "complete"
        complete.mkdir()
        yield complete
        sync_folder(complete)
        number = _add_version(folder, complete)
        sync_folder(folder)
        # Only older versions are deleted, so that no process deletes a newer version of another one. They are moved away
        # first, so that a process that loads never finds half a version
        for older, version in _versions(folder).items():
            if older < number:
                with suppress(OSError):  # another process has moved it already
                    version.rename(work / version.name)


def _add_version(folder: pathlib.Path, complete: pathlib.Path) -> int:
    """Rename the folder of a complete checkpoint to the next number that no process has taken; returns the number."""
    number = 0
    while True:
        number = max([number, *_versions(folder)]) + 1
        version = folder / f"checkpoint-{number:08d}"
        try:
            complete.rename(version)
            return number
        except OSError:  # renaming never replaces a folder with files in it
            if not version.exists():
                raise


def _versions(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """The folders of all versions, by their number."""
    # Not path.is_dir(), which is also False for a version that another process is removing at this moment
    folders = (path for path in folder.iterdir() if re.fullmatch(r"checkpoint-\d{8,}", path.name) and not path.is_file())
    return {int(path.name.removeprefix("checkpoint-")): path for path in folders}


@contextmanager
def newest_version(folder: pathlib.Path) -> Iterator[tuple[dict[str, Any], dict[str, io.BufferedReader]]]:
    """
    A context with the manifest of the newest checkpoint and its other files. The files are open, so that they can be read to
    the end even if a newer version replaces this one.

    :param folder: the folder that was given to ``save_checkpoint``
    :raises ValueError: there is no checkpoint, or it was changed since it was saved
    """
    with ExitStack() as stack:
        version, files = _open_newest(folder, stack)
        try:
            manifest = json.loads(files.pop("manifest.json").read())
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']!r} instead of {FORMAT!r}")
            if manifest.pop("crc32") != checksum_of_json(manifest) or set(manifest["files"]) != set(FILES):
                raise ValueError("manifest.json was changed")
            changed = [name for name, file in files.items() if fingerprint(file) != manifest["files"][name]]
            if changed:
                raise ValueError(f"{', '.join(changed)} differ from what was saved")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(version, error) from error
        yield manifest, files


def _open_newest(folder: pathlib.Path, stack: ExitStack) -> tuple[pathlib.Path, dict[str, io.BufferedReader]]:
    """The folder of the newest version and its open files, however often another process replaces the newest version."""
    while True:
        versions = _versions(folder) if folder.is_dir() else {}
        if len(versions) == 0:
            raise ValueError(f"There is no checkpoint in {folder}. Pass the folder that was given to save_checkpoint.")
        version = versions[max(versions)]
        try:
            return version, {name: stack.enter_context(open(version / name, "rb")) for name in (*FILES, "manifest.json")}
        except OSError as error:
            if version.exists():
                raise _damaged(version, error) from error


def _damaged(version: pathlib.Path, error: Exception) -> ValueError:
    return ValueError(
        f"{version} is damaged or was not written by save_checkpoint ({type(error).__name__}: {error}). Restore it from a "
        "copy."
    )


def fingerprint(file: io.BufferedReader | pathlib.Path) -> dict[str, int]:
    """Size and checksum of a file, given open or by its path. An open file is rewound."""
    if isinstance(file, pathlib.Path):
        with open(file, "rb") as opened:
            return fingerprint(opened)
    checksum = size = 0
    while chunk := file.read(1 << 20):
        checksum, size = zlib.crc32(chunk, checksum), size + len(chunk)
    file.seek(0)
    return {"size": size, "crc32": checksum}


def checksum_of_json(data: dict[str, Any]) -> int:
    """The checksum of what ``json.dumps`` writes, with sorted keys."""
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())


def unpickle(file: io.BufferedReader) -> Any:
    """
    :param file: an open pickle file
    :return: the object in it
    :raises ValueError: the file holds an object of a class that cannot be imported
    """
    try:
        return pickle.load(file)
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"{file.name} holds an object of a class that cannot be imported ({error}). Before loading, make its module "
            "importable, or define the class in this script."
        ) from error
