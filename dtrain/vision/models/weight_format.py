"""What a file of weights is, told by its content: the same state dict is called .pth, .pt, .pth.tar, .bin or .ckpt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, ZipFile

from dtrain.files import open_file

Format = Literal["safetensors", "torch", "npz"]
FORMATS = "safetensors, a state dict saved by torch (tensors by name, nothing else), or .npz"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin", ".ckpt", ".npz")
_LFS_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n.*?\bsize (\d+)\n", re.DOTALL)


def format_of(path: Path) -> Format:
    """How the file at `path` is to be read.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: it is none of `FORMATS`; the message says what it is instead, as far as that can be told, and the
            cure.
    """
    if path.is_dir():
        raise ValueError(f"cannot read {path} as weights: it is a folder; {_files_in(path)}")
    if not path.exists():
        raise FileNotFoundError(f"no weight file at {path}: check the path, or download it first")
    with open_file(path) as file:
        start = file.read(1024)
    if start.startswith(b"PK"):
        return _format_of_archive(path)
    if start.startswith(b"\x80"):  # torch before 1.6
        return "torch"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return "safetensors"
    raise ValueError(f"cannot read {path} as weights: it is {_described(path, start)}")


def _format_of_archive(path: Path) -> Format:
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except (BadZipFile, NotImplementedError, OSError, ValueError):  # of a damaged table of contents
        raise ValueError(f"cannot read {path} as weights: it is an archive without its end: fetch it again") from None
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    if all(name.endswith(".npy") for name in names):
        return "npz"
    raise ValueError(f"cannot read {path} as weights: it is a zip archive of other files: unpack it, and name one")


def _described(path: Path, start: bytes) -> str:
    """What a file is that is not one of weights, and what to do."""
    if not start:
        return "empty: fetch it again"
    if (pointer := _LFS_POINTER.match(start)) is not None:
        return f"a Git LFS pointer to a file of {int(pointer[1]):,} bytes: fetch that, by `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return "a web page: fetch the file itself again"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or start[257:262] == b"ustar":
        return "a compressed or tar archive: unpack it, and name the file in it"
    if path.suffix.lower() == ".dtz":
        return "a packed model: make safetensors of it, by `dtrain unpack`"
    return f"neither {FORMATS}: if it is truncated, fetch it again; else save it as one of these"


def _files_in(folder: Path) -> str:
    files = sorted(file.name for file in folder.iterdir() if file.is_file() and file.suffix.lower() in _SUFFIXES)
    return f"name a file in it: {', '.join(files)}" if files else "name a file of weights"
