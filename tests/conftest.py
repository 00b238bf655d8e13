"""One thread for all tests: small networks gain nothing from a second one and lose much to it beside other tests."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--update-docs: what the code of the documentation's pages prints and draws is written into them anew."""
    parser.addoption("--update-docs", action="store_true", help="write the outputs of the pages' code into the pages")


FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def keras() -> ModuleType:
    os.environ["KERAS_BACKEND"] = "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("keras")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests of a file; without one they are skipped, or fail with THROUGHTIME_REQUIRE_BROWSER=1."""
    path = shutil.which("chromium")
    reason = "chromium is not installed (apt-get install chromium)" if path is None else ""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        reason = "playwright is not installed (pip install playwright)"
    if reason and os.environ.get("THROUGHTIME_REQUIRE_BROWSER") == "1":
        pytest.fail(f"THROUGHTIME_REQUIRE_BROWSER=1, but {reason}")
    if reason:
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
