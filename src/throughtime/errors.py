"""The library's own errors. Each message says what was got, what was expected and what to do."""

from typing import Any


class ThroughtimeError(Exception):
    """Base of every error this library raises on purpose."""

    def __init__(self, got: str, expected: str = "", do: str = "") -> None:
        self.got, self.expected, self.do = got, expected, do
        parts = [f"got {got}", f"expected {expected}" if expected else "", f"do this: {do}" if do else ""]
        super().__init__("; ".join(part for part in parts if part))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.got, self.expected, self.do), self.__dict__  # from its words, and not from the message


class UnsupportedError(ThroughtimeError):
    """The network or the call is of a kind that cannot be explained exactly yet."""


class RecordError(ThroughtimeError):
    """What was recorded is incomplete or was changed, so that no exact decomposition exists."""


class ResidualError(ThroughtimeError):
    """The terms do not add up to autograd's gradient within the contract."""


class InputError(ThroughtimeError):
    """The data, the weights or a file given by the user cannot be used."""


class MissingExtraError(ThroughtimeError, ImportError):
    """An optional dependency is not installed."""
