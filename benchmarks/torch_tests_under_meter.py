"""torch's own distributed tests, plain and metered: which pass without the meter and fail with it?

    TORCH_TESTS=pytorch/test python benchmarks/torch_tests_under_meter.py [-k WORDS] [--write] FILE ...

TORCH_TESTS is the folder `test` of a checkout of pytorch, and files are below it: distributed/test_c10d_gloo.py. The
checkout should be of the release that is installed; what that does not have fails both ways. Needs pytest-timeout, and
expecttest, which torch's tests import.

Each file runs twice in pytest. Metered, every process that imports torch's test classes has `dtrain.meter.install()`
called, ranks that a test starts included. In both, ranks are forked from a server, where torch would start each anew. A
test whose two outcomes differ runs again, twice in each way, to tell one that fails now and then from one that the
meter fails.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from harness import write_result

TEST_SECONDS = 150
"""For one test; torch's own limit for tests of several processes is 300."""
FILE_SECONDS = 5400
KINDS = {"error": "error", "failure": "failed", "skipped": "skipped"}
"""What a test came to, by what its report has in it."""
NOT_REACHED = "not reached"
"""An earlier test of the file killed the interpreter."""

SITECUSTOMIZE = """
import multiprocessing, os, sys

get_context = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: get_context("forkserver" if method == "spawn" else method)
multiprocessing.set_forkserver_preload(["torch.testing._internal.common_distributed"])


def meter():
    import atexit, json
    from multiprocessing import util

    import dtrain.meter

    ledger, forked = dtrain.meter.install(), []

    def write():
        line = {"counted": ledger.total().count, "uncounted": sum(ledger.uncounted.values())}
        with open(os.environ["METERED"], "a") as file:
            print(json.dumps(line), file=file)

    atexit.register(lambda: forked or write())
    util.register_after_fork(ledger, lambda _: forked.append(util.Finalize(None, write, exitpriority=0)))


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.testing._internal.common_utils":
            sys.meta_path.remove(self)
            meter()


if "METERED" in os.environ:
    sys.meta_path.insert(0, Finder())
"""
"""Python imports it as it starts. Ranks are forked from a server that has torch, which takes seconds to import."""


def run(tests: Path, file: str, selection: Sequence[str], metered: Path | None) -> tuple[dict[str, str], float]:
    """The outcome of each test of a file, and the seconds that all took; `metered` is where counts go."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        Path(folder, "sitecustomize.py").write_text(SITECUSTOMIZE)
        path = [folder, str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "TEMP_DIR": folder, "GLOO_SOCKET_IFNAME": "lo"}
        environ |= {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        if metered is not None:
            environ |= {"METERED": str(metered)}
        options = ["-q", "--noconftest", f"--timeout={TEST_SECONDS}", f"--junitxml={report}", f"--rootdir={tests}"]
        options += ["-p", "no:cacheprovider", "-c", os.devnull]
        command = [sys.executable, "-m", "pytest", *options, str(tests / file), *selection]
        start = time.monotonic()
        with Path(folder, "output.txt").open("w") as output:
            process = subprocess.Popen(
                command, cwd=tests, env=environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                process.wait(FILE_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"{file}: not done after {FILE_SECONDS} s", file=sys.stderr)
            finally:
                _end(process)
        outcomes = outcomes_in(report) if report.exists() else {}
        if not outcomes:
            print(Path(folder, "output.txt").read_text(errors="replace")[-500:], file=sys.stderr)
        return outcomes, time.monotonic() - start


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process, and what of its session it left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def outcomes_in(report: Path) -> dict[str, str]:
    """passed, failed, error or skipped for each test, by class and name."""
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        found = {child.tag for child in case}
        outcome = next((kind for tag, kind in KINDS.items() if tag in found), "passed")
        outcomes[f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"] = outcome
    return outcomes


def compared(tests: Path, file: str, selection: Sequence[str], metered: Path) -> tuple[str, list[str]]:
    """A row of the table for one file, and one for each test whose outcomes differ."""
    plain, plain_seconds = run(tests, file, selection, None)
    with_meter, metered_seconds = run(tests, file, selection, metered)
    names = sorted({*plain, *with_meter})
    differing = [name for name in names if plain.get(name, NOT_REACHED) != with_meter.get(name, NOT_REACHED)]
    rows = []
    for name in differing:
        rows.append(
            _again(tests, file, name, [plain.get(name, NOT_REACHED), with_meter.get(name, NOT_REACHED)], metered)
        )
    row = (
        f"| {file} | {len(names)} | {_counts(plain)} | {_counts(with_meter)} | {len(differing)} "
        f"| {plain_seconds:.0f} / {metered_seconds:.0f} |"
    )
    print(row, *rows, sep="\n", flush=True)
    return row, rows


def _again(tests: Path, file: str, name: str, first: Sequence[str], metered: Path) -> str:
    """What a test gives when it runs alone, twice in each way."""
    alone = ["-k", name.rpartition("::")[2].partition("[")[0]]
    plain, with_meter = [first[0]], [first[1]]
    for _ in range(2):
        plain.append(run(tests, file, alone, None)[0].get(name, NOT_REACHED))
        with_meter.append(run(tests, file, alone, metered)[0].get(name, NOT_REACHED))
    return f"| {file} {name} | {', '.join(plain)} | {', '.join(with_meter)} |"


def _counts(outcomes: Mapping[str, str]) -> str:
    counts = Counter(outcomes.values())
    return " / ".join(str(counts[kind]) for kind in ("passed", "failed", "error", "skipped"))


def counts_in(metered: Path) -> str:
    """What the processes that were metered counted."""
    lines = [json.loads(line) for line in metered.read_text().splitlines()] if metered.exists() else []
    counted, uncounted = (sum(line[key] for line in lines) for key in ("counted", "uncounted"))
    return f"{len(lines):,} processes were metered to their end: {counted:,} collectives counted, {uncounted:,} not."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="below TORCH_TESTS")
    parser.add_argument("-k", metavar="WORDS", help="only tests that pytest -k selects")
    parser.add_argument("--write", action="store_true", help="write the result file")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    tests = Path(os.environ.get("TORCH_TESTS", ""))
    absent = [file for file in arguments.files if not (tests / file).is_file()]
    if "TORCH_TESTS" not in os.environ or absent:
        parser.error(f"TORCH_TESTS must be the folder `test` of a checkout of pytorch, with {', '.join(absent)} in it")
    selection = ["-k", arguments.k] if arguments.k else []
    with tempfile.TemporaryDirectory() as folder:
        metered = Path(folder, "metered.jsonl")
        results = [compared(tests.resolve(), file, selection, metered) for file in arguments.files]
        counts = counts_in(metered)
    differing = [row for _, rows in results for row in rows]
    table = [
        "| file | tests | plain: passed / failed / error / skipped | metered | differ | seconds, plain / metered |",
        "|---|---|---|---|---|---|",
        *(row for row, _ in results),
    ]
    if differing:
        table += [
            "",
            "| differing test: in the file, then alone twice | plain | metered |",
            "|---|---|---|",
            *differing,
        ]
    body = "\n".join([counts, "", *table])
    print(body)
    if arguments.write:
        write_result("torch_tests_under_meter", arguments.hardware, "torch's own tests, plain and metered", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
