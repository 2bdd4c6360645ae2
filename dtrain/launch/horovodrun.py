"""horovodrun, but when a worker fails, the end is one line that names its rank and host, and the exit code is its own.

Horovod's launcher ends the other workers in that case, and then itself with a traceback.
"""

import re
import sys

from dtrain.arguments import ending


def main() -> int:
    from horovod.runner import launch

    try:
        launch.run_commandline()
    except RuntimeError as error:
        failed = re.search(r"Process name: (\d+)\s+Exit code: (\d+)", str(error))
        if failed is None:
            print(f"dtrain launch: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
        rank, code = int(failed[1]), int(failed[2])
        how = f"was killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
        print(f"dtrain launch: rank {rank} on {_host(rank)} {how}, so the others were ended", file=sys.stderr)
        return code
    return 0


def _host(rank: int) -> str:
    from horovod.runner import launch
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts

    arguments = launch.parse_args()
    hosts = parse_hosts(arguments.hosts or f"localhost:{arguments.num_proc}")
    host: str = get_host_assignments(hosts, arguments.num_proc)[rank].hostname
    return host


if __name__ == "__main__":
    with ending("dtrain launch"):
        sys.exit(main())
