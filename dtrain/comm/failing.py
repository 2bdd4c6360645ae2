"""How workers end that fail: each fault is said once."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from dtrain.comm.launcher import Launch
from dtrain.files import write_whole

QUIET_SECONDS = 10.0
"""How long a rank that is not the first to speak of a failure keeps quiet."""


def fail_together(launch: Launch, failure: str, *, has_spoken: bool) -> bool:
    """Before a worker ends for `failure`: whether it is this worker's to say, since no lower rank ends for the same.

    One that has not spoken waits a little: if another has, a launcher such as torchrun ends it meanwhile.
    """
    if has_spoken:
        _tell_torchrun(failure)
    if launch.launcher == "mpirun":
        from dtrain.comm import mpi

        return all(said != failure for rank, said in mpi.fail_together(failure).items() if rank < launch.rank)
    if not has_spoken:
        time.sleep(QUIET_SECONDS)
        _tell_torchrun(failure)
    return True


def _tell_torchrun(failure: str) -> None:
    """What its agent says last, in the place of where to look, and `launch/torchrun.sh` alone."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place:
        said = f"dtrain: error: {failure}"
        extra = {"py_callstack": said, "timestamp": str(int(time.time()))}  # as torch has it: what is shown, and when
        with suppress(OSError):
            write_whole(Path(place), json.dumps({"message": {"message": said, "extraInfo": extra}}))
