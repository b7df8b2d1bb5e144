"""Replay buffers in files, without the rows that were never written."""

import io
import os
import pathlib
import pickle
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer


class _ReplayBufferPickler(pickle.Pickler):
    """Leaves out the rows that were never written, of every array that has one row for each step."""

    def __init__(self, file: Any, replay_buffer: ReplayBuffer):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.capacity = replay_buffer.buffer_size
        self.filled = replay_buffer.size()

    def reducer_override(self, obj: Any) -> Any:
        if self.filled == self.capacity or type(obj) is not np.ndarray or obj.ndim == 0 or len(obj) != self.capacity:
            return NotImplemented
        if obj.dtype.kind not in "biufc" or obj[self.filled :].any():
            return NotImplemented
        return _with_empty_rows, (obj[: self.filled], self.capacity)


def _with_empty_rows(filled: np.ndarray, n_rows: int) -> np.ndarray:
    array = np.zeros((n_rows, *filled.shape[1:]), dtype=filled.dtype)  # zeros take no memory until they are written
    array[: len(filled)] = filled
    return array


def pickle_replay_buffer(replay_buffer: ReplayBuffer) -> bytes:
    """
    :param replay_buffer: the replay buffer
    :return: its pickle, without the rows that were never written
    """
    content = io.BytesIO()
    _ReplayBufferPickler(content, replay_buffer).dump(replay_buffer)
    return content.getvalue()


def write_replay_buffer(path: pathlib.Path, replay_buffer: ReplayBuffer | None) -> None:
    """
    Write to the file directly, without a second copy in memory. The write need not be atomic, because the folder of a
    checkpoint gets its name only when it is complete.
    """
    with open(path, "wb") as file:
        if replay_buffer is None:
            pickle.dump(None, file)
        else:
            _ReplayBufferPickler(file, replay_buffer).dump(replay_buffer)
        file.flush()
        os.fsync(file.fileno())
