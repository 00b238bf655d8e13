"""One thread for all tests: small networks gain nothing from a second one and lose much to it beside other tests."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--update-docs: what the code of the documentation's pages prints and draws is written into them anew."""
    parser.addoption("--update-docs", action="store_true", help="write the outputs of the pages' code into the pages")
