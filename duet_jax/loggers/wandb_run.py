"""Rows on a Weights & Biases server, or kept on disk until one can be reached.

Training must not depend on a server. So the server is asked one bounded question
before the client is started, because the client itself retries for minutes; whatever
fails then or later costs one warning and never an exception. Text of the client's own
errors is not repeated: some of them quote the API key.
"""

import logging
import os
import pathlib
import secrets
import sys
from collections.abc import Callable, Mapping

from duet_jax.errors import UsageError, lookup
from duet_jax.loggers.wandb_access import (
    Credentials,
    read_credentials,
    saved_key,
    why_not_online,
)

MODES = {
    "online": "rows appear on the server while training runs",
    "offline": "rows are kept in the run's directory for `wandb sync`",
    "disabled": "as without a project",
}

# With the import of the client and the question before it, a server that hangs at
# either point costs less than ten seconds.
_INIT_SECONDS = 4.0
# For what is not uploaded yet when training ends.
_FINISH_SECONDS = 30.0

# The client keeps off the terminal, which belongs to the progress bar.
_QUIET = {"silent": True, "console": "off"}

_log = logging.getLogger(__name__)


class WandB:
    """Writes one value per measurement, named "<split>/<name>"."""

    def __init__(self, run: object) -> None:
        """Takes a run as `wandb.init` returns it."""
        self._run = run
        self._broken = False

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Logs the numbers of `row` at `row["step"]`, and the epoch as an axis."""
        values = {
            f"{row['split']}/{name}": float(value)
            for name, value in row.items()
            if name not in ("step", "epoch", "split") and not isinstance(value, str)
        }
        if "epoch" in row:
            values["epoch"] = float(row["epoch"])
        self._attempt(lambda: self._run.log(values, step=int(row["step"])))

    def picture(self, name: str, path: str | os.PathLike, step: int) -> None:
        """Logs the image file at `path` under `name`."""
        import wandb

        def log() -> None:
            self._run.log({name: wandb.Image(os.fspath(path))}, step=step)

        self._attempt(log)

    def close(self) -> None:
        """Uploads what is left, for a bounded time; marks the run failed in an error.

        The run counts as failed when this is called while an exception is handled.
        """
        failed = sys.exception() is not None
        self._attempt(lambda: self._run.finish(exit_code=int(failed)))

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # whatever the client raises, training goes on
            self._broken = True
            _log.warning(
                "wandb stopped working (%s); %s",
                type(error).__name__,
                _how_to_upload(self._run),
            )


def check_wandb(project: str, mode: str | None) -> None:
    """Raises a UsageError for what `open_wandb` would refuse, before a run begins."""
    if project and _chosen(mode) == "online":
        read_credentials()


def _chosen(mode: str | None) -> str:
    mode = mode or os.environ.get("WANDB_MODE") or "online"
    lookup(MODES, mode, "config.wandb.mode (or WANDB_MODE)")
    return mode


def open_wandb(
    workdir: pathlib.Path,
    *,
    config_dict: Mapping,
    run_name: str,
    project: str,
    entity: str | None = None,
    mode: str | None = None,
    resume_step: int | None = None,
) -> WandB | None:
    """Starts a run on the server or, where that fails, offline with one warning.

    Args:
      workdir: directory of the run; all files of the client go below `wandb` in it.
      config_dict: the resolved configuration, without secrets.
      run_name: how the server calls the run.
      project: the server's project.
      entity: user or team; the user's default if None.
      mode: one of `MODES`; None takes WANDB_MODE or else "online".
      resume_step: None starts a new run; otherwise the run of this directory goes on.

    Returns:
      The writer; None if disabled or if not even an offline run can be started.

    Raises:
      UsageError: unknown mode, unreadable credentials, or wandb is not installed.
    """
    mode = _chosen(mode)
    if mode == "disabled":
        return None
    credentials = read_credentials() if mode == "online" else Credentials(None, None)
    client = _import_client()
    options = {
        "project": project,
        "entity": entity,
        "name": run_name,
        "id": _run_id(workdir, resume_step),
        "resume": "allow",
        "dir": os.path.abspath(workdir),
        "config": dict(config_dict),
    }
    problem = None
    if mode == "online":
        run, problem = _start_online(client, options, credentials)
        if run is not None:
            return WandB(run)
    return _start_offline(client, options, problem)


def _run_id(workdir: pathlib.Path, resume_step: int | None) -> str:
    """Returns the name by which the server knows this directory's run."""
    path = workdir / "wandb_run_id"
    if resume_step is not None and path.exists():
        return path.read_text(encoding="utf-8").strip()
    run_id = secrets.token_hex(4)
    path.write_text(run_id + "\n", encoding="utf-8")
    return run_id


def _import_client() -> object:
    # The client reports its own failures to its makers, and prints when it cannot.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb  # here, because it takes a second and few runs want it
    except ImportError:
        raise UsageError(
            "config.wandb.project is set but wandb is not installed; "
            "run `pip install wandb` or leave the project empty."
        ) from None
    return wandb


def _open_session(client: object) -> object:
    """Returns the client's session, whose own messages are off as well."""
    return client.setup(client.Settings(**_QUIET))


def _start(client: object, options: Mapping, **settings: object) -> object:
    """Returns a started run."""
    settings = client.Settings(
        **_QUIET,
        **settings,
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    return client.init(**options, settings=settings)


def _start_online(
    client: object, options: Mapping, credentials: Credentials
) -> tuple[object | None, str | None]:
    """Returns the run, or None and the reason why there is none."""
    try:
        base_url = credentials.base_url or _open_session(client).settings.base_url
        api_key = credentials.api_key or saved_key(base_url)
        problem = why_not_online(Credentials(api_key, base_url))
        if problem:
            return None, problem
        _open_session(client)
        run = _start(client, options, mode="online", api_key=api_key, base_url=base_url)
    except Exception as error:  # whatever the client raises, training goes on
        # A failed start leaves a service behind that still holds the run's id.
        client.teardown(exit_code=1)
        return None, f"the client failed to start ({type(error).__name__})"
    return run, None


def _start_offline(
    client: object, options: Mapping, problem: str | None
) -> WandB | None:
    """Returns a writer that needs no server; None if there cannot be one."""
    try:
        _open_session(client)
        run = _start(client, options, mode="offline")
    except Exception as error:  # whatever the client raises, training goes on
        reason = problem or "the client failed to start"
        _log.warning("wandb is off: %s (%s)", reason, type(error).__name__)
        return None
    if problem:
        _log.warning("wandb: %s; %s", problem, _how_to_upload(run))
    return WandB(run)


def _how_to_upload(run: object) -> str:
    directory = pathlib.Path(run.dir).parent
    return f"the run is kept offline, upload it later with: wandb sync {directory}"
