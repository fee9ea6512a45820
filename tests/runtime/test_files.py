"""Local paths, and files that are there whole or not at all."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from duet_jax.errors import UsageError
from duet_jax.runtime import files


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def replace(path, text, *, interrupted=False):
    with files.replacing(path) as partial:
        assert partial.suffix == path.suffix
        partial.write_text(text)
        if interrupted:
            raise KeyboardInterrupt


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        replace(path, "new", interrupted=True)
    assert path.read_text() == "old"
    replace(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["results.json"]


def test_a_line_is_added_after_what_a_full_disk_left(tmp_path):
    path = tmp_path / "starts.jsonl"
    files.append_line(path, "first")
    files.append_line(path, "second")
    assert path.read_bytes() == b"first\nsecond\n"
    path.write_bytes(b"first\nsec")
    files.append_line(path, "thi\u0155d")
    assert path.read_text(encoding="utf-8") == "first\nsec\nthi\u0155d\n"


def test_several_write_at_once_and_the_last_wins(tmp_path):
    """In one process and in several: none takes another's unfinished file."""
    path = tmp_path / "results.json"
    with files.replacing(path) as first:
        first.write_text("first")
        with files.replacing(path) as second:
            second.write_text("second")
        code = (
            "import sys; from duet_jax.runtime import files\n"
            "with files.replacing(sys.argv[1]) as partial: partial.write_text('third')"
        )
        root = pathlib.Path(files.__file__).parents[2]
        subprocess.run([sys.executable, "-c", code, path], cwd=root, check=True)
        assert path.read_text() == "third"
    assert path.read_text() == "first"
    assert names(tmp_path) == ["results.json"]


def test_many_threads_write_at_once(tmp_path):
    path = tmp_path / "results.json"
    failures = []

    def write(text):
        try:
            for _ in range(50):
                replace(path, text)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert path.read_text() in "abcd"
    assert names(tmp_path) == ["results.json"]


def test_a_directory_is_not_replaced(tmp_path):
    path = tmp_path / "results.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError) as error:
        replace(path, "new")
    assert error.value.filename == str(path)
    assert names(tmp_path) == ["results.json"]


@pytest.mark.parametrize("letter", ["x", "é", "語"])
def test_a_long_name(tmp_path, letter):
    path = tmp_path / (letter * (250 // len(letter.encode())) + ".json")
    replace(path, "new")
    assert path.read_text() == "new"


def test_a_directory_to_work_in(tmp_path):
    with files.scratch(tmp_path / "features.npz") as place:
        (place / "part.npy").write_text("")
        assert place.parent == tmp_path
    with pytest.raises(KeyboardInterrupt), files.scratch(tmp_path / "features.npz"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def gone_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_dead_processes_left_is_removed(tmp_path):
    host, dead = files._HOST, gone_process()
    old = time.time() - 3 * 24 * 3600
    removed = {
        f".results.{host}_{dead}_0.partial.json": None,
        f".features.npz.{host}_{dead}_3.partial": None,
        f".results.{host}_{2**70}_0.partial.json": None,
        ".results.elsewhere_1_0.partial.json": old,
    }
    kept = {
        f".results.{host}_{os.getppid()}_0.partial.json": old,  # it is at work
        ".results.elsewhere_2_0.partial.json": None,
        ".results.partial.json": old,  # not ours
        f"results.{host}_{dead}_0.partial.json": old,
    }
    for name, modified in {**removed, **kept}.items():
        path = tmp_path / name
        if name.startswith(".features"):
            path.mkdir()
            (path / "part.npy").write_text("")
        else:
            path.write_text("")
        if modified:
            os.utime(path, (modified, modified))
    replace(tmp_path / "other.json", "new")
    assert names(tmp_path) == sorted(["other.json", *kept])


def test_what_is_unfinished_goes_when_the_process_is_ended(tmp_path):
    with files.scratch(tmp_path / "features.npz") as place:
        (place / "part.npy").write_text("")
        with pytest.raises(FileNotFoundError):
            replace_and_end(tmp_path)
    assert names(tmp_path) == []


def replace_and_end(directory):
    with files.replacing(directory / "results.json") as partial:
        partial.write_text("half")
        files.remove_unfinished()
        assert names(directory) == []


@pytest.mark.parametrize(
    "path", ["gs://bucket/run", "s3://b/r", "file:///tmp/x", "HDFS://a", "az+x://a/b"]
)
def test_an_address_is_refused(path):
    with pytest.raises(UsageError) as error:
        files.local(path, "--workdir")
    assert str(error.value).startswith(f"--workdir={path} is an address; ")
    assert "mount it" in str(error.value)


@pytest.mark.parametrize("path", ["runs/a:b", "runs//x", "a:/b", "/gs://x", "://x"])
def test_a_path_is_none(path):
    assert files.local(path, "--workdir") == pathlib.Path(path)


def test_the_home_of_the_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert files.local("~/runs", "--workdir") == pathlib.Path("/home/me/runs")
