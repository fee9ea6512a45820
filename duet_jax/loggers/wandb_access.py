"""Where a Weights & Biases server is, whose key it takes, and whether it is there."""

import base64
import dataclasses
import http.client
import json
import netrc
import os
import pathlib
import queue
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request

import yaml

from duet_jax.errors import UsageError

CREDENTIALS_FILE = ".wandb.yaml"

# A server that works answers within a fraction of this.
_PROBE_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class Credentials:
    """What the client needs to speak to a server; None leaves it to the client.

    Attributes:
      api_key: the secret, kept out of the printed form.
      base_url: address of the server, without a trailing slash.
    """

    api_key: str | None = dataclasses.field(repr=False)
    base_url: str | None = dataclasses.field(repr=False)


def read_credentials(directory: str | os.PathLike = ".") -> Credentials:
    """Finds the credentials; the environment goes before the file.

    Args:
      directory: holds `.wandb.yaml`, where there is one: the two entries
        `WANDB_API_KEY` and `WANDB_BASE_URL`, each of which may be missing.

    Raises:
      UsageError: the file cannot be understood or the address is none. The message
        does not quote the file, which holds a secret.

    Source: the reference reads the same file; that the environment goes first is ours.
    """
    entries = _read_file(pathlib.Path(directory) / CREDENTIALS_FILE)
    found = {
        name: os.environ.get(name, "").strip() or entries.get(name)
        for name in ("WANDB_API_KEY", "WANDB_BASE_URL")
    }
    key, base_url = found["WANDB_API_KEY"], found["WANDB_BASE_URL"]
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UsageError(
            "WANDB_API_KEY (environment or .wandb.yaml) holds characters that no key "
            "has; copy it again from the settings of the server."
        )
    if base_url is not None and not _is_address(base_url):
        raise UsageError(
            "WANDB_BASE_URL (environment or .wandb.yaml) is not an address; "
            "write it like https://api.wandb.ai."
        )
    return Credentials(key, base_url and base_url.rstrip("/"))


def _read_file(path: pathlib.Path) -> dict[str, str]:
    """Returns the non-empty entries of a credentials file; none without a file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except Exception:  # a wrong date is a ValueError, much nesting a RecursionError
        content = path.name  # no mapping; the error itself would quote the file
    content = {} if content is None else content
    wrong = not isinstance(content, dict) or any(
        not isinstance(value, str | None) for value in content.values()
    )
    if wrong:
        raise UsageError(
            f"{path.name} cannot be read as credentials; write two lines, "
            "`WANDB_API_KEY: <key>` and `WANDB_BASE_URL: <address>`, "
            "or set these variables in the environment."
        )
    return {name: value.strip() for name, value in content.items() if value}


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018  raises where it is none
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def saved_key(base_url: str) -> str | None:
    """Returns the key that `wandb login` stored for the server, if any."""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        entry = netrc.netrc(path).authenticators(
            urllib.parse.urlsplit(base_url).hostname
        )
    except (OSError, netrc.NetrcParseError):
        return None
    return entry[2] if entry else None


def why_not_online(credentials: Credentials) -> str | None:
    """Asks the server whose key it is, and waits for the answer a bounded time.

    Returns:
      Why no run can be opened there, in words that name the server but not the key;
      None if it answered or if only the client can tell.
    """
    if not credentials.api_key:
        return f"no API key is set (WANDB_API_KEY or {CREDENTIALS_FILE})"
    host = urllib.parse.urlsplit(credentials.base_url).hostname
    answer: queue.SimpleQueue = queue.SimpleQueue()
    # A thread, because looking up a name has no time limit of its own.
    threading.Thread(
        target=lambda: answer.put(_ask_for_viewer(credentials)), daemon=True
    ).start()
    try:
        problem = answer.get(timeout=_PROBE_SECONDS)
    except queue.Empty:
        problem = f"did not answer within {_PROBE_SECONDS:g} s"
    return problem and f"{host} {problem}"


def _ask_for_viewer(credentials: Credentials) -> str | None:
    """Returns what is wrong with the server's answer, None if nothing is."""
    request = urllib.request.Request(
        f"{credentials.base_url}/graphql",
        data=json.dumps({"query": "query { viewer { id } }"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    token = base64.b64encode(f"api:{credentials.api_key}".encode()).decode()
    # Not passed on to where a redirection leads.
    request.add_unredirected_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS) as response:
            viewer = json.load(response)["data"]["viewer"]
    except urllib.error.HTTPError as error:
        refused = error.code in (401, 403)
        error.close()
        return (
            "does not accept the API key"
            if refused
            else f"answers with HTTP status {error.code}"
        )
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        # The client brings certificates of its own and may well succeed.
        untrusted = isinstance(reason, ssl.SSLError)
        return None if untrusted else f"cannot be reached ({type(reason).__name__})"
    except (ValueError, LookupError, TypeError):
        return "is no Weights & Biases server"
    return None if viewer else "does not accept the API key"
