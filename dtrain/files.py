"""A file appears whole or not at all: the one way in which dtrain writes a file that somebody may read meanwhile.

What is written goes into a file beside the target, under a name that nothing else has, is on the disk before it takes
the target's place, and takes it by a rename. So whoever opens the target, at any time and after any kill or loss of
power, finds the version before or the version after. A process that is killed while it writes leaves its
`.NAME.XXXXXXXX.partial` behind.

A symbolic link is never written through. Of one in the target's place, the link is replaced and what it leads to stays
as it is: a rename does so, whoever holds the linked file keeps their version, and nobody who can put a link into a
folder can choose which file we write. Links to folders on the way are followed, so that a run's folder may be one.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from stat import S_ISCHR, S_ISFIFO, S_ISSOCK

_DEVICES = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))


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
        _keep_entries(path.parent)


def move_into(folder: Path, paths: Iterable[Path]) -> None:
    """Move files and folders of the same file system into `folder`, which is made. Raises OSError with the path."""
    make_folder(folder)
    for path in paths:
        path.rename(folder / path.name)
    _keep_entries(folder)


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
    _keep_entries(path.parent)


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


def _keep_entries(folder: Path) -> None:
    """What a folder lists is on the disk, too; a file system that cannot do that has said so."""
    entries = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(entries)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise OSError(error.errno, error.strerror, str(folder)) from None
    finally:
        os.close(entries)
