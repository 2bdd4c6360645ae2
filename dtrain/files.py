"""Files: those that somebody else may have made are read here, and those that somebody may read are written here.

Whatever file a user names is opened by `open_file`: what is no regular file, such as a named pipe, would keep a reader
waiting, or do something by being opened. Its size is bounded where it is read whole, and its JSON is of numbers and
depths that the rest can work with.

What is written appears whole or not at all.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BufferedReader
from math import isfinite
from pathlib import Path
from stat import S_ISBLK, S_ISCHR, S_ISDIR, S_ISFIFO, S_ISREG, S_ISSOCK
from typing import Any

_DEVICES = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))
_KINDS = (
    (S_ISDIR, "a folder"),
    (S_ISFIFO, "a named pipe"),
    (S_ISSOCK, "a socket"),
    (S_ISCHR, "a device"),
    (S_ISBLK, "a device"),
)

MAX_JSON_BYTES = 1 << 22
"""Of a file of JSON, unless it may be larger; ours have some KB. Parsed, a hostile one takes 20 times as much."""
_MOST_DIGITS = 20
"""Of a whole number in JSON: 2**64 has so many."""


def open_file(path: Path) -> BufferedReader:
    """A regular file, to be read. Raises ValueError for what is none, FileNotFoundError for nothing there, OSError."""
    try:
        _check_regular(path, path.stat().st_mode)  # before it is opened, which makes some devices do something
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file at {path}: check the path") from None
    file = os.fdopen(opened, "rb")
    try:
        _check_regular(path, os.fstat(opened).st_mode)  # another may be there by now
    except BaseException:
        file.close()
        raise
    return file


def _check_regular(path: Path, mode: int) -> None:
    if not S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")
        raise ValueError(f"{path} is {kind}: give a file")


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """All of a regular file. Raises as `open_file`, and ValueError for one of more than `max_bytes`, or than memory."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise ValueError(f"{path} has more than {max_bytes:,} bytes, and no such file of ours has: give another")
        try:
            return file.read()
        except MemoryError:
            raise ValueError(f"{path} has {size:,} bytes, more than memory is free: give a smaller file") from None


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """What a file of JSON holds. Raises as `read_file` and `parse_json`; the latter's errors do not name the file."""
    return parse_json(read_file(path, max_bytes))


def parse_json(text: str | bytes, *, not_finite: bool = False) -> Any:
    """What a text of JSON holds.

    Raises ValueError, in a short line, for what is no JSON, is nested too deeply, or has a number that no float64
    holds; for NaN and infinity, too, unless they may be there.
    """

    def whole(digits: str) -> int:
        if len(digits) > _MOST_DIGITS:
            raise ValueError(f"a number of {len(digits):,} digits")
        return int(digits)

    def constant(name: str) -> float:
        number = float(name)
        if not not_finite and not isfinite(number):
            raise ValueError(f"{name[:20]} is no number")
        return number

    try:
        return json.loads(text, parse_int=whole, parse_float=constant, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON, or cut off: {error}") from None


def short(error: object, most: int = 200) -> str:
    """What a parser says, in which the words of whoever made the file may be: printable, of so many letters at most."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(error)[:most])


# writing: into a file beside the target, under a name that nothing else has, which is on the disk before it takes the
# target's place, and takes it by a rename. So whoever opens the target, at any time and after any kill or loss of
# power, finds the version before or the version after. A process that is killed while it writes leaves its
# `.NAME.XXXXXXXX.partial` behind.
#
# A symbolic link is never written through. Of one in the target's place, the link is replaced and what it leads to
# stays as it is: a rename does so, whoever holds the linked file keeps their version, and nobody who can put a link
# into a folder can choose which file we write. Links to folders on the way are followed, so that a run's folder may
# be one.


def write_whole(path: Path, content: bytes | memoryview | str) -> None:
    """Make `path` a file with this content, a text in UTF-8; an error leaves what was there.

    Raises OSError, with the path in it.
    """
    with _naming(path), whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing: what is written into it whole is then there after a loss of
    power, too, since the disk has its name.

    Raises OSError, with the path in it.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)  # another rank may be at it
        keep_entries(path.parent)


def move_into(folder: Path, paths: Iterable[Path]) -> None:
    """Move files and folders of the same file system into `folder`, which is made. Raises OSError with the path."""
    make_folder(folder)
    for path in paths:
        path.rename(folder / path.name)
    keep_entries(folder)


@contextmanager
def whole_file(path: Path) -> Iterator[BufferedIOBase]:
    """A binary stream, which can be read too, whose content is `path`'s once the with statement ends without an error.

    The file has the permissions of any new one (the umask's). What is no file, such as /dev/stdout or a named pipe, is
    written into as the content comes. Raises OSError, with the path in it.
    """
    if _is_no_file(path):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as stream:
            yield stream
        return
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")  # a long name stays possible
    with _naming(path):
        opened = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(opened, "w+b") as file:
            yield file
            with _naming(path):
                file.flush()
                os.fsync(file.fileno())
        with _naming(path):
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    keep_entries(path.parent)


def _is_no_file(path: Path) -> bool:
    """A terminal, a pipe or the like, or a link of the system's to whatever a process has open."""
    if path.parent in _DEVICES:
        return path.exists()
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return S_ISCHR(mode) or S_ISFIFO(mode) or S_ISSOCK(mode)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name the file that was asked for, not the one beside it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def keep_entries(folder: Path) -> None:
    """What a folder lists is on the disk, too, unless its file system cannot do that. Raises OSError."""
    entries = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(entries)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise OSError(error.errno, error.strerror, str(folder)) from None
    finally:
        os.close(entries)
