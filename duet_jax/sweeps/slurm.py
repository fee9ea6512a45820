"""Runs the trials of a sweep as jobs of Slurm, by submitit.

One array has a task for each trial that is to do. The id of its job is kept with the
record of a trial, so that the same command finds the jobs again.
"""

import argparse
import contextlib
import fcntl
import io
import logging
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from duet_jax.errors import UsageError
from duet_jax.runtime.terminal import printable
from duet_jax.sweeps import runner
from duet_jax.sweeps.job import Job
from duet_jax.sweeps.overview import Overview, epoch_of
from duet_jax.sweeps.trial import Trial

if TYPE_CHECKING:
    import submitit

_log = logging.getLogger(__name__)
_ROOT = pathlib.Path(__file__).parents[2]

# Between two questions to Slurm, which answers everybody on the cluster.
_SECONDS_BETWEEN_QUESTIONS = 30
_SECONDS_FOR_AN_ANSWER = 60
# Before the time limit of a job; what a training needs to save its state.
_SECONDS_TO_SAVE = 120
# A limit against jobs that never get anywhere.
_MOST_REQUEUES = 100

_PROGRAMS = ("sbatch", "srun", "squeue")
_SIGNAL = "a job is told before its time limit and goes back to the queue"
_ONE_PROCESS = "a run is one process on one machine"
_LOGS = "logs are in slurm/ in the work directory"
# Options of sbatch that are not free -> why.
_OURS = {
    "array": "there is one task for each run; --parallel says how many run at once",
    "chdir": "jobs start in the current directory",
    "clusters": "jobs are looked for on this cluster",
    "error": _LOGS,
    "nodes": _ONE_PROCESS,
    "no-requeue": _SIGNAL,
    "ntasks": _ONE_PROCESS,
    "ntasks-per-node": _ONE_PROCESS,
    "open-mode": _LOGS,
    "output": _LOGS,
    "parsable": "it changes what sbatch prints",
    "requeue": _SIGNAL,
    "signal": _SIGNAL,
    "test-only": "it submits nothing; use --print",
    "wait": "the sweep itself waits",
    "wrap": "the sweep has a command of its own",
}
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


class _NoAnswerError(UsageError):
    """Slurm does not say which jobs there are."""


class Slurm:
    """The launcher that has a cluster run the trials."""

    def __init__(self, options: argparse.Namespace, workdir: pathlib.Path):
        """Checks the flags, and that there is a cluster; submits nothing.

        Args:
          options: the command line.
          workdir: of the sweep.

        Raises:
          UsageError: something wrong with them, or what is needed is not installed.
        """
        self._options = read_options(options.slurm)
        self._minutes = minutes(self._options.get("time"))
        self._parallel = _count(options.parallel)
        self._folder = workdir / "slurm"
        _check_installed()
        # By work directory: the jobs that are watched, their last known states, and the
        # trials whose job has been missed once.
        self._jobs: dict[pathlib.Path, str] = {}
        self._states: dict[pathlib.Path, str] = {}
        self._missed: set[pathlib.Path] = set()

    def perform(
        self,
        trials: Sequence[Trial],
        stop: runner.Stop,
        ended: Callable[[], None],
    ) -> None:
        """Submits what has no job, and watches the jobs until all have ended.

        Args:
          trials: of the sweep.
          stop: receives signals; the jobs go on.
          ended: called when runs have ended.

        Raises:
          UsageError: Slurm does not answer, refuses the jobs, or runs other commands.
        """
        left = runner.unfinished(trials)
        began = {trial.directory: trial.share for trial in left}
        if left:
            self._check_commands(left, _queue())
        with contextlib.closing(Overview(trials)) as overview:
            while left and not stop.signal:
                before, left = left, self._look(left, overview)
                if len(left) < len(before):
                    ended()
                gained = sum(each.share - began[each.directory] for each in left)
                overview.show_all(self._summary(left), gained)
                _rest(stop, bool(left))

    @property
    def farewell(self) -> str:
        """What a user is told who stops the sweep."""
        arrays = sorted({job.partition("_")[0] for job in self._jobs.values()})
        end = f"; scancel {' '.join(arrays)} ends them" if arrays else ""
        return f"stopped; jobs go on, the same command shows them again{end}"

    def _check_commands(
        self, trials: Sequence[Trial], queue: Mapping[str, str]
    ) -> None:
        for trial in trials:
            record = trial.record()
            job, command = record.get("job"), str(record.get("command", ""))
            if job in queue and _essence(command) != _essence(trial.command):
                raise UsageError(
                    f"{trial.name}: job {job} runs it with other flags ({command}); "
                    f"repeat them, or end it with scancel {job}."
                )

    def _look(self, trials: Sequence[Trial], overview: Overview) -> list[Trial]:
        """Asks Slurm once, and returns the trials that have not ended."""
        try:
            queue = self._submit(trials, _queue())
        except _NoAnswerError as error:  # it may answer later
            _log.warning("%s", error)
            return [*trials]
        left = []
        for trial in trials:
            if trial.finished:
                overview.finished(trial)
            elif self._is_lost(trial, queue):
                _note_loss(trial, self._jobs[trial.directory], self._folder)
                overview.failed(trial)
            else:
                self._tell(trial, queue, overview)
                left.append(trial)
        return left

    def _is_lost(self, trial: Trial, queue: Mapping[str, str]) -> bool:
        """Returns True if the job of an unfinished trial is gone at the second look.

        At the first one a shared file system may not yet show what the job has left.
        """
        job = self._jobs.get(trial.directory)
        if job is None or job in queue:
            self._missed.discard(trial.directory)
            return False
        before = trial.directory in self._missed
        self._missed.add(trial.directory)
        return before

    def _tell(self, trial: Trial, queue: Mapping[str, str], overview: Overview) -> None:
        """Says where a trial is, if that has changed."""
        job = self._jobs.get(trial.directory)
        state = "run by another process" if job is None else queue.get(job, "ENDING")
        if state != self._states.get(trial.directory):
            epoch = f", {epoch_of(trial, trial.share)}" if trial.share else ""
            place = f"{state}, job {job}" if job else state
            overview.say(trial, f"{place}{epoch}")
        self._states[trial.directory] = state

    def _summary(self, trials: Sequence[Trial]) -> str:
        """Returns how many runs are in which state, and the epochs of the running."""
        states = [self._states.get(trial.directory, "?") for trial in trials]
        counts = [f"{count} {state}" for state, count in Counter(states).items()]
        epochs = [
            f"{trial.name} {epoch_of(trial, trial.share)}"
            for trial, state in zip(trials, states, strict=True)
            if state == "RUNNING"
        ]
        return "  ".join((", ".join(counts), *epochs))

    def _submit(
        self, trials: Sequence[Trial], queue: Mapping[str, str]
    ) -> dict[str, str]:
        """Submits the trials that nobody runs, and returns the states of all jobs.

        A trial is submitted once at most: what fails waits for the next sweep.
        """
        self._attach(trials, queue)
        if all(trial.directory in self._jobs for trial in trials):
            return dict(queue)
        with _alone(self._folder):
            # Another sweep may just have submitted them.
            queue = _queue()
            self._attach(trials, queue)
            new = [
                trial
                for trial in trials
                if trial.directory not in self._jobs
                and not trial.finished
                and _is_free(trial)
            ]
            if not new:
                return queue
            ids = self._sent([Job(trial, os.getcwd()) for trial in new])
            for trial, job in zip(new, ids, strict=True):
                trial.directory.mkdir(parents=True, exist_ok=True)
                trial.write(job=job, error="")
                self._jobs[trial.directory] = job
        count = f"{len(ids)} run{'s' if len(ids) > 1 else ''}"
        array = ids[0].partition("_")[0]
        _log.info("submitted    job %s, %s; logs in %s", array, count, self._folder)
        _log.info("             Ctrl-C leaves it running, scancel %s ends it", array)
        return queue | dict.fromkeys(ids, "PENDING")

    def _attach(self, trials: Sequence[Trial], queue: Mapping[str, str]) -> None:
        """Watches the jobs of trials that earlier sweeps have submitted."""
        for trial in trials:
            job = trial.record().get("job")
            if job in queue:
                self._jobs.setdefault(trial.directory, job)

    def _sent(self, jobs: Sequence[Job]) -> list[str]:
        """Submits an array and returns the ids of its jobs."""
        executor = self._executor(jobs[0].trial.experiment)
        try:
            # Ctrl-C waits until it is known which jobs there are. submitit prints what
            # it raises.
            with runner.held(signal.SIGINT), contextlib.redirect_stderr(io.StringIO()):
                return [job.job_id for job in executor.submit_array(jobs)]
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(
                f"--launcher=slurm: sbatch refuses the jobs ({printable(reason)}); "
                "change the --slurm flags."
            ) from error

    def _executor(self, experiment: str) -> "submitit.SlurmExecutor":
        import submitit

        free = dict(self._options)
        name = free.pop("job-name", experiment)
        executor = submitit.SlurmExecutor(self._folder, max_num_timeout=_MOST_REQUEUES)
        # srun does not take over this option of sbatch in all versions of Slurm.
        cpus = [f"--{k}={v}" for k, v in free.items() if k == "cpus-per-task"]
        path = f"export PYTHONPATH={shlex.quote(str(_ROOT))}"
        executor.update_parameters(
            job_name=name,
            time=self._minutes,
            signal_delay_s=_SECONDS_TO_SAVE,
            stderr_to_stdout=True,
            setup=[f"{path}${{PYTHONPATH:+:$PYTHONPATH}}"],
            srun_args=cpus,
            additional_parameters={**free, "requeue": True},
            **({"array_parallelism": self._parallel} if self._parallel else {}),
        )
        return executor


def read_options(flags: Sequence[str]) -> dict[str, Any]:
    """Returns the options of sbatch by name; True for those without a value.

    sbatch itself refuses the options that it does not have.

    Args:
      flags: values of --slurm, such as "partition=gpu".

    Raises:
      UsageError: one has no name, is there twice, or is not free.
    """
    options: dict[str, Any] = {}
    for flag in flags:
        name, has_value, value = flag.partition("=")
        name = name.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name) or (has_value and not value):
            raise UsageError(
                f"--slurm={flag} must be an option of sbatch without its dashes, such "
                "as --slurm=partition=gpu or --slurm=exclusive."
            )
        if name in _OURS:
            raise UsageError(f"--slurm={flag} cannot be set: {_OURS[name]}.")
        if name in options:
            raise UsageError(f"--slurm={flag}: {name} is given twice; leave out one.")
        options[name] = value if has_value else True
    return options


def minutes(time_limit: str | bool | None) -> int:
    """Returns a time limit in whole minutes, rounded up.

    Args:
      time_limit: in a form of Slurm: minutes, minutes:seconds, hours:minutes:seconds,
        days-hours, days-hours:minutes, days-hours:minutes:seconds.

    Raises:
      UsageError: it is in none of them, or too short.
    """
    match = _TIME.fullmatch(str(time_limit)) if time_limit else None
    if not match:
        shown = f"time={time_limit}" if time_limit else "time"
        raise UsageError(
            f"--launcher=slurm needs a time limit, not --slurm={shown}: such as "
            "--slurm=time=4:00:00 or --slurm=time=1-12; a run that takes longer is "
            "saved before it and requeued."
        )
    days, *parts = match.groups()
    given = [int(part) for part in parts if part is not None]
    # Without days, a number alone is of minutes and a pair of minutes and seconds.
    units = (60, 1) if days is None and len(given) < 3 else (3600, 60, 1)
    pairs = zip(given, units, strict=False)
    seconds = 86400 * int(days or 0) + sum(number * unit for number, unit in pairs)
    if seconds < 2 * _SECONDS_TO_SAVE:
        raise UsageError(
            f"--slurm=time={time_limit} is too short: a run is told to save its state "
            f"{_SECONDS_TO_SAVE} s before the limit; use "
            f"{2 * _SECONDS_TO_SAVE // 60} minutes or more."
        )
    return -(-seconds // 60)


def _count(parallel: str | None) -> int | None:
    if parallel is not None and not (parallel.isdecimal() and int(parallel)):
        raise UsageError(
            f"--parallel={parallel} must be a whole number above 0: how many runs of "
            "the array run at once."
        )
    return int(parallel) if parallel else None


def _check_installed() -> None:
    try:
        import submitit  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            "--launcher=slurm needs a package that is not installed: pip install "
            "submitit, which is the extra slurm of this project."
        ) from error
    for name in _PROGRAMS:
        if shutil.which(name) is None:
            raise UsageError(
                f"--launcher=slurm: there is no {name} on this machine; start the "
                "sweep on a login node of the cluster, or use --launcher=local."
            )


def _queue() -> dict[str, str]:
    """Returns the states of the user's jobs that have not ended, by job.

    Raises:
      _NoAnswerError: Slurm does not answer.
    """
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]
    status, out, reason = _ask(*command)
    if status:
        raise _NoAnswerError(f"--launcher=slurm: squeue does not answer ({reason}).")
    lines = [line.split() for line in out.splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2}


def _ask(*command: str) -> tuple[int, str, str]:
    """Returns exit status, output, and what is wrong, of a program of Slurm."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS_FOR_AN_ANSWER,
            start_new_session=True,  # Ctrl-C is for this process alone
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", printable(str(error))
    reason = " ".join(done.stderr.split()) or f"status {done.returncode}"
    return done.returncode, done.stdout, printable(reason)


def _note_loss(trial: Trial, job: str, folder: pathlib.Path) -> None:
    """Records why a job is gone, if its run has not done so itself."""
    if trial.record().get("error"):
        return
    _, out, _ = _ask("sacct", "-X", "-n", "-P", "-o", "State", "-j", job)
    state = f" as {printable(out.splitlines()[-1])}" if out.strip() else ""
    log = folder / f"{job}_0_log.out"
    with trial.claimed() as claim:
        if claim is not None:
            trial.write(error=f"job {job} has ended{state}; see {log}")


def _is_free(trial: Trial) -> bool:
    with trial.claimed() as claim:
        return claim is not None


def _essence(command: str) -> list[str]:
    """Returns what a command is about: two may name the same places differently."""
    flags = [each for each in shlex.split(command) if each.startswith("--")]
    return [
        each.rpartition("/")[2] if each.startswith("--config=") else each
        for each in flags
        if not each.startswith("--workdir=")
    ]


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Has other sweeps wait while this one submits."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _rest(stop: runner.Stop, long: bool) -> None:
    """Waits until the next question, or a signal."""
    for _ in range(_SECONDS_BETWEEN_QUESTIONS if long else 0):
        if stop.signal:
            return
        time.sleep(1.0)
