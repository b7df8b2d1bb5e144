"""Saves that are either complete or absent, and that only the algorithm that made them can load."""

import io
import pathlib
import warnings
import zipfile
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.save_util import load_from_zip_file, open_path, recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, TensorDict

from sb3_mbrl.common.files import ZIP_ERRORS, write_atomically
from sb3_mbrl.common.tensors import check_optimizer_state, check_optimizers

SelfAtomicSaves = TypeVar("SelfAtomicSaves", bound="AtomicSaves")

_ALGORITHM_ENTRY = "_sb3_mbrl_algorithm"
"""Entry of a saved zip that names the algorithm; Stable-Baselines3 ignores it."""


class AtomicSaves(BaseAlgorithm):
    """
    Mixin: list it before the SB3 class. It makes ``save`` atomic. ``load`` and ``set_parameters`` raise a clear error for
    files of other algorithms and for parameters of other shapes.
    """

    algorithm_name: ClassVar[str] = ""
    """
    The name of the algorithm in files. Subclasses inherit it, and can load what the algorithm saved. If it is empty, the name
    of the class is used.
    """

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file, as SB3 does. If ``path`` is a path, the
        save is atomic.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        content = io.BytesIO()
        super().save(content, exclude, include)
        with zipfile.ZipFile(content, "a") as archive:
            archive.writestr(_ALGORITHM_ENTRY, name_in_files(type(self)))
        if isinstance(path, (str, pathlib.Path)):
            write_atomically(saved_as(path, "zip"), content.getvalue())
        else:
            open_path(path, "w").write(content.getvalue())

    @classmethod
    def load(
        cls: type[SelfAtomicSaves],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfAtomicSaves:
        """
        Load the model from a zip-file, as SB3 does.

        :param path: path to the file (or a file-like) where to load the agent from
        :param env: the new environment to run the loaded model on, or its name (can be None if you only need prediction)
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace upon loading
        :param print_system_info: Whether to print system info from the saved model and the current system info
        :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior
        :param kwargs: extra arguments to change the model when loading
        :return: new model instance with loaded parameters
        :raises ValueError: the file is damaged, or was saved by another algorithm
        """
        name = path if isinstance(path, pathlib.Path) else getattr(path, "name", path)
        check_algorithm(cls, _algorithm_in_zip(path), name)
        if isinstance(env, str):
            env = maybe_make_env(env, verbose=0)
        try:
            model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        except (KeyError, RuntimeError) as error:
            # If state dicts have other names, SB3 assumes a file of an old DQN, and then fails on "policy.optimizer"
            names_differ = error.args == ("policy.optimizer",)
            if not names_differ and "in loading state_dict" not in str(error):
                raise
            raise ValueError(
                f"{name} does not fit the arguments that it is loaded with, or another version of {cls.__name__} saved "
                f"it: {error.__context__ if names_differ else error}"
            ) from error
        check_optimizers(model)  # checked again: SB3 restores SAC's entropy coefficient after set_parameters
        return model

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Load parameters from a given zip-file or a nested dictionary, as SB3 does. First the states of optimizers are compared
        with their parameters.

        :param load_path_or_dict: location of the saved data (path or file-like, see ``save``), or a nested dictionary of state
            dicts (see ``get_parameters``)
        :param exact_match: whether everything that ``get_parameters`` returns must be there
        :param device: Device on which the code should run
        :raises ValueError: an object's name is unknown or missing, or the state of an optimizer belongs to other parameters
        """
        params = load_path_or_dict
        if not isinstance(params, dict):
            _, params, _ = load_from_zip_file(params, device=device, load_data=False)
        for name, state in params.items():
            optimizer = recursive_getattr(self, name, None)
            if isinstance(optimizer, th.optim.Optimizer):
                check_optimizer_state(optimizer, state, f"The state of {name}")
        super().set_parameters(params, exact_match, device)


def name_in_files(cls: type[AtomicSaves]) -> str:
    """The name of an algorithm in files."""
    return cls.algorithm_name or cls.__name__


def _algorithm_in_zip(path: str | pathlib.Path | io.BufferedIOBase) -> str:
    if isinstance(path, (str, pathlib.Path)) and pathlib.Path(path).is_dir() and not pathlib.Path(f"{path}.zip").is_file():
        raise ValueError(f"{path} is a folder. Pass a file that save() wrote; load_checkpoint() loads a checkpoint's folder.")
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            # The .pth files inside are zips too: in a file that was cut short, zipfile may find one of them instead
            if "_stable_baselines3_version" not in names or archive.testzip() is not None:
                raise zipfile.BadZipFile
            known = _ALGORITHM_ENTRY in names
            return archive.read(_ALGORITHM_ENTRY).decode() if known else "another library (Stable-Baselines3 itself?)"
    except ZIP_ERRORS as error:
        raise ValueError(f"{path} is damaged, cut short or not a zip file. Load another save of the model.") from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()


def check_algorithm(cls: type[AtomicSaves], saved: str, path: Any) -> None:
    """:raises ValueError: ``path`` was saved by another algorithm than ``cls``"""
    if saved != name_in_files(cls):
        raise ValueError(f"{path} was saved by {saved}, not by {name_in_files(cls)}: load it with the class that saved it.")


def saved_as(path: str | pathlib.Path, suffix: str) -> pathlib.Path:
    """
    :param path: where something is to be saved
    :param suffix: suffix of the file, if ``path`` has none
    :return: where Stable-Baselines3 would save it; its warnings are given here too
    """
    path = pathlib.Path(path)
    if path.suffix == "":
        path = pathlib.Path(f"{path}.{suffix}")
    while path.is_dir():
        warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2")
        path = pathlib.Path(f"{path}_2")
    if not path.parent.exists():
        warnings.warn(f"Path '{path.parent}' does not exist. Will create it.")
    return path
