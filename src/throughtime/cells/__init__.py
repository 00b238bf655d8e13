"""The cells. Adding one: a file here with a final subclass of `Cell`, and its instances in `REGISTRY`."""

from throughtime.cells.block_gru import BlockGRU
from throughtime.cells.cell import Cell, Product, Pulled, Weights, pull_by_autograd
from throughtime.cells.gru import GRU
from throughtime.cells.gru_reset_before import GRUResetBefore
from throughtime.cells.janet import JANET
from throughtime.cells.lru import LRU
from throughtime.cells.lstm import LSTM
from throughtime.cells.lstm_peepholes import LSTMPeepholes
from throughtime.cells.mgu import MGU
from throughtime.cells.min_gru import MinGRU
from throughtime.cells.min_lstm import MinLSTM
from throughtime.cells.rate import Rate
from throughtime.cells.rnn import RNN
from throughtime.cells.s6 import S6

REGISTRY: dict[str, Cell] = {
    "gru": GRU(),
    "gru-z-takes": GRU(keeps=False),
    "gru-reset-before": GRUResetBefore(),
    "gru-reset-before-z-takes": GRUResetBefore(keeps=False),
    "gru-hard": GRU(gate="hard-sigmoid", activation="relu"),
    "gru-reset-before-hard": GRUResetBefore(gate="hard-sigmoid-6", keeps=False),
    "lstm": LSTM(),
    "lstm-hard": LSTM(gate="hard-sigmoid", activation="relu"),
    "lstm-relu-tanh": LSTM(activation="relu", output_activation="tanh"),
    "lstm-peepholes": LSTMPeepholes(),
    "lstm-peepholes-hard": LSTMPeepholes(gate="hard-sigmoid-6", output_activation="relu"),
    "mingru": MinGRU(),
    "minlstm": MinLSTM(),
    "janet": JANET(),
    "mgu": MGU(),
    "rate-tanh": Rate("tanh"),
    "rate-relu": Rate("relu"),
    "rate-inside": Rate("tanh", inside=True),
    "block-gru": BlockGRU(blocks_of=2),
    "lru": LRU(),
    "s6": S6(),
    "rnn-tanh": RNN("tanh"),
    "rnn-relu": RNN("relu"),
}

__all__ = [
    "GRU",
    "JANET",
    "LRU",
    "LSTM",
    "MGU",
    "REGISTRY",
    "RNN",
    "S6",
    "BlockGRU",
    "Cell",
    "GRUResetBefore",
    "LSTMPeepholes",
    "MinGRU",
    "MinLSTM",
    "Product",
    "Pulled",
    "Rate",
    "Weights",
    "pull_by_autograd",
]
