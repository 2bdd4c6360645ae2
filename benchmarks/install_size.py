"""What an installation is, extra by extra: megabytes of site-packages and seconds of imports, in empty environments.

    python benchmarks/install_size.py [--torch /PATH/OR/NAME]     # network; some minutes

A wheel of this clone goes into a new environment for each extra, with the versions of constraints.txt. An import is
timed in a process of its own, less what one that imports nothing takes: the median of seven, after one that compiles.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import quartiles, write_result

REPOSITORY = Path(__file__).parents[1]
EXTRAS = ("", "train", "report", "pack", "all", "fast", "cluster", "tensorboard")
IMPORTS = {
    "": ("torch", "dtrain", "dtrain.meter", "dtrain.sync.ddp", "dtrain.cli"),
    "train": ("dtrain.train.entry",),
    "report": ("dtrain.report.page",),
    "pack": ("dtrain.pack",),
    "fast": ("dtrain.compressors.codecs.compiled",),
}
"""What is imported where an extra is there, beside what needs none."""
REPETITIONS = 7


def num_bytes(folder: Path) -> int:
    """Of the files in a folder, compiled ones too."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def import_seconds(python: Path, module: str) -> list[float]:
    """To import a module, less what starting takes, in a process each."""

    def take(program: str) -> float:
        begun = time.perf_counter()
        subprocess.run([str(python), "-c", program], check=True, cwd="/", env=_environ())
        return time.perf_counter() - begun

    take(f"import {module}")
    return [take(f"import {module}") - take("pass") for _ in range(REPETITIONS)]


def _environ() -> dict[str, str]:
    kept = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in kept}


def main() -> None:
    """Install each, look, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="torch==2.13.0", help="what pip is to install as torch")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    parsed = parser.parse_args()
    sizes, rows = dict[str, float](), list[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY)]
        subprocess.run(build, check=True, capture_output=True)
        (wheel,) = folder.glob("*.whl")
        for extra in EXTRAS:
            environment = folder / (extra or "none")
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
            wanted = f"{wheel}[{extra}]" if extra else str(wheel)
            pip = [str(environment / "bin" / "pip"), "install", "--quiet"]
            pip += ["--constraint", str(REPOSITORY / "constraints.txt"), parsed.torch, wanted]
            subprocess.run(pip, check=True, env=_environ())
            packages = next(environment.glob("lib/python*/site-packages"))
            version = next(packages.glob("torch-*.dist-info")).name.removesuffix(".dist-info").removeprefix("torch-")
            sizes[extra] = num_bytes(packages) / 1e6
            more = sizes[extra] - sizes[""]
            print(f"{extra or 'none'}: {sizes[extra]:.0f} MB", flush=True)
            shown = f"`{extra}`" if extra else "none"
            added = f"{more:.0f}" if extra else f"(torch {num_bytes(packages / 'torch') / 1e6:.0f})"
            found = []
            for module in IMPORTS.get(extra, ()):
                low, middle, high = quartiles(import_seconds(environment / "bin" / "python", module))
                found.append(f"`{module}` {middle:.2f} ({low:.2f} to {high:.2f})")
                print(f"  {found[-1]}", flush=True)
            rows.append(f"| {shown} | {sizes[extra]:.0f} | {added} | {', '.join(found)} |")
    body = "\n".join(
        [
            "Megabytes are of all files of site-packages, pip and what is compiled among them. Imports: seconds of a "
            f"fresh process, median of {REPETITIONS} and quartiles. torch is {version}.",
            "",
            "| extra | MB | more than none | imports |",
            "|---|---|---|---|",
            *rows,
        ]
    )
    print(write_result("install_size", parsed.hardware, "Sizes and imports of an installation", body))


if __name__ == "__main__":
    main()
