"""The file that is received: one receiver writes it at a time, and whoever opens it finds a whole version.

A receiver writes into NAME.partial, which is its lock as well and takes NAME by a rename. So an inode that was locked
may be the live file by then, or be gone: who has locked one looks whether NAME.partial still is that one, and whoever
has that one locked is alone in renaming or removing it. A receiver that is killed leaves NAME.partial behind, unlocked,
for the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from stat import S_ISREG

from dtrain.files import keep_entries, open_file, read_json, write_whole
from dtrain.ship.offer import is_sha256, is_version

_MAX_VERSION_BYTES = 256


@contextmanager
def alone(target: Path) -> Iterator[FileIO]:
    """The file beside `target` that becomes it, in which only one receiver writes at a time.

    Raises ValueError where another receiver has it, or it is no file of a receiver's; OSError.
    """
    path = target.with_name(target.name + ".partial")
    with FileIO(_open_locked(path, target), "wb") as file:
        try:
            yield file
        finally:
            if _is_at(path, file.fileno()):  # and not renamed
                path.unlink()


def _open_locked(path: Path, target: Path) -> int:
    while True:
        try:
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: remove it, or make the folder writable", str(path)) from None
        try:
            if not S_ISREG(os.fstat(opened).st_mode):
                raise ValueError(f"{path} is no file of a receiver's: remove it")
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, opened):
                if os.fstat(opened).st_nlink > 1:
                    raise ValueError(f"{path} is another file as well: remove it")
                return opened
        except BlockingIOError:
            os.close(opened)
            raise ValueError(f"another receiver is writing {target}: give each a file of its own") from None
        except BaseException:
            os.close(opened)
            raise
        os.close(opened)


def _is_at(path: Path, opened: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(opened))
    except FileNotFoundError:
        return False


def read_held(target: Path, max_bytes: int) -> bytes | None:
    """The version that is there. Raises ValueError for what cannot be one."""
    if not target.exists():
        return None
    with open_file(target) as file:
        if (size := os.fstat(file.fileno()).st_size) > max_bytes:
            raise ValueError(f"{target} has {size:,} bytes, and --max-bytes is {max_bytes:,}")
        return file.read()


def check_space(target: Path, num_bytes: int) -> None:
    """Raises ValueError where that many bytes do not fit beside it."""
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        raise ValueError(f"{target.parent} has {free:,} bytes free, and the new version takes {num_bytes:,}")


def replace(target: Path, partial: FileIO, data: bytes) -> None:
    """Make `target` a file with that content, through the file of `alone`. Raises OSError."""
    try:
        partial.truncate(0)  # a receiver that was killed leaves it
        left = memoryview(data)
        while left:
            left = left[partial.write(left) :]
        os.fsync(partial.fileno())
        target.with_name(target.name + ".partial").replace(target)
    except OSError as error:
        raise OSError(f"cannot write {target} ({error.strerror or error}); it is as it was") from None
    keep_entries(target.parent)


# what was last accepted of a publisher that signs


@dataclass(frozen=True)
class Accepted:
    """A version by its number, and the digest of its file."""

    version: int
    sha256: str


def read_accepted(target: Path) -> Accepted | None:
    """What was last accepted for `target`. Raises ValueError where that cannot be known."""
    path = _accepted_path(target)
    try:
        fields = read_json(path, _MAX_VERSION_BYTES)
    except FileNotFoundError:
        return None
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or not is_version(fields.get("version")) or not is_sha256(fields.get("sha256")):
        raise ValueError(f"{path} is damaged, so an old version could not be told: remove it to accept any")
    return Accepted(fields["version"], fields["sha256"])


def write_accepted(target: Path, accepted: Accepted) -> None:
    """Keep it, before `target` is replaced: after a kill in between, nothing older is accepted. Raises OSError."""
    write_whole(_accepted_path(target), json.dumps(asdict(accepted)) + "\n")


def _accepted_path(target: Path) -> Path:
    return target.with_name(target.name + ".version")
