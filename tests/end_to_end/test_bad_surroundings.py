"""Bad places, permissions, disks and servers, through a process of the real program."""

import contextlib
import http.server
import json
import logging
import pathlib
import shutil
import threading

import pytest
from pictures import fill
from program import SMOKE, TINY, refusal, run, side_by_side

from duet_jax.loggers import TensorBoard
from duet_jax.runtime import devices

FOLDER = (*TINY, "--config.dataset.name=folder", "--config.dataset.path=images")
TRAIN = (*FOLDER, "--workdir=run")
KNN = ("--mode=knn", "--workdir=run")
WANDB = (*TRAIN, "--config.wandb.project=p")
NOWHERE = "http://127.0.0.1:9"
KEY = "0123456789abcdef" * 2 + "SECRET00"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """A directory with eight images and a run that was trained on them."""
    place = tmp_path_factory.mktemp("finished")
    fill(place / "images")
    done = run(*TRAIN, cwd=place)
    assert done.status == 0, done.lines
    return place


def _record(name: str, **changes):
    """Changes fields of a JSON file of the run; None takes one away."""

    def make(place: pathlib.Path) -> None:
        path = place / "run" / name
        record = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in record.items() if v != "away"}))

    return make


def _write(name: str, text: str):
    return lambda place: (place / name).write_text(text)


def _instead(name: str, text: str = "somebody's"):
    """Puts a file where the run has a directory."""

    def make(place: pathlib.Path) -> None:
        shutil.rmtree(place / name, ignore_errors=True)
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)

    return make


def _anew(make=lambda place: None):
    """Forgets the run before `make`."""

    def both(place: pathlib.Path) -> None:
        shutil.rmtree(place / "run")
        make(place)

    return both


def _lock(name: str, mode: int):
    return lambda place: (place / name).chmod(mode)


def _nothing(place: pathlib.Path) -> None:
    pass


AS_USER = {"as_user": True}
DAMAGED = "run/config.json is damaged"

# Arguments, what is done before, how it is run, and what the line has to say.
CASES = {
    # work directories
    "a file as workdir": (
        TRAIN,
        _anew(_write("run", "mine")),
        {},
        ["--workdir=run", "run is a file", "choose another"],
    ),
    "a file above it": (
        (*FOLDER, "--workdir=images/train/cat/0.png/run"),
        _nothing,
        {},
        ["0.png is a file", "choose another"],
    ),
    "a workdir that cannot be written": (
        TRAIN,
        _lock("run", 0o500),
        AS_USER,
        ["--workdir=run", "is not writable", "choose another"],
    ),
    "a place that cannot be written": (
        (*FOLDER, "--workdir=images/run"),
        _lock("images", 0o500),
        AS_USER,
        ["--workdir=images/run", "images is not writable", "choose another"],
    ),
    "another run": (
        (*TRAIN, "--config.seed=5"),
        _nothing,
        {},
        ["run holds a run with another configuration", "seed: 0 -> 5", "repeat its"],
    ),
    "other images": (
        TRAIN,
        lambda place: (
            shutil.rmtree(place / "images/train/dog")
            or shutil.rmtree(place / "images/test/dog")
            or fill(place / "images", ["emu"])
        ),
        {"told": 1},
        ["run holds a run on other images", "restore its data"],
    ),
    "half a configuration": (
        TRAIN,
        _write("run/config.json", '{"method": "du'),
        {},
        [DAMAGED, "another --workdir"],
    ),
    "no JSON": (TRAIN, _write("run/config.json", "duet"), {}, [DAMAGED, "another"]),
    "a list": (KNN, _write("run/config.json", "[1, 2]"), {}, [DAMAGED, "another"]),
    "a deep configuration": (
        KNN,
        _write("run/config.json", '{"a":' * 2_000),
        {},
        [DAMAGED, "another --workdir"],
    ),
    "bytes": (
        KNN,
        lambda place: (place / "run/config.json").write_bytes(b"\xff\xfe\0"),
        {},
        [DAMAGED, "another --workdir"],
    ),
    "a configuration of another type": (
        KNN,
        _record("config.json", batch_size="many"),
        {},
        ["config.batch_size='many'", "a whole number"],
    ),
    "a configuration without a section": (
        KNN,
        _record("config.json", encoder="away"),
        {},
        [DAMAGED, "it has no encoder"],
    ),
    "half of what is known of the data": (
        KNN,
        _write("run/dataset.json", '{"name": "fo'),
        {},
        ["run/dataset.json is damaged", "another --workdir"],
    ),
    "classes that are numbers": (
        KNN,
        _record("dataset.json", class_names=[1, 2]),
        {},
        ["run/dataset.json is damaged (class_names is (1, 2))"],
    ),
    "a run without checkpoints": (
        KNN,
        lambda place: shutil.rmtree(place / "run/checkpoints"),
        {},
        ["run/checkpoints does not exist", "train first"],
    ),
    "an empty workdir": (
        KNN,
        _anew(lambda place: (place / "run").mkdir()),
        {},
        ["--workdir=run holds no run", "name the --workdir of a training"],
    ),
    "metrics that are a directory": (
        TRAIN,
        _anew(lambda place: (place / "run/metrics.jsonl").mkdir(parents=True)),
        {"told": 99, "begun": True},
        ["metrics.jsonl", "Is a directory", "choose another"],
    ),
    "checkpoints that are a file": (
        TRAIN,
        _anew(_instead("run/checkpoints")),
        {"told": 99, "begun": True},
        ["run/checkpoints", "choose another --workdir"],
    ),
    "events that are a file": (
        (*TRAIN, "--config.tensorboard=true"),
        _anew(_instead("run/tensorboard")),
        {"told": 99, "begun": True},
        ["run/tensorboard cannot be written (File exists)", "choose another"],
    ),
    "results that are a file": (
        KNN,
        _instead("run/eval"),
        {},
        ["--workdir", "run/eval is a file", "choose another place"],
    ),
    "a run that cannot be written": (
        KNN,
        _lock("run", 0o500),
        AS_USER,
        ["--workdir", "is not writable", "choose another place"],
    ),
    "features where nothing can be written": (
        ("--mode=features", "--workdir=run", "--out=images/x.npz"),
        _lock("images", 0o500),
        {"as_user": True, "told": 3},
        ["--out", "images is not writable", "choose another place"],
    ),
    "a benchmark below a file": (
        (*TINY, "--mode=benchmark", "--out=images/train/cat/0.png/x.json"),
        _nothing,
        {"told": 99},
        ["--out", "0.png is a file", "choose another place"],
    ),
    # rights
    "an image that cannot be read": (
        TRAIN,
        _anew(_lock("images/train/cat/0.png", 0)),
        AS_USER,
        ["1 of 8 images cannot be read: train/cat/0.png", "Permission denied"],
    ),
    "a class that cannot be listed": (
        TRAIN,
        _anew(_lock("images/train/cat", 0)),
        AS_USER,
        ["cannot list", "Permission denied", "check its permissions"],
    ),
    "a class that cannot be entered": (
        TRAIN,
        _anew(_lock("images/train/cat", 0o400)),
        AS_USER,
        ["2 of 8 images cannot be read: train/cat/0.png", "Permission denied"],
    ),
    "data behind a closed door": (
        (*FOLDER, "--config.dataset.path=images/train"),
        _lock("images", 0),
        AS_USER,
        ["/images/train' cannot be reached (Permission denied)", "<path>/train"],
    ),
    "a configuration that cannot be read": (
        ("--config=mine.py",),
        lambda place: (_write("mine.py", "")(place), _lock("mine.py", 0)(place)),
        AS_USER,
        ["--config=mine.py cannot be read (PermissionError", "must define"],
    ),
    # full disks
    "a disk without room for a record": (
        TRAIN,
        _anew(),
        {"largest_file": 300, "told": 1, "begun": True},
        ["File too large", "run"],
    ),
    "a disk without room for a picture": (
        TRAIN,
        _anew(),
        {"largest_file": 3_000, "told": 99, "begun": True, "status": 1},
        ["run: File too large", "free some space", "the same command"],
    ),
    "a disk without room for a checkpoint": (
        # Heads whose arrays take more than the pictures.
        (*TRAIN, "--config.epochs=3", "--config.projector.hidden=512"),
        _anew(),
        {"largest_file": 150_000, "told": 99, "begun": True, "status": 1},
        ["run/checkpoints", "File too large", "free some space", "the same command"],
    ),
    # networks
    "an unknown data set": (
        (SMOKE, "--config.dataset.name=cifar1000", "--config.dataset.path=nowhere"),
        _nothing,
        {},
        ["config.dataset.name='cifar1000'", "cifar100", "Did you mean"],
    ),
    "a data set without a network": (
        (SMOKE, "--config.dataset.name=cifar100", "--config.dataset.path=nowhere"),
        _nothing,
        {
            "environment": {
                **dict.fromkeys(("https_proxy", "http_proxy"), NOWHERE),
                **dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY"), NOWHERE),
                **dict.fromkeys(("no_proxy", "NO_PROXY", "TFDS_DATA_DIR"), None),
            }
        },
        ["'cifar100' is not prepared", "no network", "download_and_prepare()"],
    ),
    "damaged credentials": (
        WANDB,
        _anew(_write(".wandb.yaml", f"WANDB_API_KEY: [{KEY}")),
        {},
        [".wandb.yaml cannot be read as credentials", "write two lines"],
    ),
    "an address that is none": (
        WANDB,
        _anew(),
        {"environment": {"WANDB_BASE_URL": "http://a:b"}},
        ["WANDB_BASE_URL", "is not an address", "https://api.wandb.ai"],
    ),
    "half a key": (
        WANDB,
        _anew(),
        {"environment": {"WANDB_API_KEY": f"{KEY}\x01é"}},
        ["WANDB_API_KEY", "characters that no key has", "copy it again"],
    ),
    "an unknown mode of a client": (
        WANDB,
        _anew(),
        {"environment": {"WANDB_MODE": "ofline"}},
        ["config.wandb.mode (or WANDB_MODE)='ofline'", "offline"],
    ),
}


@pytest.fixture(scope="module")
def refused(request, finished):
    """The outcome of every case that is asked for."""

    def ask(case, place):
        arguments, make, options, _ = CASES[case]
        shutil.copytree(finished, place, dirs_exist_ok=True)
        make(place)
        try:
            return refusal(*arguments, cwd=place, **options)
        finally:
            for path in ("images", "images/train/cat", "run"):
                with contextlib.suppress(OSError):
                    (place / path).chmod(0o700)

    return side_by_side(ask, request)


@pytest.mark.parametrize("case", CASES)
def test_refused(case, refused):
    line, parts = refused[case].result(), CASES[case][3]
    assert [part for part in parts if part not in line] == [], line
    assert "SECRET" not in line


def test_output_that_nobody_takes(finished):
    with open("/dev/full", "w") as full:
        done = run("--help", cwd=finished, stdout=full)
    assert (done.status, len(done.lines)) == (1, 1)
    assert done.lines[0].startswith("error: standard output: No space left on device")
    done = run(*KNN, cwd=finished, closed=(1, 2))
    assert (done.status, done.out, done.lines) == (0, "", [])
    assert (finished / "run/eval/knn.json").exists()


class Nobody(http.server.BaseHTTPRequestHandler):
    """A server that knows no key."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b'{"data": null, "errors": [{"message": "not logged in"}]}')

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def nobody():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nobody) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _read_only(place: pathlib.Path):
    """Data and caches that cannot be written, and no home."""
    images = place / "images"
    paths = [*images.rglob("*"), images]
    for path in paths:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        return run(
            *TRAIN,
            "--config.dataset.cache_dir=images/train/decoded",
            "--config.compilation_cache=images/train/compiled",
            cwd=place,
            as_user=True,
            environment=dict.fromkeys(("HOME", "XDG_CACHE_HOME")),
        )
    finally:
        for path in paths:
            path.chmod(0o700)


def _with_server(server):
    """A run that is to tell a server of itself."""

    def go(place: pathlib.Path):
        with server() as url:
            environment = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": url}
            return run(*WANDB, cwd=place, environment=environment)

    return go


OFFLINE = "kept offline, upload it later with: wandb sync"
# Runs that go on, and what each of their warnings has to say.
ACCEPTED = {
    "read only": (
        _read_only,
        [
            ["compiled programs are not kept", "set config.compilation_cache"],
            ["decoded images cannot be cached", "set config.dataset.cache_dir"],
        ],
    ),
    "a server that is not there": (
        _with_server(lambda: contextlib.nullcontext(NOWHERE)),
        [["wandb: 127.0.0.1 cannot be reached", OFFLINE]],
    ),
    "an invalid key": (
        _with_server(nobody),
        [["wandb: 127.0.0.1 does not accept the API key", OFFLINE]],
    ),
}


@pytest.fixture(scope="module")
def accepted(request, finished):
    """The outcome of every run that is asked for."""

    def ask(case, place):
        shutil.copytree(finished / "images", place / "images")
        return ACCEPTED[case][0](place)

    return side_by_side(ask, request)


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case, accepted):
    done, expected = accepted[case].result(), ACCEPTED[case][1]
    assert (done.status, done.out, done.errors) == (0, "", []), done.lines
    warnings = [line for line in done.lines if line.startswith("warning: ")]
    # Training on noise has warnings of its own.
    warnings = [line for line in warnings if "feature_spread" not in line]
    for line, parts in zip(warnings, expected, strict=True):
        assert [part for part in parts if part not in line] == [], line
    assert KEY not in "\n".join(done.lines)


def test_nobody_in_particular(monkeypatch, caplog):
    """A container may run as a number that has neither a name nor a home."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    monkeypatch.setattr(logging.getLogger("duet_jax"), "propagate", True)
    devices.enable_compilation_cache("")
    (record,) = caplog.records
    assert "compiled programs are not kept" in record.getMessage()


def test_events_on_a_full_disk(tmp_path):
    """Whoever writes hears of it, and does not wait for a thread that has ended."""
    writer = TensorBoard(tmp_path, None)
    with open("/dev/full", "wb", buffering=0) as full:
        writer.close()
        writer._file._py_recordio_writer._writer = full
        for step in range(20):
            with pytest.raises(OSError, match="No space left"):
                writer.write({"step": step, "split": "train", "loss": 1.0})
