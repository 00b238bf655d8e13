"""One thread for all tests: small networks gain nothing from a second one and lose much to it beside other tests."""

import torch

torch.set_num_threads(1)
