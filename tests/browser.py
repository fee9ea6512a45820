"""A browser for what only a browser can tell."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """Path of Chromium or Chrome; skips the test where there is none."""
    found = os.environ.get("DUET_CHROMIUM") or next(
        filter(None, map(shutil.which, NAMES)), None
    )
    if not found:
        pytest.skip(
            "no browser: install chromium (apt-get install chromium), or name one in "
            "DUET_CHROMIUM"
        )
    return found
