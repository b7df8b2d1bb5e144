"""The state of environments in the middle of an episode, so that the episode can continue in another process."""

import io
import pickle
import types
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

# These attributes describe how an environment was made rather than its state, so the new process keeps its own
_NOT_STATE = frozenset(
    {"spec", "_cached_spec", "metadata", "_metadata", "render_mode", "class_attributes", "t_start", "results_writer"}
)
# Objects of these modules (windows, locks, logs) do not affect the task, so an environment keeps its own
_NOT_STATE_TYPES = (
    "OpenGL",
    "_io",
    "_thread",
    "glfw",
    "gymnasium.envs.mujoco.mujoco_rendering",
    "logging",
    "matplotlib",
    "mujoco",
    "pygame",
)


def save_env_state(env: VecEnv) -> dict[str, Any]:
    """
    Collect the attributes of each layer that can be pickled, from the outermost ``VecEnvWrapper`` (``VecNormalize`` with its
    statistics) down to the tasks themselves, with their generators, clocks and MuJoCo simulations. Renderers, open files
    and functions are left out.

    Tasks in a ``DummyVecEnv`` can be stored if they consist of Python objects, arrays and MuJoCo. Those in a
    ``SubprocVecEnv``, and those that keep their state in another simulator (Box2D), cannot.

    :param env: any vectorised environment
    :return: state for :func:`restore_env_state`: ``wrappers``, and ``envs``, which is None if the tasks cannot be stored
    """
    wrappers, inner = _split(env)
    layers = [*wrappers, *inner]
    return {
        "wrappers": {"classes": _names(wrappers), "attributes": _dump(wrappers, layers)},
        "envs": _dump_envs(inner, layers),
    }


def restore_env_state(env: VecEnv, state: dict[str, Any], tasks: bool = True) -> bool:
    """
    Restore in place what :func:`save_env_state` collected.

    :param env: an environment made like the one that was saved
    :param state: the result of :func:`save_env_state`
    :param tasks: False: restore only the wrappers of the ``VecEnv``, not the tasks
    :return: whether the tasks were restored; otherwise they have to be reset
    :raises ValueError: the environment has other wrappers, or simulates another MuJoCo model
    """
    wrappers, inner = _split(env)
    layers = [*wrappers, *inner]
    _check_classes(wrappers, state["wrappers"]["classes"], "")
    _load(wrappers, layers, state["wrappers"]["attributes"])
    envs = state["envs"]
    if not tasks or envs is None or not isinstance(inner[0], DummyVecEnv):
        return False
    _check_classes(inner, envs["classes"], ", or pass force_reset=True to start new episodes")
    for place, data in envs["mujoco"].items():
        _copy_simulation(_mujoco_objects(layers)[place], data)
    _load(inner, layers, envs["attributes"])
    return True


def _split(env: VecEnv) -> tuple[list[Any], list[Any]]:
    """The wrappers of a VecEnv from the outside in; then the VecEnv itself and its tasks, if they are in this process."""
    wrappers: list[Any] = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    inner: list[Any] = [env]
    for task in env.envs if isinstance(env, DummyVecEnv) else []:
        inner.append(task)
        while isinstance(inner[-1], gym.Wrapper):
            inner.append(inner[-1].env)
    return wrappers, inner


def _names(layers: list[Any]) -> list[str]:
    return [type(layer).__qualname__ for layer in layers]


def _check_classes(layers: list[Any], saved: list[str], advice: str) -> None:
    if _names(layers) != saved:
        raise ValueError(
            f"The environment was saved as {' > '.join(saved) or 'one without wrappers'}, but env is "
            f"{' > '.join(_names(layers)) or 'without wrappers'}. Wrap it in the same way{advice}."
        )


class _Pickler(pickle.Pickler):
    """Stores references to layers and MuJoCo objects by position, so that after loading they refer to the live objects."""

    def __init__(self, file: io.BytesIO, places: dict[Any, Any]):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.place_of = {id(thing): place for place, thing in places.items()}

    def persistent_id(self, obj: Any) -> Any:
        return self.place_of.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, places: dict[Any, Any]):
        super().__init__(file)
        self.places = places

    def persistent_load(self, pid: Any) -> Any:
        return self.places[pid]


def _places(layers: list[Any]) -> dict[Any, Any]:
    return {**dict(enumerate(layers)), **_mujoco_objects(layers)}


def _pickle(thing: Any, places: dict[Any, Any]) -> bytes | None:
    """The pickled object; None if it cannot be pickled."""
    file = io.BytesIO()
    try:
        _Pickler(file, places).dump(thing)
    except Exception:  # TypeError, AttributeError, PicklingError, whatever a __reduce__ raises
        return None
    return file.getvalue()


def _dump(subset: list[Any], layers: list[Any]) -> bytes | None:
    """The attributes of some of the layers; None if a task has state that cannot be stored."""
    places = _places(layers)
    attributes: list[dict[str, Any]] = []
    for layer in subset:
        attributes.append({})
        for name, value in vars(layer).items():
            if name in _NOT_STATE:
                continue
            if _pickle(value, places) is not None:
                attributes[-1][name] = value
            elif _is_task(layer) and not _is_harmless(value):
                return None
    # Pickled in one piece, so that attributes that share an object share it again
    return _pickle(attributes, places)


def _is_task(layer: Any) -> bool:
    return isinstance(layer, gym.Env) and not isinstance(layer, gym.Wrapper)


def _is_harmless(value: Any) -> bool:
    return callable(value) or isinstance(value, types.ModuleType) or type(value).__module__.startswith(_NOT_STATE_TYPES)


def _load(subset: list[Any], layers: list[Any], dump: bytes) -> None:
    saved = _Unpickler(io.BytesIO(dump), _places(layers)).load()
    for layer, attributes in zip(subset, saved, strict=True):
        for name, value in attributes.items():
            present = vars(layer).get(name)
            if isinstance(value, gym.Space) and isinstance(present, gym.Space):
                vars(present).update(vars(value))  # in place, because VecEnv and task share their spaces
            else:
                vars(layer)[name] = value


def _dump_envs(inner: list[Any], layers: list[Any]) -> dict[str, Any] | None:
    attributes = _dump(inner, layers) if isinstance(inner[0], DummyVecEnv) else None
    if attributes is None:
        return None
    simulations = {place: thing for place, thing in _mujoco_objects(layers).items() if type(thing).__name__ == "MjData"}
    return {"classes": _names(inner), "attributes": attributes, "mujoco": simulations}


def _mujoco_objects(layers: list[Any]) -> dict[tuple[int, str], Any]:
    """Models and simulations, by the layer and the attribute that hold them. MuJoCo is not imported for that."""
    return {
        (index, name): value
        for index, layer in enumerate(layers)
        for name, value in vars(layer).items()
        if type(value).__module__.startswith("mujoco") and type(value).__name__ in ("MjModel", "MjData")
    }


def _copy_simulation(target: Any, source: Any) -> None:
    """
    Copy a whole ``MjData`` and its ``MjModel``, which a task may have randomised. ``mj_setState`` is not enough: the rewards
    of Ant and Humanoid depend on positions that MuJoCo computed in the step before, and that are not part of its integration
    state.
    """
    import mujoco

    if _sizes(target.model) != _sizes(source.model):
        raise ValueError(
            "The environment simulates another MuJoCo model than the saved one. Make it in the same way, or pass "
            "force_reset=True to start new episodes."
        )
    _copy_arrays(target.model, source.model)
    _copy_arrays(target.model.opt, source.model.opt)
    for name, value in _fields(source.model.opt).items():
        if isinstance(value, (int, float)):
            setattr(target.model.opt, name, value)
    mujoco.mj_copyData(target, target.model, source)


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in dir(struct) if not name.startswith("_")}


def _sizes(model: Any) -> dict[str, int]:
    return {name: value for name, value in _fields(model).items() if name.startswith("n") and isinstance(value, int)}


def _copy_arrays(target: Any, source: Any) -> None:
    for name, value in _fields(source).items():
        if isinstance(value, np.ndarray):
            getattr(target, name)[...] = value
