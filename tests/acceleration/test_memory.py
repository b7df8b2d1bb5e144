"""The allocator of the process is changed only if a program asks for it, never by an import."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

from sb3_mbrl import acceleration


def test_both_thresholds_of_glibc_are_set(monkeypatch):
    set_to = {}
    library = SimpleNamespace(mallopt=lambda parameter, value: set_to.update({parameter: value}))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    acceleration.keep_freed_memory()
    assert set_to == {-1: 2**29, -3: 2**25}


def test_another_c_library_is_not_changed(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    acceleration.keep_freed_memory()


def test_an_import_changes_nothing_in_the_process():
    script = """
import ctypes
library = ctypes.CDLL
class Watched(library):
    def __getattr__(self, name):
        assert name != "mallopt"
        return super().__getattr__(name)
ctypes.CDLL = Watched
import torch
before = torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), torch.is_grad_enabled()
import sb3_mbrl
assert before == (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), torch.is_grad_enabled())
"""
    subprocess.run([sys.executable, "-c", script], check=True)
