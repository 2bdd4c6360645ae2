"""A rank ends with the agent of torchrun that started it.

An agent that is killed (SIGKILL, the kernel for want of memory) ends nobody, and its ranks would train on: nobody knows
of them, and they keep the machine. So the kernel sends them SIGTERM then, by which they save and end.

Only where an agent is the parent: whoever starts ranks from a shell, with RANK and WORLD_SIZE of their own or with
nohup, may leave. Of what the shell of `torchrun --no-python` starts, that shell is the parent. Imports nothing heavy,
since it has to happen before an agent can be gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def end_with_agent(environ: Mapping[str, str]) -> None:
    """From now on SIGTERM comes when the parent ends; where it has already, the process ends now."""
    if "TORCHELASTIC_RUN_ID" not in environ or not sys.platform.startswith("linux"):
        return
    end_with_parent()
    if os.getppid() == 1 and not _is_agent(Path("/proc/1/cmdline")):
        os.kill(os.getpid(), signal.SIGTERM)


def end_with_parent() -> None:
    """From now on SIGTERM comes when the parent ends, across an exec too. Linux only."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _is_agent(command: Path) -> bool:
    """Whether process 1 is an agent itself, as in a container, and not what takes in orphans."""
    try:
        return any(agent in command.read_bytes() for agent in (b"torch", b"dtrain.launch"))
    except OSError:
        return True
