"""Rows on a Weights & Biases server, or kept on disk until one can be reached.

Training must not depend on a server: a failure of the server or the client costs one
warning and never an exception. The text of the client's errors is not repeated, since
it may quote the key.
"""

import dataclasses
import logging
import os
import pathlib
import secrets
import sys
import urllib.parse
from collections.abc import Callable, Mapping

import yaml

from duet_jax.errors import UsageError, lookup
from duet_jax.loggers.jsonl import scalars

CREDENTIALS_FILE = ".wandb.yaml"

MODES = {
    "online": "rows appear on the server while training runs",
    "offline": "rows are kept in the run's directory for `wandb sync`",
    "disabled": "as without a project",
}

_INIT_SECONDS = 4.0
# To upload the rest when training ends.
_FINISH_SECONDS = 30.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Credentials:
    """Settings of the client, hidden when printed; None leaves one to the client."""

    api_key: str | None = dataclasses.field(default=None, repr=False)
    base_url: str | None = dataclasses.field(default=None, repr=False)


def read_credentials(directory: str | os.PathLike = ".") -> Credentials:
    """Returns the credentials; the environment takes precedence over the file.

    Args:
      directory: may contain `.wandb.yaml`, with the entries `WANDB_API_KEY` and
        `WANDB_BASE_URL`, each of them optional.

    Raises:
      UsageError: the file or a value is malformed. The message does not quote it.

    Source: the reference reads the same file; that the environment goes first is ours.
    """
    entries = _read_file(pathlib.Path(directory) / CREDENTIALS_FILE)
    key, base_url = (
        os.environ.get(name, "").strip() or entries.get(name)
        for name in ("WANDB_API_KEY", "WANDB_BASE_URL")
    )
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UsageError(
            "WANDB_API_KEY (environment or .wandb.yaml) contains characters that no "
            "key has; copy it again from the settings of the server."
        )
    if base_url is not None and not _is_address(base_url):
        raise UsageError(
            "WANDB_BASE_URL (environment or .wandb.yaml) is not an address; "
            "write it like https://api.wandb.ai."
        )
    return Credentials(key, base_url and base_url.rstrip("/"))


def _read_file(path: pathlib.Path) -> dict[str, str]:
    """Returns the non-empty entries of the credentials file; none without a file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except Exception:  # a wrong date is a ValueError, deep nesting a RecursionError
        content = "not YAML"  # the error itself would quote the file
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(
        isinstance(value, str | None) for value in content.values()
    ):
        raise UsageError(
            f"{path.name} cannot be read as credentials; write two lines, "
            "`WANDB_API_KEY: <key>` and `WANDB_BASE_URL: <address>`, "
            "or set these variables in the environment."
        )
    return {name: value.strip() for name, value in content.items() if value}


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018  raises if it is not a number
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


class WandB:
    """Writes one value per measurement, named "<split>/<name>"."""

    def __init__(self, run) -> None:
        """Wraps a run as `wandb.init` returns it."""
        self._run = run
        self._broken = False

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Logs the numbers of `row` at `row["step"]`, and the epoch as an axis."""
        values = scalars(row)
        if "epoch" in row:
            values["epoch"] = float(row["epoch"])
        self._attempt(lambda: self._run.log(values, step=int(row["step"])))

    def picture(self, name: str, path: str | os.PathLike, step: int) -> None:
        """Logs the image file at `path` under `name`."""
        import wandb

        path = os.fspath(path)
        self._attempt(lambda: self._run.log({name: wandb.Image(path)}, step=step))

    def close(self) -> None:
        """Uploads the rest, for a limited time.

        The run counts as failed if this is called while an exception is handled.
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
            kind, remedy = type(error).__name__, _how_to_upload(self._run)
            _log.warning("wandb stopped working (%s); %s", kind, remedy)


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
    wandb: Mapping[str, str | None],
    config_dict: Mapping,
    run_name: str,
    resume_step: int | None,
) -> WandB | None:
    """Starts a run on the server or, if that fails, offline with one warning.

    The arguments are those of `open_writers`. All files go below `wandb` in `workdir`.

    Returns:
      The writer; None if disabled or if not even an offline run can be started.

    Raises:
      UsageError: unknown mode, malformed credentials, or wandb is not installed.
    """
    mode = _chosen(wandb.get("mode"))
    if mode == "disabled":
        return None
    credentials = read_credentials() if mode == "online" else Credentials()
    client = _import_client()
    options = {
        "project": wandb["project"],
        "entity": wandb.get("entity"),
        "name": run_name,
        "id": _run_id(workdir, resume_step),
        "resume": "allow",
        "dir": os.path.abspath(workdir),
        "config": dict(config_dict),
    }
    problem = ""
    try:
        if mode == "online":
            return WandB(_start(client, options, mode, credentials))
    except Exception as error:  # whatever the client raises, training goes on
        problem = _reason(error, credentials)
    try:
        if problem:
            # The failed start has left a service behind that holds the run's id.
            client.teardown(exit_code=1)
        run = _start(client, options, "offline", Credentials())
    except Exception as error:
        reason = problem or "the client failed to start"
        _log.warning("wandb is off: %s (%s)", reason, type(error).__name__)
        return None
    if problem:
        _log.warning("wandb: %s; %s", problem, _how_to_upload(run))
    return WandB(run)


def _run_id(workdir: pathlib.Path, resume_step: int | None) -> str:
    """Returns the server's id of the run in this directory."""
    path = workdir / "wandb_run_id"
    if resume_step is not None and path.exists():
        return path.read_text(encoding="utf-8").strip()
    run_id = secrets.token_hex(4)
    path.write_text(run_id + "\n", encoding="utf-8")
    return run_id


def _import_client():
    # The client reports its own failures to its makers, and prints if it cannot.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb  # here, because it takes a second and few runs need it
    except ImportError:
        raise UsageError(
            "config.wandb.project is set but wandb is not installed; "
            "run `pip install wandb` or leave the project empty."
        ) from None
    return wandb


def _start(client, options: Mapping, mode: str, credentials: Credentials):
    """Returns a started run; fails if the server does not answer in _INIT_SECONDS."""
    # The terminal belongs to the progress bar. A silent client does not ask for a
    # missing key either.
    client.setup(client.Settings(silent=True, console="off"))
    settings = client.Settings(
        mode=mode,
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=True,
        **{name: value for name, value in vars(credentials).items() if value},
    )
    return client.init(**options, settings=settings)


def _reason(error: Exception, credentials: Credentials) -> str:
    """Returns why no run could be started on the server."""
    host = urllib.parse.urlsplit(credentials.base_url or "").hostname or "the server"
    if "No API key" in str(error):
        return f"no API key is set (WANDB_API_KEY or {CREDENTIALS_FILE})"
    kind = type(error).__name__
    refused = any(f"error {status}" in str(error) for status in (401, 403))
    if refused or kind == "AuthenticationError":
        return f"{host} does not accept the API key"
    return f"{host} cannot be reached or refuses the run ({kind})"


def _how_to_upload(run) -> str:
    directory = pathlib.Path(run.dir).parent
    return f"the run is kept offline, upload it later with: wandb sync {directory}"
