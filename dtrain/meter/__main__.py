"""`python -m dtrain.meter [OPTION ...] SCRIPT ARGS`: run any program, and report what it sent, at its end or meanwhile.

torchrun --nproc-per-node=4 -m dtrain.meter train.py --epochs 3
"""

from __future__ import annotations

import argparse
import atexit
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from dtrain.arguments import MISTAKE, Parser, check_name, say_error
from dtrain.meter import script
from dtrain.meter.live import parse_interval
from dtrain.meter.nic import read_counters
from dtrain.meter.program_meter import Asked, ProgramMeter
from dtrain.meter.trace import MAX_STEPS


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m dtrain.meter",
        usage="%(prog)s [--json PATH] [--nic INTERFACE] [--every TIME] [--steps N [--trace PATH]]\n"
        "                              (SCRIPT | -m MODULE) [ARGUMENT ...]",
        description="Run a torch.distributed program as it is, under any launcher that sets RANK, WORLD_SIZE, "
        "MASTER_ADDR and MASTER_PORT, and report on standard error what it sent.",
        epilog="The exit code is the program's; 2 for a mistake in this command.",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures of all ranks as JSON (rank 0)")
    parser.add_argument("--nic", metavar="INTERFACE", help="show what the kernel counted on this interface, too")
    parser.add_argument("--every", metavar="TIME", help="say so often what was sent so far: 30s, 5m, 1h")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="report after N steps of the optimizer; the program goes on, unmetered"
    )
    parser.add_argument("--trace", type=Path, metavar="PATH", help="write the collectives of these steps (rank 0)")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module, as python -m does")
    parser.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT", help="a Python file, and its arguments")
    parsed = parser.parse_args(arguments)
    parsed.command = parsed.module or parsed.script
    if not parsed.command:
        parser.error("a script is missing, or -m and a module")
    return parsed


def _asked(parsed: argparse.Namespace) -> Asked:
    """Raises ValueError for what cannot be done."""
    if parsed.nic is not None:
        check_name("--nic ", parsed.nic, read_counters())
    if parsed.steps is not None and parsed.steps < 1:
        raise ValueError(f"--steps {parsed.steps}: give a number of steps from 1 on")
    if parsed.trace is not None and not 1 <= (parsed.steps or 0) <= MAX_STEPS:
        raise ValueError(f"--trace takes --steps N as well, from 1 to {MAX_STEPS:,}: 20 are enough as a rule")
    every = None if parsed.every is None else parse_interval(parsed.every)
    return Asked(parsed.command, parsed.json, parsed.nic, every, parsed.steps, parsed.trace)


def _advise(trace: Path) -> str:
    """This command stands above the meter, which knows nothing of plans."""
    from dtrain.plan.advice import advise

    return advise(trace)


def main() -> int:
    """Run the program. Returns 2 for a mistake; otherwise the program ends the process as it would alone."""
    try:
        arguments = _parse(sys.argv[1:])
        if not dist.is_available():
            raise ValueError("this torch was built without torch.distributed: there is nothing to meter")
        asked = _asked(arguments)
        find = script.find_module if arguments.module else script.find_script
        program = find(arguments.command[0], arguments.command[1:])
        meter = ProgramMeter(asked, _advise)
    except (ValueError, OSError) as error:
        say_error(error)
        return MISTAKE
    atexit.register(meter.finish)  # first, and so called last
    try:
        script.run(program)
    except BaseException as error:
        meter.error = error
        raise
    return 0


if __name__ == "__main__":
    code = main()
    if code:
        sys.exit(code)
