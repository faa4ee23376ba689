"""A study on disk that several processes work on, any of which may be killed at any time.

Optuna's journal is one file; each line is one operation, written and synchronised as a whole, and
the state of the study is what its lines add up to. This module adds three things:

- The lock of the journal is the kernel's (`flock`): it ends with the process that holds it. A line
  that a dying process left unfinished is cut off by the next one to take the lock.
- Each worker holds the lock of a file of its own while it lives. A running trial whose worker's
  file is free was interrupted: no clock, no grace period, and a slow worker is never taken for a
  dead one.
- Choosing the next trial happens under the lock of the journal as a whole, so that the number of
  answers is exact.

No JAX here: a worker that does not need it does not load it.
"""

import contextlib
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mlnotes_jax.generalization import _spaces

try:
    import fcntl as _fcntl
except ImportError:  # not POSIX
    _fcntl = None

fcntl: Any = _fcntl

_NAME = "search"
_JOURNAL = "journal.log"
_POLL_S = 0.05


class Trial(NamedTuple):
    """One attempt at one setting, as the study has it on disk.

    Attributes:
        number: 0, 1, 2, ... in the order in which they were begun.
        settings: Name to value.
        state: `"complete"`; `"failed"` (the objective raised, or its score is not finite);
            `"interrupted"` (its process ended before it answered); `"running"`, or `"waiting"` to
            be tried again.
        score: Larger is better; NaN unless complete.
        reason: Why it failed or was interrupted; else empty.
        retry_of: The number of the interrupted trial that this one repeats, or None.
        seconds: From begin to end; NaN while it runs.
    """

    number: int
    settings: dict[str, Any]
    state: Literal["complete", "failed", "interrupted", "running", "waiting"]
    score: float
    reason: str
    retry_of: int | None
    seconds: float


def create_study(
    folder: str | os.PathLike[str],
    space: _spaces.Space,
    *,
    num_trials: int,
    seed: int,
    sampler: Literal["tpe", "random"] = "tpe",
    max_attempts: int = 3,
) -> Path:
    """Begin a study on disk, or find it again.

    Everything that the workers must agree on is written down here, once. Calling it again with the
    same arguments changes nothing; a larger `num_trials` makes the study longer.

    Args:
        folder: Where the study lies; made if it is not there. On a disk of this machine, or one
            whose file locks work across machines.
        space: Name to dimension, as for `grid`. Options of a `choice` must be text, numbers,
            Booleans or None.
        num_trials: How many settings shall be answered: scored, or failed for good.
        seed: Of the sampler, which draws on the host. Trial t is drawn from (seed, t) and the
            trials before it, so a study with one worker comes out the same, however often it was
            stopped between trials.
        sampler: `"tpe"`: Bayesian, by the tree-structured Parzen estimator; the first ten are
            random. Or `"random"`.
        max_attempts: How often a setting is begun whose process ends each time (for want of
            memory, say), before it counts as failed.

    Returns:
        The folder.

    Raises:
        ValueError: The study exists with other arguments, or an argument is out of range.
        TypeError: A number is not an integer, or an option is of another type.
        ImportError: Optuna is not installed; the message says how to install it.

    Example:
        >>> import tempfile
        >>> from mlnotes_jax.generalization import search
        >>> space = {"rate": search.log_uniform(1e-4, 1.0)}
        >>> folder = search.create_study(tempfile.mkdtemp(), space, num_trials=8, seed=0)
        >>> search.work(folder, lambda settings, number: -abs(settings["rate"] - 0.1))
        8
        >>> search.best_trial(folder).settings["rate"] > 0.01
        True

    Reference:
        Akiba et al., *Optuna* (KDD, 2019); Bergstra et al., *Algorithms for Hyper-Parameter
        Optimization* (NIPS, 2011), section 4, for TPE.

    Note:
        Optuna's own recipe for workers that die is a relational database with heartbeats: it works
        across machines without shared locks, and takes a worker that is silent for long for dead.
    """
    for name, value, least in (
        ("num_trials", num_trials, 1),
        ("seed", seed, 0),
        ("max_attempts", max_attempts, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if sampler not in ("tpe", "random"):
        raise ValueError(f"sampler must be one of 'tpe', 'random', got {sampler!r}")
    plan = {
        "space": {n: _to_json(n, d) for n, d in _spaces.checked(space).items()},
        "num_trials": int(num_trials),
        "seed": int(seed),
        "sampler": sampler,
        "max_attempts": int(max_attempts),
    }
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with _Lock(path / _JOURNAL) as lock:
        study, _ = _open(path, lock, create=True)
        old = study.user_attrs.get("plan", plan)
        for name in plan:
            if old[name] != plan[name] and name != "num_trials":
                raise ValueError(
                    f"{name} must be that of the study in {path}, {old[name]!r}, got {plan[name]!r}"
                )
        if plan["num_trials"] < old["num_trials"]:
            raise ValueError(
                f"num_trials must be at least that of the study in {path}, "
                f"{old['num_trials']}, got {num_trials}"
            )
        if study.user_attrs.get("plan") != plan:
            study.set_user_attr("plan", plan)
    return path


def work(
    folder: str | os.PathLike[str],
    objective: Callable[[dict[str, Any], int], Any],
    *,
    max_trials: int | None = None,
) -> int:
    """Be a worker: take a setting, score it, write the answer down, until the study is complete.

    Start as many processes with this line as you like, on one folder, whenever you like. Each may
    be killed at any time. What was answered stays; the trial it was at is marked as interrupted
    and tried again by another worker, or by this one after a restart.

    Args:
        folder: Of a study made by `create_study`.
        objective: `objective(settings, number) -> score`, larger is better. If it raises an
            exception or its score is not finite, the trial has failed, with that reason, and is
            not tried again.
        max_trials: Return after so many; None: when all settings of the study are answered.

    Returns:
        How many trials this worker has answered.

    Raises:
        FileNotFoundError: There is no study in the folder.
        ImportError: Optuna is not installed, or the system has no POSIX file locks.

    Example:
        As of `create_study`.

    Note:
        Whether a worker lives is asked of the kernel, by a lock that it holds. A process that the
        objective forks holds it, too: a trial counts as running until both are gone.
    """
    done = 0
    path = Path(folder)
    with _Lock(path / _JOURNAL, must_exist=True) as lock:
        study, storage = _open(path, lock)
    with _alive(path, lock) as name:
        while max_trials is None or done < max_trials:
            trial = _next(study, storage, lock, path, name)
            if trial is None:
                break
            try:
                score = float(objective(dict(trial.params), trial.number))
                reason = "" if math.isfinite(score) else f"the score is {score}"
            except Exception as error:
                score, reason = math.nan, f"{type(error).__name__}: {error}"
            if reason:
                trial.set_user_attr("failed", reason)
            with _quiet():
                state = _optuna().trial.TrialState
                study.tell(
                    trial, None if reason else score, state.FAIL if reason else state.COMPLETE
                )
            done += 1
    return done


def trials(folder: str | os.PathLike[str]) -> list[Trial]:
    """Read what a study has come to, from any process, at any time.

    Args:
        folder: Of a study made by `create_study`.

    Returns:
        All trials in the order in which they were begun.

    Raises:
        FileNotFoundError: There is no study in the folder.
        ImportError: Optuna is not installed.
    """
    path = Path(folder)
    with _Lock(path / _JOURNAL, must_exist=True) as lock:
        study, _ = _open(path, lock)
        return [_trial(frozen) for frozen in study.get_trials(deepcopy=False)]


def best_trial(folder: str | os.PathLike[str]) -> Trial:
    """The complete trial with the largest score, the first of equals.

    Args:
        folder: Of a study made by `create_study`.

    Returns:
        The trial.

    Raises:
        FileNotFoundError: There is no study in the folder.
        ValueError: No trial is complete; the message says why the first has failed.
        ImportError: Optuna is not installed.
    """
    found = trials(folder)
    complete = [trial for trial in found if trial.state == "complete"]
    if complete:
        return max(complete, key=lambda trial: trial.score)
    failed = [trial for trial in found if trial.reason]
    why = f"; {len(failed)} failed, the first because of: {failed[0].reason}" if failed else ""
    raise ValueError(f"no trial of {folder} is complete, of {len(found)}{why}")


# --- The next trial -------------------------------------------------------------------------------


def _next(study: Any, storage: Any, lock: "_Lock", path: Path, name: str) -> Any:
    """The next trial for a worker; None where the study is complete. Waits for the last ones."""
    optuna = _optuna()
    state = optuna.trial.TrialState
    while True:
        with lock:
            plan = study.user_attrs["plan"]
            _retry_interrupted(study, storage, path, plan["max_attempts"])
            found = study.get_trials(deepcopy=False)
            waiting = any(trial.state == state.WAITING for trial in found)
            running = sum(trial.state == state.RUNNING for trial in found)
            answered = sum(_is_answer(trial, plan["max_attempts"]) for trial in found)
            if waiting or answered + running < plan["num_trials"]:
                seed = int(np.random.SeedSequence([plan["seed"], len(found)]).generate_state(1)[0])
                samplers = optuna.samplers
                kinds = {"tpe": samplers.TPESampler, "random": samplers.RandomSampler}
                study.sampler = kinds[plan["sampler"]](seed=seed)
                space = {n: _from_json(text) for n, text in plan["space"].items()}
                trial = study.ask(space)  # a waiting one, if there is one
                trial.set_user_attr("worker", name)
                return trial
            if not running:
                return None
        time.sleep(_POLL_S)  # another worker may yet die with the last one


def _is_answer(trial: Any, max_attempts: int) -> bool:
    if trial.state.name == "COMPLETE":
        return True
    attempt = trial.user_attrs.get("attempt", 1)
    interrupted = "interrupted" in trial.user_attrs
    return trial.state.name == "FAIL" and (not interrupted or attempt >= max_attempts)


def _retry_interrupted(study: Any, storage: Any, path: Path, max_attempts: int) -> None:
    """Close running trials whose worker is gone, and queue their settings again.

    In an order that may itself be interrupted anywhere: it is then done again, and queues nothing
    twice.
    """
    optuna = _optuna()
    state = optuna.trial.TrialState
    found = study.get_trials(deepcopy=False)
    for trial in [trial for trial in found if trial.state == state.RUNNING]:
        # A trial is asked for under the lock that is held here: without a worker, its is gone.
        worker = trial.user_attrs.get("worker")
        if worker is not None and _holds(path / worker):
            continue
        attempt = trial.user_attrs.get("attempt", 1)
        first = trial.user_attrs.get("retry_of", trial.number)
        follow = {"retry_of": first, "attempt": attempt + 1}
        queued = any(follow.items() <= other.user_attrs.items() for other in found)
        if attempt < max_attempts and not queued:
            again = optuna.create_trial(
                state=state.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=follow,
            )
            study.add_trial(again)
        reason = f"its process ended before it answered (attempt {attempt} of {max_attempts})"
        study_id = storage.get_study_id_from_name(_NAME)
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        storage.set_trial_user_attr(trial_id, "interrupted", reason)
        study.tell(trial.number, state=state.FAIL)
    for worker in path.glob("worker_*"):
        if not _holds(worker):
            worker.unlink(missing_ok=True)


def _trial(frozen: Any) -> Trial:
    attributes = frozen.user_attrs
    state: Any = {"COMPLETE": "complete", "RUNNING": "running", "WAITING": "waiting"}.get(
        frozen.state.name, "interrupted" if "interrupted" in attributes else "failed"
    )
    reason = attributes.get("interrupted", attributes.get("failed", ""))
    return Trial(
        number=frozen.number,
        settings=dict(frozen.params),
        state=state,
        score=float(frozen.value) if state == "complete" else math.nan,
        reason=reason if state in ("failed", "interrupted") else "",
        retry_of=attributes.get("retry_of"),
        seconds=frozen.duration.total_seconds() if frozen.duration is not None else math.nan,
    )


# --- Optuna ---------------------------------------------------------------------------------------


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            'a study needs Optuna, which is not installed: pip install "mlnotes-jax[search]"'
        ) from error
    return optuna


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna reports what it does on the standard error; this keeps warnings only."""
    logging = _optuna().logging
    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _open(path: Path, lock: "_Lock", *, create: bool = False) -> tuple[Any, Any]:
    optuna = _optuna()
    journal = optuna.storages.journal
    backend = journal.JournalFileBackend(str(path / _JOURNAL), lock_obj=lock)
    with _quiet():
        storage = optuna.storages.JournalStorage(backend)
        if any(study.study_name == _NAME for study in storage.get_all_studies()):
            study = optuna.load_study(study_name=_NAME, storage=storage)
        elif create:
            study = optuna.create_study(study_name=_NAME, storage=storage, direction="maximize")
        else:
            raise FileNotFoundError(f"there is no study in {path}: call create_study first")
    if not create and "plan" not in study.user_attrs:
        raise FileNotFoundError(f"there is no study in {path}: call create_study again")
    return study, storage


def _to_json(name: str, dimension: _spaces.Dimension) -> str:
    distributions = _optuna().distributions
    if isinstance(dimension, _spaces.Choice):
        for option in dimension.options:
            if not isinstance(option, None | bool | int | float | str):
                raise TypeError(
                    f"space[{name!r}] must have text, numbers, Booleans or None as options in a "
                    f"study, got {option!r}"
                )
        found = distributions.CategoricalDistribution(dimension.options)
    elif dimension.whole:
        found = distributions.IntDistribution(
            int(dimension.low), int(dimension.high), log=dimension.log
        )
    else:
        found = distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return json.dumps(json.loads(distributions.distribution_to_json(found)), sort_keys=True)


def _from_json(text: str) -> Any:
    return _optuna().distributions.json_to_distribution(text)


# --- Locks that end with their process ------------------------------------------------------------


class _Lock:
    """The lock of the journal, for Optuna and for us; the same object may take it twice."""

    def __init__(self, path: Path, *, must_exist: bool = False) -> None:
        if fcntl is None:
            raise ImportError("a study needs POSIX file locks, which this system does not have")
        if must_exist and not path.exists():
            raise FileNotFoundError(f"there is no study in {path.parent}: call create_study first")
        self._path, self._depth, self._file = path, 0, -1

    def acquire(self) -> bool:
        if self._depth == 0:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._mend()
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            os.close(self._file)

    def __enter__(self) -> "_Lock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _mend(self) -> None:
        """Cut off a last line that was not written to its end."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.ftruncate(self._file, self._path.read_bytes().rfind(b"\n") + 1)


@contextlib.contextmanager
def _alive(path: Path, lock: _Lock) -> Iterator[str]:
    """Hold a lock of one's own for as long as this process lives; gives its name."""
    name = f"worker_{socket.gethostname()}_{os.getpid()}_{secrets.token_hex(4)}"
    with lock:  # so that nobody finds the file before it is locked
        file = os.open(path / name, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield name
    finally:
        with lock:
            (path / name).unlink(missing_ok=True)
        os.close(file)


def _holds(path: Path) -> bool:
    """Whether a process holds the lock of this file."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
