"""How workers end that fail: each fault is said once."""

from __future__ import annotations

import time

from dtrain.comm.launcher import Launch

QUIET_SECONDS = 10.0
"""How long a rank that is not the first to speak of a failure keeps quiet."""


def fail_together(launch: Launch, failure: str, *, has_spoken: bool) -> bool:
    """Before a worker ends for `failure`: whether it is this worker's to say, since no lower rank ends for the same.

    One that has not spoken waits a little: if another has, a launcher such as torchrun ends it meanwhile.
    """
    if launch.launcher == "mpirun":
        from dtrain.comm import mpi

        return all(said != failure for rank, said in mpi.fail_together(failure).items() if rank < launch.rank)
    if not has_spoken:
        time.sleep(QUIET_SECONDS)
    return True
