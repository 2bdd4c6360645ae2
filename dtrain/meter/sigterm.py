"""A last word before SIGTERM ends the process, which it then does as it would.

Python runs handlers of signals in its main thread, and only when that gets there: not while it waits in a collective
for a rank that is gone, which is when jobs are ended. So a thread waits for the signal, has the word said, and ends the
process with the signal's own action, whatever the main thread is doing. (`signal.set_wakeup_fd` tells it: the kernel's
signal writes a byte at once.)
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

SECONDS = 5.0
"""How long the last word may take; launchers send SIGKILL after 10 to 30 s."""
_COLLECT_SECONDS = 1.0
_OVER = 0


class LastWord:
    """Has `say` called when SIGTERM comes, until `leave`. To be made in the main thread.

    `say` is called on a thread of its own, and given what to call once it needs nothing more of the program's state:
    up to then the main thread may hold a lock that it waits for.

    A handler that was there before is called afterwards, in the main thread. One that the program installs later takes
    the place of this one, and SIGTERM is the program's affair. A process that ignores SIGTERM goes on to do so. A
    forked child has what was there before.
    """

    def __init__(self, say: Callable[[Callable[[], None]], None]) -> None:
        self._say = say
        self._before = signal.getsignal(signal.SIGTERM)
        self._handler = self._handle  # one object, to be told from others
        self._collected, self._said, self._never = threading.Event(), threading.Event(), threading.Event()
        self._active = self._before is signal.SIG_DFL or callable(self._before)
        if not self._active:
            return
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._forget)
        signal.signal(signal.SIGTERM, self._handler)
        self._thread = threading.Thread(target=self._wait, name="dtrain-sigterm", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Let SIGTERM do what it did before. To be called in the main thread."""
        if self._active:
            self._forget()
            os.write(self._write_end, bytes([_OVER]))
            self._thread.join(1.0)

    def _forget(self) -> None:
        if not self._active:
            return
        self._active = False
        if signal.getsignal(signal.SIGTERM) is self._handler:
            signal.signal(signal.SIGTERM, self._before)
        present = signal.set_wakeup_fd(self._wakeup_before)
        if present != self._write_end:  # of the program's own
            signal.set_wakeup_fd(present)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGTERM) is not self._handler:
            return  # a handler of the program's calls the one before it, as if that did anything by itself
        os.write(self._write_end, bytes([number]))  # the program may have taken the wake-up for itself
        if not self._collected.wait(_COLLECT_SECONDS):
            return  # this may be within a lock of the ledger's
        if callable(self._before):
            self._said.wait(SECONDS)
            self._before(number, frame)
        else:
            self._never.wait()

    def _wait(self) -> None:
        while True:
            came = os.read(self._read_end, 64)
            if signal.SIGTERM in came and signal.getsignal(signal.SIGTERM) is self._handler:
                word = threading.Thread(target=self._say, args=(self._collected.set,), daemon=True)
                word.start()
                word.join(SECONDS)
                if not callable(self._before):
                    _end_by_sigterm()
                self._said.set()
            if _OVER in came:
                return


def _end_by_sigterm() -> None:
    """From any thread, which signal.signal refuses."""
    ctypes.CDLL(None).signal(int(signal.SIGTERM), None)
    os.kill(os.getpid(), signal.SIGTERM)
