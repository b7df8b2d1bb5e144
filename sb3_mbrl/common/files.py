"""Files that are either the old one or the new one, never half of one."""

import os
import pathlib


def write_atomically(path: str | pathlib.Path, content: bytes) -> None:
    """
    Write beside the target, flush to disk, rename: a kill at any moment leaves the old file or the new one.

    :param path: the file; its folder is created if needed
    :param content: the whole content
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)  # on a full disk it would only make matters worse
        raise
    sync_folder(path.parent)


def sync_folder(path: pathlib.Path) -> None:
    """
    :param path: folder whose entries (renames, new files) must survive a power cut
    """
    if os.name == "nt":  # Windows cannot open a folder, and orders renames itself
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
