"""Runs that several files of this directory share, each with `settings` of its own."""

import shutil

import pytest

from duet_jax.training import train


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """A run of two epochs of two steps."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    train.train(settings(), directory)
    return directory


@pytest.fixture(scope="module")
def extended(finished, settings, tmp_path_factory):
    """The same, extended to four."""
    directory = tmp_path_factory.mktemp("runs") / "extended"
    shutil.copytree(finished, directory)
    train.train(settings(epochs=4), directory, extend=True)
    return directory
