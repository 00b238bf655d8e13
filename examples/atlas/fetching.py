"""Files out of packages, fetched by pip and checked; no package is installed or imported.

pip reads an sdist's metadata by running its setup.py; of a wheel nothing runs.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILES = Path(__file__).parent.parent.parent / "build" / "atlas"


class FetchError(RuntimeError):
    """A package that pip did not bring, or other contents than those that were measured."""


@dataclass(frozen=True)
class Package:
    """requirement: as pip has it. archive: its file. sha256: of the file. needs: what its setup.py imports."""

    requirement: str
    archive: str
    sha256: str
    needs: str = ""

    def file(self, member: str) -> Path:
        """One file of it, kept in build/atlas. Raises FetchError."""
        path = FILES / self.archive.split("-")[0] / Path(member).name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._read(member))
        return path

    def _read(self, member: str) -> bytes:
        archive = FILES / self.archive
        if not archive.exists():
            self._fetch()
        if hashlib.sha256(archive.read_bytes()).hexdigest() != self.sha256:
            raise FetchError(f"got another {self.archive} than expected (sha256 {self.sha256[:12]}…); measure it anew")
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(archive) as sdist:
            found = sdist.extractfile(member)
            assert found is not None
            return found.read()

    def _fetch(self) -> None:
        pip, wheel, environment = [sys.executable, "-m", "pip"], self.archive.endswith(".whl"), dict(os.environ)
        if self.needs:
            environment["PYTHONPATH"] = str(FILES / "needs")
            _run([*pip, "install", "-q", "--target", environment["PYTHONPATH"], self.needs], None)
        kind = ["--only-binary" if wheel else "--no-binary", ":all:", *([] if wheel else ["--no-build-isolation"])]
        _run([*pip, "download", "-q", "--no-deps", *kind, "-d", str(FILES), self.requirement], environment)


def _run(command: list[str], environment: dict[str, str] | None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FetchError(f"got no {command[-1]} (pip: {done.stderr.strip()[-300:]}); do this: let pip reach its index")


G2P_EN = Package(
    "g2p_en==2.1.0",
    "g2p_en-2.1.0-py3-none-any.whl",
    "2a7aabf1fc7f270fcc3349881407988c9245173c2413debbe5432f4a4f31319f",
)
SILERO = Package(
    "silero-vad==6.2.3",
    "silero_vad-6.2.3-py3-none-any.whl",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
)
KHMER = Package(
    "khmer-english-transliteration==0.1.4",
    "khmer_english_transliteration-0.1.4-py3-none-any.whl",
    "631c34c8b5d081f1aa6261786f6b6e2116a6770879d39eca8e7c886483cf577d",
)
G2PM = Package(
    "g2pM==0.1.2.5",
    "g2pM-0.1.2.5-py3-none-any.whl",
    "9e920b82df4002f96d8679720c7a858d10816d438dbd61b8b6b621a80a976361",
)
TEXTGENRNN = Package(
    "textgenrnn==2.0.0",
    "textgenrnn-2.0.0.tar.gz",
    "c2b6f1c201c76d5a6021079e95a8db499bbe15d9f3448d33cb51c0cd496c86f8",
)
MADMOM = Package(  # models under CC BY-NC-SA 4.0: fetched, never bundled
    "madmom==0.16.1",
    "madmom-0.16.1.tar.gz",
    "64a86a29106e7c4e0c5f4ec96801c2d1a8492db710e4fe27e097da5517d68cb2",
    needs="cython<3",
)


class Kept:
    """An object of any class in a pickle: its attributes, without the class."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        self.__dict__ |= state if isinstance(state, dict) else {"state": state}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("items", {})[key] = value


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name.startswith("numpy") and global_name in ("ndarray", "dtype"):
            return getattr(np, global_name)
        if module_name in ("numpy.core.multiarray", "numpy._core.multiarray") and global_name == "_reconstruct":
            return _array
        return type(global_name, (Kept,), {})


def _array(kind: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that its pickled state fills, as numpy's own `_reconstruct` makes it."""
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def unpickled(path: Path) -> Any:
    """What a pickle holds, without running it: arrays, and every other class as `Kept`."""
    with open(path, "rb") as file:
        return _Unpickler(file, encoding="latin1").load()
