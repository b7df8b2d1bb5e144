r"""
Time a peer library on the work that this library does.

This script runs under the Python of the *peer*, not ours, and imports nothing from this repository. There are three peers:

- mbrl-lib 0.2.0, whose ``mbrl.algorithms.mbpo.train`` is run on Gymnasium's Hopper-v5 at the settings of the MBPO paper, and
  whose ``mbrl.planning`` is timed per action
- pytorch_mppi 0.9.1, which plans in mbrl-lib's model
- SBX 0.28.0, whose SAC is compiled by JAX

Set up a virtual environment from published packages (``--no-deps`` because mbrl-lib pins versions of Gymnasium, Hydra and
OmegaConf that do not work with the other packages)::

    python3.11 -m venv /path/to/peer
    /path/to/peer/bin/pip install torch==2.13.0 numpy==2.4.6 gymnasium==1.4.0 mujoco==4.0.0 hydra-core==1.3.8 \
        omegaconf==2.3.1 imageio==2.38.1 packaging==26.3 termcolor==3.3.0 tqdm==4.70.1
    /path/to/peer/bin/pip install --no-deps mbrl==0.2.0 pytorch_mppi==0.9.1 arm-pytorch-utilities==0.5.0 \
        pytorch-seed==0.2.0
    /path/to/peer/bin/pip install scipy==1.17.1

SBX needs a virtual environment of its own::

    /path/to/sbx/bin/pip install torch==2.13.0 numpy==2.4.6 gymnasium==1.4.0 mujoco==4.0.0 imageio==2.38.1 packaging==26.3 \
        sbx-rl==0.28.0

Then measure the training loop, its two components alone, imagined steps, or planning::

    /path/to/peer/bin/python benchmarks/peers.py mbrl-lib --env Hopper-v5 --random-steps 5000 --steps 1000 --threads 2
    /path/to/peer/bin/python benchmarks/peers.py mbrl-lib --component --threads 2
    /path/to/peer/bin/python benchmarks/peers.py mbrl-lib --imagine 1024 --threads 2
    /path/to/peer/bin/python benchmarks/peers.py mbrl-lib --planner cem --threads 2
    /path/to/peer/bin/python benchmarks/peers.py pytorch_mppi --planner mppi --threads 2
    /path/to/sbx/bin/python benchmarks/peers.py sbx --component --threads 1

The last line on standard output is a JSON object; everything that the peer prints goes to standard error. mbrl-lib does not
start with current versions of its dependencies without a few shims. ``benchmarks/README.md`` describes them, and
:func:`hopper_config` and :func:`make_box` contain them. Nothing in the installed package is changed.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

OVERRIDES = {"Hopper-v5": "mbpo_hopper"}
"""The Gymnasium environments that can be measured, with mbrl-lib's own file of settings for each."""

PACKAGES = (
    *("mbrl", "torch", "numpy", "gymnasium", "mujoco", "hydra-core", "omegaconf", "pytorch_mppi", "scipy"),
    *("sbx-rl", "jax", "flax"),
)

PROPAGATIONS = {"tsinf": "fixed_model", "ts1": "random_model"}
"""Names in ``benchmarks/planning_cost.py``, mapped to those of mbrl-lib."""

PLANNING_SIZES = {
    "obs_dim": 17,
    "action_dim": 6,
    "ensemble_size": 5,
    "n_elites": 5,
    "layers": 3,
    "population": 400,
    "horizon": 25,
    "iterations": 5,
    "particles": 20,
    "repeats": 5,
}
"""PETS on HalfCheetah (except for its four layers and horizon of 30), as in ``benchmarks/planning_cost.py``."""

BATCH_SIZE = 256
FIT_ROWS = 8_000
VALIDATION_RATIO = 0.2


class Stopwatch:
    """
    Measures the wall-clock time and counts the calls of functions, by label.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def wrap(self, owner: Any, name: str, label: str) -> None:
        """
        Replace ``owner.name`` by a timed version of the function.

        :param owner: the module or class that holds the function
        :param name: name of the function in ``owner``
        :param label: label under which its time is added
        """
        function = getattr(owner, name)
        self.seconds[label], self.calls[label] = 0.0, 0

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[label] += time.perf_counter() - start
                self.calls[label] += 1

        setattr(owner, name, timed)


def make_box(low: Sequence[float], high: Sequence[float], shape: Sequence[int]) -> Any:
    """
    The action space that mbrl-lib's configuration asks for.

    :param low: lower bounds, in the list type of the configuration library
    :param high: upper bounds
    :param shape: shape of one action
    :return: a ``gymnasium.spaces.Box``
    """
    np: Any = importlib.import_module("numpy")
    spaces: Any = importlib.import_module("gymnasium.spaces")
    bounds = [np.asarray(list(bound), dtype=np.float32).reshape(tuple(shape)) for bound in (low, high)]
    return spaces.Box(*bounds, dtype=np.float32)


def hopper_config(env: str, random_steps: int, steps: int, seed: int, train_freq: int) -> Any:
    """
    mbrl-lib's own configuration of MBPO, read from the installed package. Numbers that differ from the paper are replaced by
    those of the paper, and the entries that keep it from starting with current dependencies are replaced as well.

    :param env: a key of ``OVERRIDES``
    :param random_steps: uniformly random steps before training
    :param steps: training steps
    :param seed: seed of everything
    :param train_freq: environment steps between two fits
    :return: the configuration that ``mbrl.algorithms.mbpo.train`` takes
    """
    mbrl: Any = importlib.import_module("mbrl")
    omega_conf: Any = importlib.import_module("omegaconf").OmegaConf
    conf = pathlib.Path(mbrl.__file__).parent / "examples" / "conf"
    cfg = omega_conf.create(
        {
            "algorithm": omega_conf.load(conf / "algorithm" / "mbpo.yaml"),
            "dynamics_model": omega_conf.load(conf / "dynamics_model" / "gaussian_mlp_ensemble.yaml"),
            "overrides": omega_conf.load(conf / "overrides" / f"{OVERRIDES[env]}.yaml"),
            "seed": seed,
            "device": "cpu",
            "log_frequency_agent": 1000,
            "save_video": False,
            "debug_mode": False,
        }
    )
    # Shims. (1) The target `gym.env.Box` does not exist. (2) `Box` refuses OmegaConf's lists: make_box converts them.
    # (3) Hydra since 1.1 instantiates nested targets, but the ensemble expects its activation as a configuration.
    cfg.algorithm.agent.action_space["_target_"] = f"{__name__}.{make_box.__name__}"
    cfg.dynamics_model["_recursive_"] = False

    # The paper's settings. Some of them are mbrl-lib's anyway, and are repeated so that all stand in one place.
    cfg.dynamics_model.update({"ensemble_size": 7, "num_layers": 4, "hid_size": 200})
    cfg.algorithm.update(
        {
            "random_initial_explore": True,
            "initial_exploration_steps": random_steps,
            # Without this, the replay buffer holds only `num_steps` rows and loses the random steps
            "dataset_size": random_steps + steps,
        }
    )
    cfg.overrides.update(
        {
            "env": f"gym___{env}",
            "num_steps": steps,
            "epoch_length": min(steps, 1000),
            "freq_train_model": train_freq,
            "effective_model_rollouts_per_step": 400,
            "rollout_schedule": [20, 150, 1, 15],
            "num_elites": 5,
            "patience": 5,
            "model_lr": 1e-3,
            "model_batch_size": BATCH_SIZE,
            "validation_ratio": VALIDATION_RATIO,
            "num_sac_updates_per_step": 20,
            "sac_updates_every_steps": 1,
            "sac_batch_size": BATCH_SIZE,
            "sac_hidden_size": 256,
            "sac_lr": 3e-4,
            "sac_target_update_interval": 1,
            "sac_automatic_entropy_tuning": True,
            "sac_target_entropy": -1,
        }
    )
    return cfg


def versions() -> dict[str, str]:
    """
    :return: the versions that a measurement depends on
    """
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not every measurement needs every package
            found[name] = importlib.metadata.version(name)
    return {"python": platform.python_version()} | found


@contextlib.contextmanager
def peer_session(seed: int, threads: int) -> Iterator[str]:
    """
    Seed and limit the peer's libraries, send what they print to standard error and lend a folder for what they save.

    :param seed: seed of NumPy and PyTorch
    :param threads: threads that PyTorch may use
    :return: the folder
    """
    np: Any = importlib.import_module("numpy")
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(threads)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as work_dir, contextlib.redirect_stdout(sys.stderr):
        yield work_dir


def time_mbpo(env: str, random_steps: int, steps: int, seed: int, threads: int, train_freq: int) -> dict[str, Any]:
    """
    Run mbrl-lib's MBPO and time its training, from the end of the random steps to the end of the last step, without the
    evaluation.

    :param env: a key of ``OVERRIDES``
    :param random_steps: uniformly random steps before training, not counted in the time
    :param steps: training steps
    :param seed: seed of everything
    :param threads: threads that PyTorch may use
    :param train_freq: environment steps between two fits (the paper: 250)
    :return: the measurement (``env_seconds`` is the time to choose actions, step the environment and store transitions)
    """
    if steps % min(steps, 1000):
        raise ValueError(f"mbrl-lib trains whole epochs of 1000 steps: {steps} steps are not a multiple")
    mbpo: Any = importlib.import_module("mbrl.algorithms.mbpo")
    common: Any = importlib.import_module("mbrl.util.common")
    env_handler: Any = importlib.import_module("mbrl.util.env").EnvHandler
    sac: Any = importlib.import_module("mbrl.third_party.pytorch_sac_pranz24.sac").SAC
    trainer: Any = importlib.import_module("mbrl.models").ModelTrainer

    watch = Stopwatch()
    watch.wrap(common, "train_model_and_save_model_and_data", "fit")
    watch.wrap(mbpo, "rollout_model_and_populate_sac_buffer", "rollout")
    watch.wrap(sac, "update_parameters", "sac")
    watch.wrap(common, "step_env_and_add_to_buffer", "env")

    # Evaluation is not measured. A return of minus infinity also keeps the loop from saving a checkpoint.
    mbpo.evaluate = lambda *_args, **_kwargs: -float("inf")

    fit_epochs: list[int] = []
    train_model: Callable[..., Any] = trainer.train

    def counted_train(*args: Any, **kwargs: Any) -> Any:
        history = train_model(*args, **kwargs)
        fit_epochs.append(len(history[0]))
        return history

    trainer.train = counted_train

    random_exploration: Callable[..., Any] = common.rollout_agent_trajectories
    started: list[float] = []

    def timed_exploration(*args: Any, **kwargs: Any) -> Any:
        result = random_exploration(*args, **kwargs)
        watch.seconds["env"], watch.calls["env"] = 0.0, 0
        started.append(time.perf_counter())
        return result

    common.rollout_agent_trajectories = timed_exploration

    with peer_session(seed, threads) as work_dir:
        cfg = hopper_config(env, random_steps, steps, seed, train_freq)
        train_env, termination_fn, _ = env_handler.make_env(cfg)
        test_env, *_ = env_handler.make_env(cfg)
        mbpo.train(train_env, test_env, termination_fn, cfg, silent=True, work_dir=work_dir)
        seconds = time.perf_counter() - started[0]

    return {
        "measured": "mbpo",
        "env": env,
        "seed": seed,
        "random_steps": random_steps,
        "train_freq": train_freq,
        "steps": steps,
        "seconds": round(seconds, 3),
        "seconds_per_step": round(seconds / steps, 5),
        "fit_seconds": round(watch.seconds["fit"], 3),
        "fits": watch.calls["fit"],
        "fit_epochs": sum(fit_epochs),
        "fit_epochs_each": fit_epochs,
        "sac_seconds": round(watch.seconds["sac"], 3),
        "sac_updates": watch.calls["sac"],
        "rollout_seconds": round(watch.seconds["rollout"], 3),
        "env_seconds": round(watch.seconds["env"], 3),
    }


def time_components(env: str, seed: int, threads: int, epochs: int = 10, updates: int = 200) -> dict[str, Any]:
    """
    Time one epoch of the ensemble's fit, with its validation, and one SAC update, on random numbers of the shapes of
    ``env``. An epoch goes over 8 000 training rows for every member and then over 2 000 validation rows.

    :param env: a key of ``OVERRIDES``
    :param seed: seed of everything
    :param threads: threads that PyTorch may use
    :param epochs: epochs to time, after one that is not timed
    :param updates: updates to time, after twenty that are not timed
    :return: the measurement, with medians
    """
    np: Any = importlib.import_module("numpy")
    instantiate: Callable[..., Any] = importlib.import_module("hydra.utils").instantiate
    common: Any = importlib.import_module("mbrl.util.common")
    env_handler: Any = importlib.import_module("mbrl.util.env").EnvHandler
    planning: Any = importlib.import_module("mbrl.planning")
    util: Any = importlib.import_module("mbrl.util")
    trainer: Any = importlib.import_module("mbrl.models").ModelTrainer

    with peer_session(seed, threads) as work_dir:
        cfg = hopper_config(env, 0, 1, seed, 250)
        peer_env, *_ = env_handler.make_env(cfg)
        shapes = peer_env.observation_space.shape, peer_env.action_space.shape
        rng = np.random.default_rng(seed)

        def filled_buffer(rows: int, dtype: Any) -> Any:
            buffer = util.ReplayBuffer(rows, *shapes, obs_type=dtype, action_type=dtype, reward_type=dtype, rng=rng)
            obs, next_obs = rng.normal(size=(2, rows, *shapes[0]))
            action = rng.uniform(-1, 1, size=(rows, *shapes[1]))
            ended = np.zeros(rows, dtype=bool)
            buffer.add_batch(obs, action, next_obs, rng.normal(size=rows), ended, ended)
            return buffer

        # As in mbpo.train, real data have double precision and imagined data single precision
        model = common.create_one_dim_tr_model(cfg, *shapes)
        real = filled_buffer(int(FIT_ROWS / (1 - VALIDATION_RATIO)), np.double)
        model.update_normalizer(real.get_all())
        train_rows, validation_rows = common.get_basic_buffer_iterators(
            real, BATCH_SIZE, VALIDATION_RATIO, ensemble_size=len(model)
        )
        epoch_ends: list[float] = []
        trainer(model, optim_lr=cfg.overrides.model_lr, weight_decay=cfg.overrides.model_wd).train(
            train_rows,
            dataset_val=validation_rows,
            num_epochs=epochs + 1,
            callback=lambda *_args: epoch_ends.append(time.perf_counter()),
        )

        planning.complete_agent_cfg(peer_env, cfg.algorithm.agent)
        agent = instantiate(cfg.algorithm.agent)
        imagined = filled_buffer(100_000, np.float32)
        logger = util.Logger(work_dir, enable_back_compatible=True)
        update_ends: list[float] = []
        for update in range(updates + 20):
            agent.update_parameters(imagined, BATCH_SIZE, update, logger, reverse_mask=True)
            update_ends.append(time.perf_counter())

    return {
        "measured": "component",
        "env": env,
        "seed": seed,
        "fit_rows": train_rows.num_stored,
        "validation_rows": validation_rows.num_stored,
        "seconds_per_fit_epoch": round(median_step(epoch_ends), 4),
        "seconds_per_sac_update": round(median_step(update_ends[19:]), 6),
    }


def time_sbx(env: str, seed: int, threads: int, updates: int = 20) -> dict[str, Any]:
    """
    Time one update of SBX's SAC, on random numbers of the shapes of ``env``. A call of its ``train`` is one compiled program.

    :param env: Gymnasium id
    :param seed: seed of everything
    :param threads: CPU cores that JAX may use, since the number of its threads cannot be set
    :param updates: updates in each call of ``train``
    :return: the measurement, the median of fifteen calls
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    np: Any = importlib.import_module("numpy")
    sac: Any = importlib.import_module("sbx").SAC
    model = sac("MlpPolicy", env, seed=seed)
    model._setup_learn(1)
    rng = np.random.default_rng(seed)
    obs_shape, action_shape = model.observation_space.shape, model.action_space.shape
    for _ in range(5_000):
        obs, next_obs = rng.normal(size=(2, 1, *obs_shape))
        action = rng.uniform(-1, 1, size=(1, *action_shape))
        model.replay_buffer.add(obs, next_obs, action, rng.normal(size=1), np.zeros(1), [{}])
    ends = [0.0]
    for _ in range(18):  # the first call compiles
        model.train(updates, 256)
        ends.append(time.perf_counter())
    return {"measured": "component", "env": env, "seed": seed, "seconds_per_sac_update": median_step(ends[3:]) / updates}


def peer_model(sizes: argparse.Namespace) -> Any:
    """
    mbrl-lib's Gaussian ensemble in the wrapper that its planners step, with initial weights.

    :param sizes: ``ensemble_size``, ``n_elites``, ``layers``, ``obs_dim``, ``action_dim`` and ``propagation``
    :return: a ``mbrl.models.OneDTransitionRewardModel``
    """
    models: Any = importlib.import_module("mbrl.models")
    network = models.GaussianMLP(
        sizes.obs_dim + sizes.action_dim,
        sizes.obs_dim + 1,
        "cpu",
        num_layers=sizes.layers,
        ensemble_size=sizes.ensemble_size,
        hid_size=200,
        propagation_method=PROPAGATIONS[sizes.propagation],
        activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )
    model = models.OneDTransitionRewardModel(
        network, target_is_delta=True, normalize=True, learned_rewards=True, num_elites=sizes.n_elites
    )
    model.set_elite(range(sizes.n_elites))
    return model


def mbrl_agent(sizes: argparse.Namespace) -> Callable[[Any], Any]:
    """
    mbrl-lib's agent that acts by planning: ``TrajectoryOptimizerAgent`` on ``ModelEnv.evaluate_action_sequences``.

    :param sizes: those of :func:`peer_model`, and ``planner``, ``population``, ``horizon``, ``iterations`` and ``particles``
    :return: a function from an observation to an action
    """
    torch: Any = importlib.import_module("torch")
    env: Any = importlib.import_module("mbrl.models").ModelEnv
    agent: Any = importlib.import_module("mbrl.planning").TrajectoryOptimizerAgent
    omega_conf: Any = importlib.import_module("omegaconf").OmegaConf
    spaces: Any = importlib.import_module("gymnasium.spaces")

    def never(_actions: Any, next_obs: Any) -> Any:
        return torch.zeros(len(next_obs), 1, dtype=torch.bool)

    class Spaces:  # all that ModelEnv asks of the environment
        observation_space = spaces.Box(-float("inf"), float("inf"), (sizes.obs_dim,))
        action_space = spaces.Box(-1, 1, (sizes.action_dim,))

    model_env = env(Spaces(), peer_model(sizes), never, None, generator=torch.Generator().manual_seed(sizes.seed))
    common = {"num_iterations": sizes.iterations, "population_size": sizes.population, "device": "cpu"}
    own = {
        "cem": {"elite_ratio": 0.1, "alpha": 0.1, "return_mean_elites": True},
        "icem": {
            "elite_ratio": 0.1,
            "alpha": 0.1,
            "population_decay_factor": 1.25,
            "colored_noise_exponent": 2.0,
            "keep_elite_frac": 0.3,
        },
        "mppi": {"gamma": 10.0, "sigma": 0.5, "beta": 1.0},
    }[sizes.planner]
    target = {"cem": "CEMOptimizer", "icem": "ICEMOptimizer", "mppi": "MPPIOptimizer"}[sizes.planner]
    bounds = {"lower_bound": None, "upper_bound": None}  # the agent fills them in
    optimizer = omega_conf.create({"_target_": f"mbrl.planning.{target}"} | common | own | bounds)
    acts = agent(optimizer, [-1.0] * sizes.action_dim, [1.0] * sizes.action_dim, sizes.horizon)
    acts.set_trajectory_eval_fn(
        lambda obs, sequences: model_env.evaluate_action_sequences(sequences, initial_state=obs, num_particles=sizes.particles)
    )
    return acts.act  # type: ignore[no-any-return]


def pytorch_mppi_agent(sizes: argparse.Namespace) -> Callable[[Any], Any]:
    """
    pytorch_mppi in mbrl-lib's model. The learned reward is an additional column of the state.

    :param sizes: those of :func:`mbrl_agent`
    :return: a function from an observation to an action
    """
    torch: Any = importlib.import_module("torch")
    mppi: Any = importlib.import_module("pytorch_mppi").MPPI
    model, rng = peer_model(sizes), torch.Generator().manual_seed(sizes.seed)
    planned: dict[str, Any] = {}

    def dynamics(state: Any, action: Any) -> Any:
        next_obs, reward, _, planned["state"] = model.sample(action, planned["state"] | {"obs": state[:, :-1]}, rng=rng)
        return torch.cat([next_obs, reward], dim=1)

    controller = mppi(
        dynamics,
        lambda state, _action: -state[:, -1],
        sizes.obs_dim + 1,
        0.25 * torch.eye(sizes.action_dim),
        num_samples=sizes.population,
        horizon=sizes.horizon,
        lambda_=0.1,
        u_min=-torch.ones(sizes.action_dim),
        u_max=torch.ones(sizes.action_dim),
        rollout_samples=sizes.particles,
    )

    @torch.no_grad()
    def act(obs: Any) -> Any:
        state = torch.cat([torch.as_tensor(obs), torch.zeros(1)])
        for iteration in range(sizes.iterations):
            planned["state"] = model.reset(torch.empty(sizes.population * sizes.particles, sizes.obs_dim), rng=rng)
            action = controller.command(state, shift_nominal_trajectory=iteration == 0)
        return action

    return act


def time_planning(sizes: argparse.Namespace) -> dict[str, Any]:
    """
    Time the planning of one action for one environment, ``sizes.repeats`` times after one call that is not timed.

    :param sizes: the command line
    :return: the measurement, with medians
    """
    np: Any = importlib.import_module("numpy")
    with peer_session(sizes.seed, sizes.threads):
        act = {"mbrl-lib": mbrl_agent, "pytorch_mppi": pytorch_mppi_agent}[sizes.peer](sizes)
        wall, cpu = [], []
        for _ in range(sizes.repeats + 1):
            obs = np.random.normal(size=sizes.obs_dim).astype(np.float32)
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            act(obs)
            wall.append(time.perf_counter() - wall_start)
            cpu.append(time.process_time() - cpu_start)
    names = ["planner", "propagation", *PLANNING_SIZES]
    return {
        "measured": "planning",
        **{name: getattr(sizes, name) for name in names},
        "seconds_per_action": round(statistics.median(wall[1:]), 4),
        "cpu_seconds_per_action": round(statistics.median(cpu[1:]), 4),
    }


def time_imagination(n_envs: int, steps: int, seed: int, threads: int) -> dict[str, Any]:
    """
    Time steps of ``ModelEnv``, a batch of environments in a model. It has the shapes of Hopper and MBPO's ensemble with its
    initial weights: seven members of four layers, and five elites, one of which is drawn for each row and step.

    :param n_envs: environments in the batch, rounded up to a multiple of the elites, which the peer requires
    :param steps: steps to time, after a tenth as many that are not timed
    :param seed: seed of everything
    :param threads: threads that PyTorch may use
    :return: the measurement
    """
    np: Any = importlib.import_module("numpy")
    torch: Any = importlib.import_module("torch")
    env: Any = importlib.import_module("mbrl.models").ModelEnv
    spaces: Any = importlib.import_module("gymnasium.spaces")
    hopper: Any = importlib.import_module("mbrl.env.termination_fns").hopper
    shape = argparse.Namespace(obs_dim=11, action_dim=3, ensemble_size=7, n_elites=5, layers=4, propagation="ts1", seed=seed)

    n_envs = -(-n_envs // shape.n_elites) * shape.n_elites

    class Spaces:  # all that ModelEnv asks of the environment
        observation_space = spaces.Box(-float("inf"), float("inf"), (shape.obs_dim,))
        action_space = spaces.Box(-1, 1, (shape.action_dim,))

    with peer_session(seed, threads):
        model_env = env(Spaces(), peer_model(shape), hopper, None, generator=torch.Generator().manual_seed(seed))
        rng = np.random.default_rng(seed)
        first = rng.normal(size=(n_envs, shape.obs_dim)).astype(np.float32)
        actions = rng.uniform(-1, 1, size=(n_envs, shape.action_dim)).astype(np.float32)
        state = model_env.reset(first, return_as_np=True)
        for step in range(steps + steps // 10):
            if step == steps // 10:
                wall, cpu = time.perf_counter(), time.process_time()
            state = model_env.step(actions, state, sample=True)[-1]
            if step % 10 == 9:  # with initial weights, states drift away
                state = model_env.reset(first, return_as_np=True)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "measured": "imagination",
        "n_envs": n_envs,
        "transitions_per_second": round(n_envs * steps / wall),
        "transitions_per_cpu_second": round(n_envs * steps / cpu),
    }


def median_step(moments: Sequence[float]) -> float:
    """
    :param moments: increasing times
    :return: the median time between consecutive moments
    """
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(moments))


def main() -> None:
    """
    Make the measurement that the command line selects and print it.
    """
    parser = argparse.ArgumentParser(description="Time a peer library (run under the peer's own Python).")
    parser.add_argument("peer", choices=["mbrl-lib", "pytorch_mppi", "sbx"])
    parser.add_argument("--env", choices=sorted(OVERRIDES), default="Hopper-v5")
    parser.add_argument("--random-steps", type=int, default=5000, help="uniformly random steps first, not timed")
    parser.add_argument("--steps", type=int, default=1000, help="training steps: up to 1000, or a multiple of 1000")
    parser.add_argument("--train-freq", type=int, default=250, help="steps between two fits (lower it to try the script)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--component", action="store_true", help="time one fit epoch and one SAC update instead of the loop")
    parser.add_argument("--imagine", type=int, metavar="ENVS", help="time steps of this many imagined environments instead")
    planning = parser.add_argument_group("planning", "the same as those of planning_cost.py")
    planning.add_argument("--planner", choices=["cem", "icem", "mppi"], help="time plans by this planner instead of the loop")
    planning.add_argument("--propagation", choices=sorted(PROPAGATIONS), default="tsinf")
    for name, default in PLANNING_SIZES.items():
        planning.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    args = parser.parse_args()
    if args.peer == "pytorch_mppi" and args.planner != "mppi":
        parser.error("pytorch_mppi has only one planner: pass --planner mppi")

    if args.peer == "sbx" and not args.component:
        parser.error("only the update of sbx can be timed: pass --component")

    # These variables must be set before NumPy and PyTorch are imported, which happens in the functions called below
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(args.threads)
    if args.planner:
        measured = time_planning(args)
    elif args.imagine:
        measured = time_imagination(args.imagine, 300, args.seed, args.threads)
    elif args.peer == "sbx":
        measured = time_sbx(args.env, args.seed, args.threads)
    elif args.component:
        measured = time_components(args.env, args.seed, args.threads)
    else:
        measured = time_mbpo(args.env, args.random_steps, args.steps, args.seed, args.threads, args.train_freq)
    measured |= {
        "threads": args.threads,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "versions": versions(),
    }
    print(json.dumps({"peer": args.peer} | measured))


if __name__ == "__main__":
    main()
