"""Initialisations that set how long a gated network remembers before it has learned anything."""

from __future__ import annotations

import operator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from throughtime.errors import InputError, UnsupportedError

M = TypeVar("M", bound=nn.Module)

_GATED = (nn.GRU, nn.GRUCell, nn.LSTM, nn.LSTMCell)

MIN_MAX_LAG = 3
"""U(1, T_max − 1) is an interval only from T_max = 3 on."""


def chrono_(module: M, max_lag: int, generator: torch.Generator | None = None) -> M:
    """Chrono initialisation, in place: the carry of unit j lasts τ_j steps, τ_j spread over 2 … `max_lag`.

    With u_j ~ U(1, T_max − 1), drawn once for each unit of each layer and direction:

        LSTM:  b_f = ln u,  b_i = −ln u    forget keeps σ(ln u) = 1 − 1/(1 + u), input lets in 1/(1 + u)
        GRU:   b_z = ln u                  torch's update gate keeps: h_t = (1 − z) ∘ n + z ∘ h_{t−1}

    so that while the products with weights are small, mean z_j (or f_j) = 1 − 1/τ_j with τ_j = 1 + u_j. torch adds two
    biases before each gate: the value goes into `bias_ih…` and the block of the same gate in `bias_hh…` becomes zero.
    All other parameters, and all other blocks of the biases, stay as they are to the last bit.

    Args:
        module: an nn.GRU, nn.LSTM, nn.GRUCell or nn.LSTMCell, or any module that holds some: all of them are set,
            every layer and both directions. A plain nn.RNN beside them has no gate and is left alone.
        max_lag: T_max in steps, the farthest lag the task is thought to need; an integer ≥ 3.
        generator: source of the draws; without one, torch's global generator, as in torch.nn.init.

    Returns:
        `module` itself.

    Raises:
        InputError: no gated layer inside, a layer without biases or with one tensor for both, a `max_lag` that is no
            integer or below 3.
        UnsupportedError: a bias that is computed (a parametrization), where a value written would be lost.

    Nothing has been changed when an error is raised.

    Source: Tallec & Ollivier 2018, "Can recurrent neural networks warp time?", ICLR, arXiv:1804.11188. The
    GRU's bias is that of the forget gate, in the sense of torch's z.
    """
    horizon = _checked_max_lag(max_lag)
    layers = [layer for layer in module.modules() if isinstance(layer, _GATED)]
    if not layers:
        raise _no_gate(module)
    biases = [pair for layer in layers for pair in _bias_pairs(layer)]
    with torch.no_grad():
        for layer, bias_ih, bias_hh in biases:
            # Drawn in float32 whatever the layer's dtype: the same generator gives the same timescales to all of them.
            device = bias_ih.device if generator is None else generator.device
            u = torch.empty(layer.hidden_size, dtype=torch.float32, device=device)
            keep = u.uniform_(1.0, horizon - 1.0, generator=generator).log_()
            for gate, value in _gate_biases(layer, keep).items():
                block = slice(gate * layer.hidden_size, (gate + 1) * layer.hidden_size)
                bias_ih[block] = value.to(bias_ih)
                bias_hh[block] = 0.0
    return module


def _gate_biases(layer: nn.Module, keep: Tensor) -> dict[int, Tensor]:
    """Bias by the gate's place in torch's stacked order: r, z, n of a GRU; i, f, g, o of an LSTM."""
    if isinstance(layer, nn.GRU | nn.GRUCell):
        return {1: keep}
    return {0: -keep, 1: keep}


def _bias_pairs(layer: nn.Module) -> list[tuple[nn.GRU | nn.GRUCell | nn.LSTM | nn.LSTMCell, Tensor, Tensor]]:
    """(layer, bias_ih, bias_hh) of every layer and direction, each checked to be writable."""
    assert isinstance(layer, _GATED)
    kind = f"{type(layer).__name__}({layer.input_size}, {layer.hidden_size})"
    if not layer.bias:
        raise InputError(
            f"an nn.{kind} with bias=False",
            "gate biases, which are what chrono initialisation sets",
            "build the layer with bias=True",
        )
    suffixes = [""]
    if isinstance(layer, nn.RNNBase):
        directions = ("", "_reverse") if layer.bidirectional else ("",)
        suffixes = [f"_l{depth}{direction}" for depth in range(layer.num_layers) for direction in directions]
    pairs = []
    for suffix in suffixes:
        names = (f"bias_ih{suffix}", f"bias_hh{suffix}")
        for name in names:
            if parametrize.is_parametrized(layer, name) or name not in layer._parameters:
                raise UnsupportedError(
                    f"an nn.{kind} whose {name} is computed from other tensors",
                    "a bias that is a parameter of its own",
                    "initialise before the parametrization is registered",
                )
        bias_ih, bias_hh = (getattr(layer, name) for name in names)
        if bias_ih is bias_hh:
            raise InputError(
                f"an nn.{kind} whose {names[0]} and {names[1]} are one tensor",
                "two biases, one of which can be zero",
                "untie them before the initialisation",
            )
        pairs.append((layer, bias_ih, bias_hh))
    return pairs


def _checked_max_lag(max_lag: int) -> int:
    try:
        if isinstance(max_lag, bool):
            raise TypeError
        lag = operator.index(max_lag)
    except TypeError:
        raise InputError(
            f"max_lag={max_lag!r}", "an integer number of steps", "give the farthest lag the task needs"
        ) from None
    if lag < MIN_MAX_LAG:
        raise InputError(
            f"max_lag={lag}",
            f"at least {MIN_MAX_LAG} steps: timescales are drawn from U(1, max_lag − 1)",
            "nearer lags need no such initialisation; give the farthest lag the task needs",
        )
    return lag


def _no_gate(module: nn.Module) -> InputError:
    name = type(module).__name__
    if any(isinstance(part, nn.RNN | nn.RNNCell) for part in module.modules()):
        got = (
            f"an nn.{name}, which has no gate" if isinstance(module, nn.RNN | nn.RNNCell) else f"a {name} without gates"
        )
        return InputError(
            got,
            "an nn.GRU or nn.LSTM, or a module that holds one",
            "use a gated layer: an Elman network has no carry whose duration a bias could set",
        )
    return InputError(
        f"a {name} without a gated recurrent layer",
        "an nn.GRU or nn.LSTM, or a module that holds one",
        "pass the recurrent layer or the model around it",
    )
