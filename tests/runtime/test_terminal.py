"""Signs of life: what is being done is said whenever nothing else is."""

import io
import logging
import threading
import time

import pytest

from duet_jax.runtime import terminal

log = logging.getLogger("duet_jax.test")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def to(monkeypatch):
    """Lets the log go to a stream, where a twentieth of a second is long.

    It is to be called in the test: pytest has a stream of its own for fixtures.
    """

    def redirect(stream):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(terminal, "QUIET", 0.05)
        terminal.log_to_terminal(logging.INFO)
        return stream

    return redirect


def until(stream, text):
    """Waits until `text` is in the stream."""
    for _ in range(600):
        if text in stream.getvalue():
            return
        time.sleep(0.05)
    raise AssertionError(f"{text} is not in {stream.getvalue()!r}")


def test_the_last_line_is_repeated(to):
    lines = to(io.StringIO())
    with terminal.signs_of_life():
        log.info("compiling ...")
        until(lines, "compiling ... 0 s\n")
        log.info("compiled")
        count = lines.getvalue().count("\n")
        time.sleep(0.3)  # nothing is known of what follows
    assert lines.getvalue().count("\n") == count


def test_the_innermost_is_told(to):
    lines = to(io.StringIO())
    with terminal.signs_of_life(), terminal.doing("report"):
        with terminal.doing("solver"):
            until(lines, "solver ... 0 s\n")
        log.info("a line")
        until(lines, "report ... ")
        log.info("knn ...")
        until(lines, "knn ... 0 s")


def test_lines_make_signs_needless(to, monkeypatch):
    lines = to(io.StringIO())
    monkeypatch.setattr(terminal, "QUIET", 30.0)
    with terminal.signs_of_life(), terminal.doing("solver"):
        log.info("a line")
    assert lines.getvalue() == "a line\n"


def test_signs_become_rare(to, monkeypatch):
    lines = to(io.StringIO())
    monkeypatch.setattr(terminal, "_SHARE", 1000.0)
    with terminal.signs_of_life(), terminal.doing("solver"):
        time.sleep(0.3)
    assert lines.getvalue() == ""


def test_a_bar_tells_more(to):
    lines = to(io.StringIO())
    with terminal.signs_of_life(), terminal.doing("solver"):
        with terminal.bar(total=2, file=Terminal(), disable=False):
            before = lines.getvalue()
            time.sleep(0.3)
            assert lines.getvalue() == before
        until(lines, "solver ... ")


def test_on_a_terminal_one_line_is_replaced(to):
    stream = to(Terminal())
    with terminal.signs_of_life(), terminal.doing("solver"):
        until(stream, "\rsolver ... 0 s")
        until(stream, "\rsolver ... 1 s")
        log.info("a line")
        until(stream, "a line\n")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\r")


def test_a_closed_stream_ends_them(to):
    lines, threads = to(io.StringIO()), threading.active_count()
    with terminal.signs_of_life(), terminal.doing("solver"):
        assert threading.active_count() > threads
        lines.close()
        for _ in range(600):
            if threading.active_count() == threads:
                return
            time.sleep(0.05)
    raise AssertionError("they go on")
