"""Tests of the metric writers and of the progress display."""

import base64
import contextlib
import fcntl
import http.server
import io
import json
import math
import os
import pathlib
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from program import PATIENCE
from tensorboardX.proto.event_pb2 import Event, SessionLog

from duet_jax.errors import UsageError
from duet_jax.loggers import (
    JsonLines,
    Progress,
    TensorBoard,
    Writers,
    open_writers,
    read_rows,
)
from duet_jax.loggers.progress import duration
from duet_jax.loggers.wandb_run import WandB, read_credentials

ROOT = pathlib.Path(__file__).parents[2]
KEY = "0123456789abcdefSECRET0123456789abcdefXY"
AUTHORIZATION = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()


def row(step, split="train", **values):
    return {"step": step, "epoch": step / 10, "split": split, "loss": 5.0, **values}


# JSON Lines


def test_rows_come_back_as_written(tmp_path):
    rows = [row(1, loss=0.1 + 0.2, online_top1=0.25), row(1, "test", note="a\nb é")]
    writer = JsonLines(tmp_path / "new" / "metrics.jsonl", None)
    for written in rows:
        writer.write(written)
    assert read_rows(tmp_path / "new" / "metrics.jsonl") == rows  # before it is closed
    writer.close()
    assert len((tmp_path / "new" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (jnp.float32(0.25), 0.25),
        (jnp.bfloat16(1.5), 1.5),
        (jnp.int32(7), 7),
        (np.array(2.0), 2.0),
        (True, True),
        (math.nan, None),
        (math.inf, None),
        (jnp.float32(-jnp.inf), None),
    ],
)
def test_scalars_of_every_kind_become_valid_json(tmp_path, value, stored):
    writer = JsonLines(tmp_path / "metrics.jsonl", None)
    writer.write({"step": 1, "value": value})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(token):
        raise ValueError(token)

    read = json.loads(text, parse_constant=refuse)["value"]
    assert read == stored
    assert type(read) is type(stored)


def test_resuming_drops_what_is_measured_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row(step)) for step in (10, 20, 21, 30)]
    path.write_text("\n".join([*lines, '{"step": 40, "lo']))
    writer = JsonLines(path, resume_step=20)
    writer.write(row(30, loss=4.0))
    writer.close()
    assert [line["loss"] for line in read_rows(path)] == [5.0, 5.0, 4.0]
    assert [line["step"] for line in read_rows(path)] == [10, 20, 30]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(row(10)) + "\n")
    JsonLines(path, None).close()
    assert read_rows(path) == []


@pytest.mark.parametrize(
    "torn", ['{"step": 2', '{"step": 2, "split": "tr', "\0\0", "1"]
)
def test_reading_leaves_out_a_torn_line(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(row(1)) + "\n" + torn)
    assert read_rows(path) == [row(1)]


def test_reading_a_missing_file_says_what_to_give(tmp_path):
    with pytest.raises(UsageError, match=r"does not exist; give the metrics\.jsonl"):
        read_rows(tmp_path / "nothing")


# TensorBoard


def events(directory):
    """Reads event files: length, its checksum, an Event, its checksum; repeated."""
    found = []
    for path in sorted(pathlib.Path(directory).iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def scalars(directory):
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(directory)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def test_tensorboard_holds_every_number_under_its_split(tmp_path):
    writer = TensorBoard(tmp_path, None)
    writer.write(row(10, nt_xent=jnp.float32(4.5), note="text"))
    writer.write(row(20, "test", loss=math.nan, online_top1=0.25))
    writer.close()
    found = scalars(tmp_path)
    assert found[:2] == [(10, "train/loss", 5.0), (10, "train/nt_xent", 4.5)]
    assert found[2][:2] == (20, "test/loss")
    assert math.isnan(found[2][2])
    assert found[3:] == [(20, "test/online_top1", 0.25)]


def test_tensorboard_hides_later_steps_on_resume(tmp_path):
    for resume_step in (None, 20):
        writer = TensorBoard(tmp_path, resume_step)
        writer.write(row(30))
        writer.close()
    starts = [e.step for e in events(tmp_path) if e.session_log.status]
    assert SessionLog.START != 0
    assert starts == [0, 21]
    assert len(os.listdir(tmp_path)) == 2


def test_tensorboard_holds_pictures(tmp_path):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "views.png")
    writer = TensorBoard(tmp_path / "tb", None)
    writer.picture("views", tmp_path / "views.png", 7)
    writer.close()
    (value,) = [v for e in events(tmp_path / "tb") for v in e.summary.value]
    assert value.tag == "views"
    stored = Image.open(io.BytesIO(value.image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(stored), pixels)


# All writers


class Recorder:
    def __init__(self, fails=False):
        self.calls, self.fails = [], fails

    def write(self, row):
        self.calls.append(row)

    def picture(self, *arguments):
        self.calls.append(arguments)

    def close(self):
        self.calls.append("close")
        if self.fails:
            raise OSError("disk full")


def test_every_writer_gets_everything_and_is_closed():
    first, second = Recorder(fails=True), Recorder()
    writers = Writers([first, second])
    writers.write(row(1))
    writers.picture("views", "views.png", 1)
    with pytest.raises(OSError, match="disk full"):
        writers.close()
    assert first.calls == second.calls == [row(1), ("views", "views.png", 1), "close"]


@pytest.mark.parametrize("tensorboard", [False, True])
def test_only_what_is_asked_for_is_opened(tmp_path, tensorboard):
    writers = open_writers(
        tmp_path / "run",
        config_dict={},
        run_name="run",
        wandb={"project": None},
        tensorboard=tensorboard,
        resume_step=None,
    )
    writers.write(row(1))
    writers.close()
    expected = ["metrics.jsonl"] + ["tensorboard"] * tensorboard
    assert sorted(os.listdir(tmp_path / "run")) == expected


# Weights & Biases: credentials


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory without credentials of any kind."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "environment", "expected"),
    [
        (None, {}, (None, None)),
        ("", {}, (None, None)),
        ("WANDB_API_KEY:\n", {}, (None, None)),
        (f"WANDB_API_KEY: {KEY}\n", {}, (KEY, None)),
        (
            f"WANDB_API_KEY: {KEY}\nWANDB_BASE_URL: https://w.example.org/\n",
            {},
            (KEY, "https://w.example.org"),
        ),
        (f"WANDB_API_KEY: {KEY}\n", {"WANDB_API_KEY": "other"}, ("other", None)),
        (None, {"WANDB_BASE_URL": "http://h:1"}, (None, "http://h:1")),
    ],
)
def test_credentials_are_found(elsewhere, monkeypatch, file, environment, expected):
    if file is not None:
        (elsewhere / ".wandb.yaml").write_text(file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    credentials = read_credentials()
    assert (credentials.api_key, credentials.base_url) == expected
    assert KEY not in repr(credentials)


@pytest.mark.parametrize(
    "file",
    [
        KEY,
        f"- {KEY}",
        f"WANDB_API_KEY: [{KEY}",
        f"WANDB_API_KEY: {{a: {KEY}}}",
        f"WANDB_API_KEY: a\n  {KEY}: b: c",
        "WANDB_API_KEY: 12345678",
        f"WANDB_API_KEY: https://w.example.org\nWANDB_BASE_URL: {KEY}",
        f"WANDB_BASE_URL: https://[{KEY}",
        f"\tWANDB_API_KEY: {KEY}\n",
    ],
)
def test_an_unreadable_file_is_one_line_without_the_secret(elsewhere, file):
    (elsewhere / ".wandb.yaml").write_text(file)
    with pytest.raises(UsageError) as caught:
        read_credentials()
    message = str(caught.value)
    assert "\n" not in message
    assert ".wandb.yaml" in message
    assert "SECRET" not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_unknown_mode_lists_the_choices(elsewhere):
    with pytest.raises(UsageError, match=r"mode.*'ofline'.*online, offline, disabled"):
        open_writers(
            elsewhere,
            config_dict={},
            run_name="run",
            wandb={"project": "p", "mode": "ofline"},
            tensorboard=False,
            resume_step=None,
        )


# Weights & Biases: the server


class Server(http.server.ThreadingHTTPServer):
    """As much of a Weights & Biases server as a run needs.

    `fault` is "page" for an answer that is no JSON, "stall" for no answer, or None;
    `status` is the HTTP status of every answer.
    """

    daemon_threads = True

    def __init__(self, fault=None, status=200):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.status = fault, status
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.stopped = threading.Event()
        self.asked, self.history, self.uploads = [], {}, []
        self.authorizations = set()

    def answer(self, path, body):
        if path.endswith("/file_stream"):
            for line in body["files"].get("wandb-history.jsonl", {}).get("content", ()):
                entry = json.loads(line)
                self.history[entry["_step"]] = entry
            return {}
        operation, variables = body.get("operationName"), body.get("variables", {})
        self.asked.append((operation, variables))
        project = {"name": "project", "entity": {"name": "someone"}}
        run = {"id": "1", "name": variables.get("name"), "project": project}
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{name}"}
            for name in variables.get("files", ())
        ]
        answers = {
            "UpsertBucket": {"upsertBucket": {"bucket": run, "inserted": True}},
            "CreateRunFiles": {"createRunFiles": {"runID": "1", "files": files}},
        }
        return {"data": answers.get(operation, {})}


class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        if self.path.startswith("/upload/"):
            server.uploads.append((self.path.removeprefix("/upload/"), body))
            return self.send(200, b"")
        server.authorizations.add(self.headers.get("Authorization"))
        body = json.loads(body or b"{}")
        if server.fault == "stall":
            server.stopped.wait(30)
        if server.fault == "page":
            return self.send(200, b"<html>hello</html>")
        answer = json.dumps(server.answer(self.path, body)).encode()
        return self.send(server.status, answer)

    do_GET = do_POST = do_PUT = reply  # noqa: N815, the base class names them

    def send(self, status, content):
        with contextlib.suppress(OSError):  # the client need not wait for it
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(**options):
    with Server(**options) as server:
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}
        )
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def black_hole():
    """Accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class BrokenRun:
    dir = "somewhere/wandb/run-1/files"

    def __init__(self):
        self.calls = 0

    def log(self, *_, **__):
        self.calls += 1
        raise ConnectionError(f"lost with {KEY}")


def test_a_client_that_breaks_costs_one_warning(caplog):
    run = BrokenRun()
    writer = WandB(run)
    for step in range(3):
        writer.write(row(step))
    writer.close()
    assert run.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "wandb stopped working (ConnectionError); the run is kept offline, "
        "upload it later with: wandb sync somewhere/wandb/run-1"
    ]


SCRIPT = """
import json, sys, time
from duet_jax.loggers import open_writers, wandb_run
arguments = json.loads(sys.argv[1])
wandb_run._INIT_SECONDS = arguments["init_seconds"]
started = time.monotonic()
writers = open_writers(
    arguments["workdir"], config_dict={"method": "duet", "stack": ("sca", "rot")},
    run_name="a name", wandb={"project": "project", "mode": arguments["mode"]},
    tensorboard=True, resume_step=arguments["resume_step"],
)
seconds = time.monotonic() - started
for step in arguments["steps"]:
    writers.write({"step": step, "epoch": step / 10, "split": "train", "loss": 1.5})
    writers.write({"step": step, "epoch": step / 10, "split": "test", "loss": 2.5})
writers.picture("views", arguments["picture"], arguments["steps"][-1])
writers.close()
loaded = [name for name in ("tensorflow", "torch", "jax") if name in sys.modules]
print(json.dumps({"seconds": seconds, "loaded": loaded}))
"""


def train(
    directory,
    url,
    *,
    key=KEY,
    mode=None,
    resume_step=None,
    steps=(10, 20),
    init_seconds=4,
    **streams,
):
    """Writes metrics as a training would, in a process of its own.

    Returns:
      What the process reported, and the lines it wrote to its standard error.
    """
    Image.new("RGB", (4, 4), "red").save(directory / "views.png")
    (directory / ".wandb.yaml").write_text(
        f"WANDB_API_KEY: {key}\nWANDB_BASE_URL: {url}\n"
    )
    arguments = {
        "workdir": "run",
        "mode": mode,
        "resume_step": resume_step,
        "steps": steps,
        "picture": "views.png",
        "init_seconds": init_seconds,
    }
    environment = {
        name: value for name, value in os.environ.items() if "WANDB" not in name
    } | {"HOME": str(directory / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(arguments)],
        cwd=directory,
        env=environment,
        text=True,
        timeout=PATIENCE,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,
    )
    errors = done.stderr or ""
    assert done.returncode == 0, errors
    assert KEY not in done.stdout + errors
    for path in [*(directory / "run").rglob("*"), *(directory / "home").rglob("*")]:
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    assert len(read_rows(directory / "run" / "metrics.jsonl")) >= 2 * len(steps)
    return json.loads(done.stdout), errors.splitlines()


def offline_directories(directory):
    return sorted((directory / "run" / "wandb").glob("offline-run-*"))


def test_a_reachable_server_gets_the_run(tmp_path):
    with serving() as server:
        _, lines = train(tmp_path, server.url)
    assert lines == []
    history = {
        step: {name: entry[name] for name in ("train/loss", "test/loss", "epoch")}
        for step, entry in server.history.items()
    }
    values = {"train/loss": 1.5, "test/loss": 2.5}
    assert history == {10: values | {"epoch": 1.0}, 20: values | {"epoch": 2.0}}
    assert server.history[20]["views"]["width"] == 4
    variables = dict(reversed(server.asked))["UpsertBucket"]  # the first one
    run_id = (tmp_path / "run" / "wandb_run_id").read_text().strip()
    assert variables["name"] == run_id
    assert variables["displayName"] == "a name"
    assert json.loads(variables["config"])["stack"]["value"] == ["sca", "rot"]
    assert KEY not in json.dumps(server.asked)
    assert all(KEY.encode() not in content for _, content in server.uploads)
    assert server.authorizations == {AUTHORIZATION}  # with every request
    assert offline_directories(tmp_path) == []


def test_a_key_saved_by_the_client_is_used(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    with serving() as server:
        host = server.url.removeprefix("http://")
        netrc.write_text(f"machine {host} login user password {KEY}")
        netrc.chmod(0o600)
        _, lines = train(tmp_path, server.url, key="")
    assert lines == []
    assert server.authorizations == {AUTHORIZATION}


UNREACHABLE = "127.0.0.1 cannot be reached or refuses the run (CommError)"


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        ("closed", UNREACHABLE),
        ("black hole", UNREACHABLE),
        ({"fault": "stall"}, UNREACHABLE),
        ({"fault": "page"}, UNREACHABLE),
        ({"status": 401}, "127.0.0.1 does not accept the API key"),
    ],
)
def test_a_useless_server_costs_one_warning(tmp_path, server, problem):
    with contextlib.ExitStack() as stack:
        if server == "closed":
            url = "http://127.0.0.1:9"
        elif server == "black hole":
            url = stack.enter_context(black_hole())
        else:
            url = stack.enter_context(serving(**server)).url
        # The shorter patience only saves time: what is tested does not depend on it.
        patience = 4 if server == "black hole" else 1
        report, lines = train(tmp_path, url, init_seconds=patience)
    assert report["seconds"] < 10
    (directory,) = offline_directories(tmp_path)
    assert lines == [
        f"wandb: {problem}; the run is kept offline, "
        f"upload it later with: wandb sync {directory}"
    ]
    assert next(directory.glob("run-*.wandb")).stat().st_size > 0


def test_a_missing_key_is_not_asked_for(tmp_path):
    """Not even on a terminal, where the client would wait for an answer."""
    screen, keyboard = pty.openpty()
    try:
        train(tmp_path, "http://127.0.0.1:9", key="", stdin=keyboard, stderr=keyboard)
        said = os.read(screen, 1 << 16).decode().splitlines()
    finally:
        os.close(keyboard)
        os.close(screen)
    (directory,) = offline_directories(tmp_path)
    assert said == [
        "wandb: no API key is set (WANDB_API_KEY or .wandb.yaml); the run is kept "
        f"offline, upload it later with: wandb sync {directory}"
    ]


def test_offline_is_silent_and_keeps_the_name_of_the_run(tmp_path):
    report, lines = train(tmp_path, "http://127.0.0.1:9", mode="offline")
    assert lines == []
    assert report["loaded"] == []
    name = (tmp_path / "run" / "wandb_run_id").read_text().strip()
    train(tmp_path, "http://127.0.0.1:9", mode="offline", resume_step=10, steps=[20])
    assert (tmp_path / "run" / "wandb_run_id").read_text().strip() == name
    runs = [path.name.split("-")[-1] for path in offline_directories(tmp_path)]
    assert runs == [name, name]
    train(tmp_path, "http://127.0.0.1:9", mode="offline", steps=[10])
    assert (tmp_path / "run" / "wandb_run_id").read_text().strip() != name


# Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.TextIOWrapper):
    """A real terminal of the system, with nobody in front of it."""

    def __init__(self, columns):
        self.screen, keyboard = pty.openpty()
        rows = 40 if columns else 0  # a terminal knows both or neither
        size = struct.pack("4H", rows, columns, 0, 0)
        fcntl.ioctl(keyboard, termios.TIOCSWINSZ, size)
        super().__init__(os.fdopen(keyboard, "wb"), encoding="utf-8")

    def getvalue(self):
        self.write("THE END")  # the system hands output over when it pleases
        self.flush()
        output = b""
        while not output.endswith(b"THE END"):
            output += os.read(self.screen, 1 << 16)
        return output.removesuffix(b"THE END").decode().replace("\r\n", "\n")


@pytest.fixture
def open_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.ExitStack() as stack:

        def opened(columns=161):
            terminal = stack.enter_context(Terminal(columns))
            stack.callback(os.close, terminal.screen)
            return terminal

        yield opened


METRICS = {
    "loss": 5.214,
    "nt_xent": 3.9,
    "structure_loss": 0.1314,
    "online_top1": 0.412,
    "learning_rate": 4e-4,
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0:00"),
        (83, "1:23"),
        (3599.6, "1:00:00"),
        (7384, "2:03:04"),
        (273906, "3 d 4:05:06"),
        (86400 + 60, "1 d 0:01:00"),
    ],
)
def test_durations_read_as_clocks(seconds, text):
    assert duration(seconds) == text


def run_progress(stream, clock, updates, *, total=1320, close=True, **options):
    progress = Progress(total, 22, 60, stream=stream, clock=clock, **options)
    for seconds, step in updates:
        clock.now += seconds
        progress.update(step, METRICS, 812.3)
    if close:
        progress.close()
    return stream.getvalue().splitlines()


def test_a_plain_line_tells_everything():
    lines = run_progress(io.StringIO(), Clock(), [(500, 44), (10, 66)])
    assert lines[-1] == (
        "epoch 3/60  step 66/1320  loss 5.21  nt_xent 3.90  structure_loss 0.131  "
        "online_top1 41.2 %  812 images/s  9:30 left"
    )
    # Without a second report the pace is unknown, however long compiling took.
    assert lines[0].endswith("812 images/s")


def test_time_left_follows_the_latest_pace():
    """Hundred fast reports, then fifty that take ten times as long."""
    updates = [(1, step) for step in range(1, 101)]
    updates += [(10, step) for step in range(101, 151)]
    lines = run_progress(io.StringIO(), Clock(), updates)
    assert lines[-1].endswith("3:15:00 left")  # 1170 steps of 10 s


@pytest.mark.parametrize(
    ("seconds_per_epoch", "shown"),
    [
        (10, [22, 44, 66, 88, 110, 132]),
        (2, [22, 88, 132]),  # one in five seconds, and the last
        (0.1, [22, 132]),
    ],
)
def test_plain_lines_are_rare(seconds_per_epoch, shown):
    updates = [(seconds_per_epoch, step) for step in range(22, 133, 22)]
    lines = run_progress(io.StringIO(), Clock(), updates, total=132)
    assert [int(re.search(r"step (\d+)/", line)[1]) for line in lines] == shown


def test_a_long_epoch_is_not_silent():
    lines = run_progress(io.StringIO(), Clock(), [(25, step) for step in range(1, 10)])
    assert [line.split("  ")[1] for line in lines] == [
        f"step {step}/1320" for step in (1, 4, 7, 9)
    ]


def test_closing_early_shows_the_last_state_once():
    clock, stream = Clock(), io.StringIO()
    lines = run_progress(stream, clock, [(1, 1), (1, 2), (1, 3)])
    assert [line.split("  ")[1] for line in lines] == ["step 1/1320", "step 3/1320"]


def frames(output):
    """The states a terminal showed: tqdm draws over a line after a return."""
    return [frame.rstrip() for frame in re.split(r"[\r\n]", output) if frame.strip()]


def test_a_terminal_has_a_bar(open_terminal):
    stream, clock = open_terminal(), Clock()
    progress = Progress(1320, 22, 60, 44, stream=stream, clock=clock)
    progress.update(66, METRICS, 812.3)
    clock.now += 10
    time.sleep(0.11)  # the bar is drawn ten times a second at most
    progress.update(88, METRICS, 1812.3)
    progress.close()
    shown = frames(stream.getvalue())
    assert shown[0] == "  3%|▍           | epoch 2/60  compiling"
    assert shown[-1] == (
        "  7%|▊           | epoch 4/60  loss 5.21  nt_xent 3.90  structure_loss 0.131  "
        "online_top1 41.2 %  1,812 images/s  9:20 left"
    )


def test_the_bar_ends_full_and_without_time_left(open_terminal):
    stream = open_terminal()
    progress = Progress(132, 22, 6, stream=stream)
    progress.update(66, METRICS, 812.3)
    progress.update(132, METRICS, 812.3)
    progress.close()
    last = frames(stream.getvalue())[-1]
    assert last.startswith("100%|████████████| epoch 6/6  loss")


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (
            100,
            "epoch 4/60  loss 5.21  structure_loss 0.131  online_top1 41.2 %  "
            "9:20 left",
        ),
        (80, "epoch 4/60  loss 5.21  online_top1 41.2 %  9:20 left"),
        (61, "epoch 4/60  loss 5.21  9:20 left"),
        (45, "loss 5.21  9:20 left"),
        (32, "9:20 left"),
        # Unknown.
        (0, "epoch 4/60  loss 5.21  online_top1 41.2 %  9:20 left"),
    ],
)
def test_a_narrow_terminal_has_what_fits(open_terminal, columns, text):
    """Time left and loss stay longest."""
    stream, clock = open_terminal(columns=columns), Clock()
    progress = Progress(1320, 22, 60, 44, stream=stream, clock=clock)
    progress.update(66, METRICS, 812.3)
    clock.now += 10
    time.sleep(0.11)
    progress.update(88, METRICS, 1812.3)
    progress.close()
    last = frames(stream.getvalue())[-1]
    assert len(last) < (columns or 80)
    assert last == f"  7%|▊           | {text}"


def test_a_dumb_terminal_gets_lines(open_terminal, monkeypatch):
    stream = open_terminal()
    monkeypatch.setenv("TERM", "dumb")
    progress = Progress(10, 5, 2, stream=stream)
    progress.update(10, {"loss": 1.0}, 5.0)
    progress.close()
    assert stream.getvalue() == "epoch 2/2  step 10/10  loss 1.00  5 images/s\n"


def test_progress_goes_to_standard_error(capsys):
    progress = Progress(10, 5, 2)
    progress.update(10, {"loss": 1.0}, 5.0)
    progress.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "epoch 2/2  step 10/10  loss 1.00  5 images/s\n"
