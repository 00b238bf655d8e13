"""Files out of packages, fetched by pip or apt and checked; what is measured is neither installed nor imported.

pip reads an sdist's metadata by running its setup.py; of a wheel and of a Debian package nothing runs.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

FILES = Path(__file__).parent.parent.parent / "build" / "atlas"


class FetchError(RuntimeError):
    """A package that did not come, or other contents than those that were measured."""


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
            path.write_bytes(self.read(member))
        return path

    def read(self, member: str) -> bytes:
        """One file's content. Raises FetchError."""
        archive = FILES / self.archive
        if not archive.exists():
            self._fetch()
        _check(archive, self.sha256)
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(archive) as sdist:
            return _member(sdist, member)

    def _fetch(self) -> None:
        pip, wheel, environment = [sys.executable, "-m", "pip"], self.archive.endswith(".whl"), dict(os.environ)
        if self.needs:
            environment["PYTHONPATH"] = str(FILES / "needs")
            _run([*pip, "install", "-q", "--target", environment["PYTHONPATH"], self.needs], None)
        kind = ["--only-binary" if wheel else "--no-binary", ":all:", *([] if wheel else ["--no-build-isolation"])]
        _run([*pip, "download", "-q", "--no-deps", *kind, "-d", str(FILES), self.requirement], environment)


@dataclass(frozen=True)
class Debian(Package):
    """requirement: name=version, as apt-get has it."""

    def read(self, member: str) -> bytes:
        """Without dpkg's scripts: the archive's data alone."""
        archive = FILES / self.archive
        if not archive.exists():
            self._fetch()
        _check(archive, self.sha256)
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=BytesIO(data)) as packed:
            return _member(packed, member)

    def _fetch(self) -> None:
        if shutil.which("apt-get") is None:
            raise FetchError(f"got no apt-get for {self.requirement}; do this: run it on Debian")
        _run(["apt-get", "download", "-qq", self.requirement], None)


def imported(module: str, *requirements: str) -> Any:
    """A tool's module out of wheels in build/atlas/needs: what reads a file of sound."""
    needs = str(FILES / "needs")
    if needs not in sys.path:
        sys.path.append(needs)
    if importlib.util.find_spec(module) is None:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary", ":all:"]
        _run([*command, "--target", needs, *requirements], None)
        importlib.invalidate_caches()
    return importlib.import_module(module)


def _check(archive: Path, sha256: str) -> None:
    if hashlib.sha256(archive.read_bytes()).hexdigest() != sha256:
        raise FetchError(f"got another {archive.name} than expected (sha256 {sha256[:12]}…); measure it anew")


def _member(packed: tarfile.TarFile, member: str) -> bytes:
    found = packed.extractfile(member)
    assert found is not None
    return found.read()


def _run(command: list[str], environment: dict[str, str] | None) -> None:
    FILES.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, env=environment, cwd=FILES, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FetchError(
            f"got no {command[-1]} ({done.stderr.strip()[-300:]}); do this: let {command[0]} reach its index"
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
        if (module_name, global_name) in (("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")):
            return _instance
        return type(global_name, (Kept,), {})


def _array(kind: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that its pickled state fills, as numpy's own `_reconstruct` makes it."""
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def _instance(kind: type, *_: Any) -> Any:
    """An object that its pickled state fills, of a class that `find_class` made."""
    return kind()


def unpickled(path: Path) -> Any:
    """What a pickle holds, without running it: arrays, and every other class as `Kept`."""
    with open(path, "rb") as file:
        return _Unpickler(file, encoding="latin1").load()
