"""The rows of the SqueezeNet paper's table 2 on CIFAR-10: networks trained here, compressed, retrained, and packed.

    python benchmarks/table2.py squeezenet --root CIFAR --seeds 0 1      # a tree of class folders
    python benchmarks/table2.py alexnet --root CIFAR
    python benchmarks/table2.py squeezenet alexnet --only-done --hardware cpu2     # the result file, of what is there

Each row is a training run of its own that starts from an earlier row's weights; runs stay in --runs, and those that
are there already are not run again. A dense run that was trained elsewhere counts if it lies, or is linked, in its
place: RUNS/<network>/seed<s>/dense. Sizes are of packed files, accuracies of the test set with what they unpack to.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import commit, write_result

from dtrain.pack import from_bytes, pack, read_safetensors, to_bytes, unpack, write_safetensors
from dtrain.train.evaluate import evaluate
from dtrain.vision import models

COMMIT, SIZES = "commit.txt", "table2.json"


@dataclass(frozen=True)
class Row:
    """A run: `start` is the row whose weights it starts from, `settings` its overrides.

    Without settings there is no run: the weights of `start` are packed by `preset`. `paper`: the ratio and accuracies
    (ImageNet, top-1 and top-5) that table 2 has, where it has the row. A row that is not `packed` counts with the bytes
    of its fp32 tensors.
    """

    label: str
    start: str | None = None
    settings: tuple[str, ...] = ()
    preset: str = "lossless"
    paper: str = ""
    packed: bool = True


@dataclass(frozen=True)
class Network:
    """How one network is trained, and its rows by name of their folders; the first row is the yardstick.

    With few `ranks`, each has more threads: on few cores that is what is fast for AlexNet, whose step on one core is
    mostly its 57 million parameters and not its images.
    """

    ranks: int
    settings: tuple[str, ...]
    rows: Mapping[str, Row]


DATA = (
    "experiment=cifar10",
    "data=image_folder",
    "data.augment=false",
    "data.mean=[0.4914,0.4822,0.4465]",
    "data.std=[0.247,0.2435,0.2616]",
    "eval_every_epochs=0",
    "num_epochs=null",
)


def phase(name: str, epochs: int, learning_rate: float, *settings: str) -> tuple[str, ...]:
    """Overrides that add a phase to a run."""
    inside = ",".join((f"num_epochs:{epochs}", f"learning_rate:{learning_rate}", *settings))
    return (f"+phases.{name}={{{inside}}}",)


SQUEEZENET = Network(
    ranks=2,
    settings=("model=squeezenet1_1", "data.image_size=32", "batch_size=32"),
    rows={
        "dense": Row("SqueezeNet, fp32", settings=phase("dense", 8, 1), paper="50x, 57.5/80.3", packed=False),
        "pruned": Row("pruned to 33%", "dense", phase("prune", 4, 1, "density:0.33")),
        "8bit": Row(
            "Deep Compression, 8 bits", "pruned", phase("share", 1, 0.1, "bits:8"), paper="363x, 57.5/80.3"
        ),
        "6bit": Row(
            "Deep Compression, 6 bits", "pruned", phase("share", 1, 0.1, "bits:6"), paper="510x, 57.5/80.3"
        ),
        "longer": Row("fp32, trained on as long as pruned", "dense", phase("more", 4, 1), packed=False),
    },
)  # fmt: skip


def by_weight(values: Mapping[str, float]) -> str:
    """Values by AlexNet's layer as a Hydra dictionary by the names that its weights have here."""
    with torch.device("meta"):
        network = models.build("alexnet", num_classes=10)
    assert isinstance(network, models.AlexNet)
    return "{" + ",".join(f"{network.caffe_layers[name]}.weight:{value}" for name, value in values.items()) + "}"


HAN_DENSITIES = {
    "conv1": 0.84, "conv2": 0.38, "conv3": 0.35, "conv4": 0.37, "conv5": 0.37, "fc6": 0.09, "fc7": 0.09, "fc8": 0.25
}  # fmt: skip
"""Of Han et al. 2015 (arXiv 1506.02626), table 4, on which the paper's rows stand: 11% of AlexNet's weights."""
FULLY_CONNECTED_BITS = {"fc6": 5, "fc7": 5, "fc8": 5}
"""Deep Compression's for AlexNet; its convolutions have 8."""

ALEXNET = Network(
    ranks=1,
    settings=("model=alexnet", "data.image_size=40", "batch_size=128", "optimizer.learning_rate=0.01", "amp=true"),
    rows={
        "dense": Row("AlexNet, fp32", settings=phase("dense", 6, 1), paper="1x, 57.2/80.3", packed=False),
        "svd": Row("SVD, 95% of the energy, not retrained", "dense", preset="svd"),
        "svd_retrained": Row(
            "SVD, 30% of the energy, retrained", "dense", phase("svd", 1, 0.5, "energy:0.3"), paper="5x, 56.0/79.4"
        ),
        "pruned": Row(
            "pruned to Han's densities", "dense", phase("prune", 3, 0.5, f"densities:{by_weight(HAN_DENSITIES)}"),
            paper="9x, 57.2/80.3",
        ),
        "deep_compression": Row(
            "Deep Compression, 8 and 5 bits", "pruned",
            phase("share", 1, 0.1, "bits:8", f"bits_of:{by_weight(FULLY_CONNECTED_BITS)}"), paper="35x, 57.2/80.3",
        ),
        "longer": Row("fp32, trained on as long as pruned", "dense", phase("more", 3, 0.5), packed=False),
    },
)  # fmt: skip
NETWORKS = {"alexnet": ALEXNET, "squeezenet": SQUEEZENET}


def train(network: Network, row: Row, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """Run the row; `folder` then holds a complete run."""
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    run_dir = folder / name_of(network, row)
    command = [torchrun, "--standalone", f"--nproc-per-node={network.ranks}", "-m", "dtrain.train", *DATA]
    command += [*network.settings, *row.settings, f"seed={seed}", f"run_dir={run_dir}", "overwrite=true"]
    command += [f"data.root={options.root}", *options.override]
    if row.start:
        command.append(f"init_weights={folder / row.start / 'model.safetensors'}")
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    (run_dir / COMMIT).write_text(commit() + "\n")


def name_of(network: Network, row: Row) -> str:
    return next(name for name, other in network.rows.items() if other is row)


def is_done(run_dir: Path) -> bool:
    """Whether there is a complete run."""
    summary = run_dir / "summary.json"
    return summary.is_file() and bool(json.loads(summary.read_text())["complete"])


def measured(network: Network, row: Row, folder: Path, root: Path) -> dict[str, float]:
    """Bytes and accuracy of the row's packed model, measured now or before; and what its last step exchanged."""
    own = folder / name_of(network, row)
    source = (folder / row.start if row.start and not row.settings else own) / "model.safetensors"
    kept = own / SIZES
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    own.mkdir(exist_ok=True)
    model = read_safetensors(source)
    size, scored_file = model.num_bytes, source
    if row.packed:
        done = own / "model.dtz"  # which a run leaves
        packed = done.read_bytes() if done.is_file() else to_bytes(pack(model, row.preset))
        size, scored_file = len(packed), own / "unpacked.safetensors"
        write_safetensors(unpack(from_bytes(packed)), scored_file)
    scored = evaluate(scored_file, name=None, root=root, image_size=None, split="test", batch_size=100)
    if row.packed:
        scored_file.unlink()
    figures = {"fp32_bytes": model.num_bytes, "bytes": size, "accuracy": scored["accuracy"]}
    if row.settings:
        summary = json.loads((own / "summary.json").read_text())
        last = summary["phases"][-1] if summary.get("phases") else summary
        figures["payload_bytes_per_step"] = last["payload_bytes_per_step"]
    kept.write_text(json.dumps(figures) + "\n")
    return figures


def lines(name: str, network: Network, options: argparse.Namespace) -> Iterator[str]:
    """A table row for each row that has a run; sizes against fp32 are the network's own and AlexNet's."""
    base: dict[int, float] = {}
    own_bytes = 0.0  # of its dense network in fp32
    for key, row in network.rows.items():
        figures: dict[int, dict[str, float]] = {}
        for seed in options.seeds:
            folder = options.runs / name / f"seed{seed}"
            own = folder / key
            if row.settings and not is_done(own):
                if options.only_done or (row.start and not is_done(folder / row.start)):
                    continue
                train(network, row, seed, folder, options)
            if not row.settings and not is_done(folder / str(row.start)):
                continue
            figures[seed] = measured(network, row, folder, options.root)
            print(f"{name} {key} seed {seed}: {figures[seed]}", flush=True)
        if not figures:
            continue
        accuracies = {seed: 100 * figure["accuracy"] for seed, figure in figures.items()}
        base = base or accuracies
        own_bytes = own_bytes or next(iter(figures.values()))["fp32_bytes"]
        differences = [accuracies[seed] - base[seed] for seed in figures if seed in base]
        some = next(iter(figures.values()))
        size = statistics.mean(figure["bytes"] for figure in figures.values())
        payload = some.get("payload_bytes_per_step")
        yield (
            f"| {row.label} | {size:,.0f} | {own_bytes / size:.1f}x | {alexnet_bytes() / size:.1f}x "
            f"| {statistics.mean(accuracies.values()):.2f} | {', '.join(f'{a:.2f}' for a in accuracies.values())} "
            f"| {statistics.mean(differences):+.2f} | {'' if payload is None else f'{payload:,.0f}'} | {row.paper} |"
        )


def alexnet_bytes() -> int:
    """Of AlexNet with 10 classes, in fp32."""
    with torch.device("meta"):
        return 4 * sum(p.numel() for p in models.build("alexnet", num_classes=10).parameters())


def commits(runs: Path) -> str:
    """Of all the runs in a folder."""
    return ", ".join(sorted({path.read_text().strip() for path in runs.glob(f"*/*/*/{COMMIT}")})) or "not recorded"


HEADER = (
    "| row | bytes | against its own fp32 | against AlexNet's | accuracy, %, mean | by seed "
    "| against its dense run, points | bytes handed over a step "
    "| the paper's, against AlexNet (ImageNet) |\n|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--root", type=Path, required=True, help="a folder with train/<class>/ and test/<class>/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/table2"))
    parser.add_argument("--override", nargs="*", default=[], help="settings of all runs, for trying this out")
    parser.add_argument("--only-done", action="store_true", help="report the runs that are there, and run none")
    parser.add_argument("--hardware", help="the machine's name in the result file; without it, none is written")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the ranks: the result file states it
    rows = [line for name in options.networks for line in lines(name, NETWORKS[name], options)]
    settings = "; ".join(
        f"{name}, ranks: {NETWORKS[name].ranks}, `{' '.join(NETWORKS[name].settings)}`" for name in options.networks
    )
    body = (
        f"CIFAR-10, over gloo on one host; all runs: `{' '.join(DATA)}`; {settings}. The bytes of an fp32 row are "
        "those of its tensors, the others' those of model.dtz, everything included. "
        f"Commits of the runs: {commits(options.runs)}.\n\n"
        + "\n".join([HEADER, *rows])
    )  # fmt: skip
    print(body)
    if options.hardware:
        title = "Table 2 of the SqueezeNet paper, on CIFAR-10"
        print(write_result("table2_cifar10", options.hardware, title, body))


if __name__ == "__main__":
    main()
