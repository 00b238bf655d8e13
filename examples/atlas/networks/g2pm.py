"""g2pM 0.1.2.5: an LSTM of both directions that reads Chinese sentences, and says how their ambiguous characters sound."""

from __future__ import annotations

import ast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import throughtime as tt
from examples.atlas.fetching import Package, unpickled
from examples.atlas.network import Network, ahead

PACKAGE = Package(
    "g2pM==0.1.2.5",
    "g2pM-0.1.2.5-py3-none-any.whl",
    "9e920b82df4002f96d8679720c7a858d10816d438dbd61b8b6b621a80a976361",
)
SENTENCES = Package(
    "jieba==0.42.1",
    "jieba-0.42.1.tar.gz",
    "055ca12f62674fafed09427f176506079bc135638a14e23e25be909131928db2",
)
BEGIN, END, UNKNOWN = "시", "끝", "<UNK>"
LEAST = 8  # characters of a sentence that is read


class Reader(nn.Module):
    """The network: sentences as numbers to the logits of every character's sound, padded (T, B, 876). The longest first."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.lstm = tt.load({name: value for name, value in arrays.items() if name.startswith("lstm.")}, cell="lstm")
        for name, place in (("letters", "embedding.weight"), ("weight_0", "logit_layer.0.weight"),
                            ("bias_0", "logit_layer.0.bias"), ("weight_1", "logit_layer.2.weight"),
                            ("bias_1", "logit_layer.2.bias")):  # fmt: skip
            self.register_buffer(name, torch.from_numpy(arrays[place]))

    def forward(self, sentences: list[Tensor]) -> Tensor:
        """See the class."""
        packed = pack_sequence([self.letters[each] for each in sentences])
        states = pad_packed_sequence(self.lstm(packed)[0])[0]
        return (states @ self.weight_0.T + self.bias_0).relu() @ self.weight_1.T + self.bias_1


def sentences() -> list[str]:
    """The sentences with which jieba (MIT) tests itself: of at least 8 characters, with an ambiguous one; the longest first."""
    tree = ast.parse(SENTENCES.file("jieba-0.42.1/test/test.py").read_text(encoding="utf-8"))
    said = [
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant)
    ]
    sounds = unpickled(PACKAGE.file("g2pM/digest_cedict.pkl"))
    chosen = [each for each in dict.fromkeys(said) if len(each) >= LEAST and any(ambiguous(each, sounds))]
    return sorted(chosen, key=len, reverse=True)


def ambiguous(sentence: str, sounds: dict[str, list[str]]) -> list[bool]:
    """Which characters have several sounds, of which the network chooses."""
    return [len(sounds.get(letter, ())) > 1 for letter in sentence]


def numbered(read: list[str]) -> tuple[list[Tensor], Tensor]:
    """Each sentence as the package numbers it, with its begin and end; and (T, B) where it asks the network."""
    number, sounds = (unpickled(PACKAGE.file(f"g2pM/{name}.pkl")) for name in ("char2idx", "digest_cedict"))
    rows = [
        torch.tensor([number[BEGIN], *(number.get(letter, number[UNKNOWN]) for letter in each), number[END]])
        for each in read
    ]
    asked = [torch.tensor([False, *ambiguous(each, sounds), False]) for each in read]
    return rows, nn.utils.rnn.pad_sequence(asked)


def network() -> Network:
    """Sentences, each with its ambiguous characters added up."""
    read = sentences()
    rows, asked = numbered(read)
    arrays = unpickled(PACKAGE.file("g2pM/np_ckpt.pkl"))
    return Network(
        "g2pM 0.1.2.5", "Apache-2.0", "Chinese characters to sounds",
        {"lstm.l0": "forward", "lstm.l0_reverse": "backward"}, "character", None,
        "log-odds of the sound chosen over the next best, added up over the ambiguous characters of a sentence",
        f"{len(read)} Chinese sentences of {len(read[-1])} to {len(read[0])} characters, from the tests of jieba (MIT)",
        "sentences", Reader(arrays), lambda model: (ahead(model(rows)) * asked).sum(0),
        note="the backward layer reads from the end: its lags lead to the future",
    )  # fmt: skip
