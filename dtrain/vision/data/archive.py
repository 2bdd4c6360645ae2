"""Fetch and unpack CIFAR-10's archive once, though several ranks ask for it at the same moment.

The first process takes a lock in the folder; the others wait and find the work done. Files appear under their final
names only when complete, so an interrupted download or unpacking leaves nothing that looks finished.
"""

import fcntl
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from dtrain.files import open_file, whole_file

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Archive:
    """A tar.gz file that holds one folder of files of known sizes."""

    url: str
    num_bytes: int
    sha256: str
    folder: str  # the folder inside the archive, and the one it is unpacked to
    member_bytes: dict[str, int]  # the files wanted from it; everything else in it is ignored

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def unpacked(archive: Archive, root: Path, *, download: bool) -> Path:
    """The folder with the archive's files, made if need be from the archive in `root`, itself fetched if `download`.

    `root` is a folder that holds the unpacked folder or the archive, or is either of the two itself. Raises
    FileNotFoundError if there is neither and `download` is false, ValueError for an archive that is not the expected
    one, ConnectionError if it cannot be fetched.
    """
    if all((root / member).is_file() for member in archive.member_bytes):
        return root
    folder = root if root.name != archive.file_name else root.parent
    if download:
        folder.mkdir(parents=True, exist_ok=True)
    target, packed = folder / archive.folder, folder / archive.file_name
    if target.is_dir():
        return target
    if not download and not packed.is_file():
        raise FileNotFoundError(
            f"neither {archive.folder} nor {archive.file_name} is in {folder}; set download=true, or fetch "
            f"{archive.url} into it"
        )
    with _locked(folder / f".{archive.folder}.lock"):
        if not target.is_dir():
            if not packed.exists():
                _fetch(archive, packed)
            with open_file(packed) as file:
                _check(archive, file, packed)
            _unpack(archive, packed, target)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    with os.fdopen(opened, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released with the file, also when the process dies
        yield


def _fetch(archive: Archive, packed: Path) -> None:
    try:
        with urllib.request.urlopen(archive.url, timeout=_TIMEOUT_SECONDS) as response, whole_file(packed) as file:
            _copy_with_progress(response, file, archive)
            _check(archive, file, packed)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"cannot fetch {archive.url}: {error}; fetch it by other means and put it at {packed}"
        ) from error


def _copy_with_progress(response: IO[bytes], file: BufferedIOBase, archive: Archive) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(archive.file_name, total=archive.num_bytes)
        copied = 0
        while copied <= archive.num_bytes and (chunk := response.read(_CHUNK_BYTES)):  # a longer file is not the one
            file.write(chunk)
            copied += len(chunk)
            progress.advance(task, len(chunk))


def _check(archive: Archive, file: BufferedIOBase, path: Path) -> None:
    """Raise ValueError, naming `path`, for a file that is not the archive."""
    num_bytes = file.seek(0, os.SEEK_END)
    if num_bytes != archive.num_bytes:
        found = f"{num_bytes} bytes long instead of {archive.num_bytes}"
    else:
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 == archive.sha256:
            return
        found = f"of SHA-256 {sha256} instead of {archive.sha256}"
    raise ValueError(
        f"{path} is not the archive of {archive.url}: it is {found}; fetch it again, in its place if it is there"
    )


def _unpack(archive: Archive, packed: Path, target: Path) -> None:
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    missing = {f"{archive.folder}/{name}": (name, size) for name, size in archive.member_bytes.items()}
    with tarfile.open(packed, "r:gz") as tar:
        for member in tar:  # our names, never the archive's: no path in it can lead outside the folder
            if member.name not in missing or not member.isreg():
                continue
            name, size = missing.pop(member.name)
            content = tar.extractfile(member)
            if member.size != size or content is None:
                raise ValueError(f"{packed}: {member.name} has {member.size} bytes instead of {size}")
            with content, (partial / name).open("wb") as file:
                shutil.copyfileobj(content, file, _CHUNK_BYTES)
    if missing:
        raise ValueError(f"{packed} lacks {', '.join(sorted(missing))}")
    partial.rename(target)
