"""JSON that was made to do harm, wherever dtrain reads some that others wrote: runs, traces, manifests, messages."""

from __future__ import annotations

import atexit
import copy
import io
import json
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hostile import Format, change_anywhere, hostile_bytes
from rich.console import Console
from safetensors.torch import save

from dtrain import report
from dtrain.exchange import Op
from dtrain.meter.culprit import find_culprit, read_dumps
from dtrain.meter.job_traffic import JobTraffic, own_figures, read_figures
from dtrain.meter.ledger import Activity, Ledger, Purpose
from dtrain.meter.live import SoFar, line, read_so_far
from dtrain.meter.tally import Tally
from dtrain.meter.trace import Trace, TracedCollective, TracedStep, read_trace
from dtrain.observe.follow import run_now
from dtrain.observe.frame import Frame
from dtrain.observe.top import drawing
from dtrain.plan.calibration import Calibration, Recording, load, this_machine
from dtrain.plan.calibration import save as save_calibration
from dtrain.plan.candidates import FP16, NONE, Candidate
from dtrain.plan.link import Link, read_link
from dtrain.plan.planner import Job, plan
from dtrain.plan.program import Await, Lane, Signal, Start, Work
from dtrain.plan.subject import of_trace
from dtrain.plan.timeline import Host
from dtrain.ship.offer import Blob, Offer
from dtrain.ship.target import read_accepted
from dtrain.train.agreement import check_settings
from dtrain.train.checkpoint import MANIFEST, RANDOM, Digest, Manifest, digest, open_checkpoint, write_manifest
from dtrain.train.evaluate import described
from dtrain.train.model_files import FORMAT, load_model
from dtrain.vision import models

torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # the first imports much, which is no input's fault


@cache
def folder() -> Path:
    """Where inputs lie while they are read: in memory, where there is such a place."""
    shared = Path("/dev/shm")
    made = tempfile.TemporaryDirectory(prefix="dtrain-fuzz-", dir=shared if shared.is_dir() else None)
    atexit.register(made.cleanup)
    return Path(made.name)


def formats() -> dict[str, Format]:
    """By name."""
    run = _run(folder() / "run")
    return {
        "run's summary": _json(_summary(), _in_file(run / "summary.json", _compared)),
        "run's metrics": _lines(_metrics(), _in_file(run / "metrics.jsonl", _compared)),
        "run as it goes": _lines(_ledger(), _in_file(run / "ledger" / "rank0.jsonl", _watched)),
        "trace": _json(_trace().as_json(), _in_file(folder() / "run.json", _planned_for)),
        "dump of collectives": _json(_dump(), _in_file(folder() / "collectives-rank0.json", _explained)),
        "torch's flight recorder": _json(_recorded(), _in_file(folder() / "torch_rank_0.json", _explained_of_torch)),
        "calibration": _json(_calibration(), _in_file(folder() / "calibration.json", _planned)),
        "link": _json({"link": vars(Link(1e9))}, _in_file(folder() / "link.json", _linked)),
        "manifest": _json(_manifest(), _in_file(folder() / MANIFEST, _resumed)),
        "checkpoint": Format(lambda rng: _hostile_model(rng, _sound_rank()), _checkpoint),
        "model": Format(
            lambda rng: _hostile_model(rng, _sound_model()), _in_file(folder() / "model.safetensors", _loaded)
        ),
        "offer": _json(json.loads(Offer(".dtz", Blob.of(b"x"), Blob.of(b"y"), 7).to_json()), _offered),
        "accepted version": _json(
            {"version": 3, "sha256": Blob.of(b"x").sha256},
            _in_file(folder() / "m.dtz.version", lambda _: read_accepted(folder() / "m.dtz")),
        ),
        "figures of a rank": _json(json.loads(_figures()), _shown),
        "line of a rank": _json(vars(SoFar(1.0, 2, 3, 4.0, {"gradient": 4.0})), _said),
        "settings of a rank": _json({"model.name": "alexnet", "seed": 0, "facts": [1, 2.5, None]}, _agreed),
    }


def _json(sound: Any, read: Callable[[bytes], object]) -> Format:
    return Format(lambda rng: hostile_json(rng, sound), read)


def hostile_json(rng: random.Random, sound: Any) -> bytes:
    """Other values in it, or other bytes of its text."""
    changed = copy.deepcopy(sound)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        if isinstance(changed, dict | list):
            change_anywhere(rng, changed)
    text = json.dumps(changed).encode()
    match rng.randrange(12):
        case 0:
            return hostile_bytes(rng, text)
        case 1:
            return text.replace(b"1", b"1" * rng.choice((30, 400, 5000)), 1)
        case 2:
            return text.replace(
                rng.choice((b"1", b"0")), rng.choice((b"1e999", b"NaN", b"-Infinity", b"1e308", b"-0.0"))
            )
        case 3:
            deep = rng.choice((10, 1000, 100_000))
            return text.replace(b"1", b"[" * deep + b"]" * rng.choice((deep, 0)), 1)
        case 4:
            return text[:-1] + b"," + text[1:]  # every key twice
    return text


def _lines(sound: list[Any], read: Callable[[bytes], object]) -> Format:
    def hostile(rng: random.Random) -> bytes:
        lines = [json.dumps(one).encode() for one in sound]
        one = rng.randrange(len(lines))
        lines[one] = hostile_json(rng, sound[one])
        text = b"\n".join(lines) + b"\n" * rng.randrange(2)
        return hostile_bytes(rng, text) if rng.random() < 0.1 else text

    return Format(hostile, read)


def _in_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """The reader of a file, which leaves another's content as it was."""
    before = path.read_bytes() if path.exists() else None

    def put_and_read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read(path)
        finally:
            if before is not None:
                path.write_bytes(before)

    return put_and_read


# runs


def _summary() -> dict[str, Any]:
    sent = {"payload_bytes_per_step": 4000, "wire_bytes_per_step": 4000.5, "nic_bytes_per_step": None}
    times = {f"{name}_seconds_median": 0.1 for name in ("step", "exposed_comm", "codec", "transfer", "straggler_wait")}
    facts = {"run": "a", "model": "squeezenet1_1", "variant": "paper", "data": "digits", "backend": "gloo"}
    counts = {"num_parameters": 1000, "num_classes": 10, "image_size": 32, "world_size": 2, "num_steps": 10}
    rest = {"num_rounds": 10, "batch_size_per_rank": 32, "grad_bytes": 4000, "seed": 0, "compressor": "none"}
    results = {"accuracy": 0.9, "loss": 0.1, "saving_vs_fp32": 1.0, "saving_vs_fp16": 0.5, "images_per_second": 9.0}
    whole = {"init_wire_bytes": 4000, "total_wire_bytes_all_ranks": 90_000, "packed_bytes": 7, "complete": True}
    phase = {"name": "prune", "steps": 3, "exchanged_values": 9, "accuracy": 0.5, **sent}
    tables = {"wire_bytes_by_phase_and_purpose": {"train/gradient": 9.0}, "versions": {"torch": "2"}, "phases": [phase]}
    late = {"rank": 1, "host": "b", "share_of_wait": 0.9, "share_of_step": 0.1}
    return {"schema": 1, **facts, **counts, **rest, **sent, **times, **results, **whole, **tables, "stragglers": [late]}


def _metrics() -> list[dict[str, Any]]:
    common = {"loss": 0.5, "accuracy": 0.5, "wire_bytes": 100, "total_wire_bytes_all_ranks": 200}
    return [{"kind": kind, "step": step, **common} for step in (1, 2) for kind in ("train", "eval")]


def _ledger() -> list[dict[str, Any]]:
    entry = {"op": "all_reduce", "phase": "train", "purpose": "gradient", "wire_bytes": 100.0}
    return [{"step": n, "times": {"step": 0.1, "exposed_comm": 0.01}, "entries": [entry]} for n in range(3)]


def _run(at: Path) -> Path:
    (at / "ledger").mkdir(parents=True, exist_ok=True)
    (at / "summary.json").write_text(json.dumps(_summary()))
    (at / "metrics.jsonl").write_text("\n".join(map(json.dumps, _metrics())))
    (at / "environment.json").write_text('{"host": "h", "launch": {"world_size": 2, "local_world_size": 2}}')
    (at / "ledger" / "rank0.jsonl").write_text("\n".join(map(json.dumps, _ledger())))
    return at


def _to_text(renderable: Any) -> None:
    Console(file=io.StringIO(), width=100).print(renderable)


def _compared(path: Path) -> None:
    """Not as a page or by claims, which take matplotlib and a network a second."""
    runs = report.load_runs([path.parent])
    _to_text(report.compare_table(runs))
    json.dumps(report.compare_data(runs), allow_nan=False)


def _watched(path: Path) -> None:
    _to_text(drawing(Frame([run_now(path.parents[1])], [])))


# traces, dumps, plans


def _trace() -> Trace:
    one = TracedCollective(Op.ALL_REDUCE, 4000, "float32", 2, 0.01, 0.02, Purpose.GRADIENT)
    steps = tuple(TracedStep(0.1, (one, one)) for _ in range(3))
    return Trace(2, "gloo", "cpu", 1, 2, 2, ((1024, "float32"), (10, "float32")), "SGD", 0.9, None, steps)


def _planned_for(path: Path) -> None:
    read_trace(path)
    of_trace(path)


def _dump() -> dict[str, Any]:
    one = {"group": "0", "op": "all_reduce", "purpose": "gradient", "payload_bytes": 9, "started": 1.0, "ended": True}
    collectives = [{**one, "number": number} for number in (1, 2)]
    return {
        "schema": 1,
        "rank": 0,
        "world_size": 3,
        "host": "h",
        "error": None,
        "groups": {"0": [0, 1, 2]},
        "collectives": collectives,
    }


def _explained(path: Path) -> None:
    other = folder() / "collectives-rank1.json"
    if not other.exists():
        other.write_text(json.dumps(_dump() | {"rank": 1, "collectives": _dump()["collectives"][:1]}))
    json.dumps(find_culprit(read_dumps([path, other])).as_json())


def _recorded() -> dict[str, Any]:
    one = {
        "collective_seq_id": 1,
        "input_dtypes": ["Float", "Half"],
        "input_sizes": [[3, 4], []],
        "is_p2p": False,
        "process_group": ["1", "undefined"],
        "profiling_name": "nccl:all_reduce",
        "retired": False,
        "state": "started",
        "time_created_ns": 1_795_953_737_335_885_206,
    }
    return {
        "entries": [{**one, "process_group": ["0", "default_pg"], "state": "completed"}, one],
        "pg_config": {"0": {"ranks": "[0, 1]"}, "1": {"ranks": "[0, 1]"}},
        "version": "2.10",
    }


def _explained_of_torch(path: Path) -> None:
    other = folder() / "torch_rank_1.json"
    if not other.exists():
        other.write_text(json.dumps(_recorded() | {"entries": _recorded()["entries"][:1]}))
    json.dumps(find_culprit(read_dumps([path, other])).as_json())


INT4 = Candidate("int4")


def _calibration() -> Any:
    step: Lane = (Work(0.06), Signal(("ready", 0)), Work(0.03), Await(("finished", 0)))
    end = ("collective", 0)

    def lane(size: int) -> Lane:
        return Await(("ready", 0)), Work(0.01), Start(end, Op.ALL_REDUCE, size), Await(end), Signal(("finished", 0))

    recordings = {one.label: {2: Recording((lane(size),))} for one, size in ((NONE, 4000), (FP16, 2000), (INT4, 600))}
    path = folder() / "sound.json"
    save_calibration(Calibration("a model", this_machine(), (step,), recordings), path)
    return json.loads(path.read_text())


def _planned(path: Path) -> None:
    calibration = load(path, "a model", [NONE.label, FP16.label, INT4.label])
    if calibration is None:  # of another codec: it would be measured anew
        return
    json.dumps(plan(calibration, [NONE, FP16, INT4], Job(2, Host(2.0), Link(1e8), optimizer="sgd")).as_json())


def _linked(path: Path) -> None:
    link = read_link(str(path), None)
    assert link.bytes_per_second > 0 and 0 < link.reached(Op.ALL_GATHER) <= 1


# models and checkpoints

_OPTIONS = {"base_e": 4, "incr_e": 0, "pct3x3": 0.5, "freq": 1, "squeeze_ratio": 0.5, "conv1_channels": 2}


@cache
def _sound_model() -> bytes:
    model = models.build("squeezenet", num_classes=3, **_OPTIONS)
    data = {"name": "digits", "options": {}, "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    built = {"name": "squeezenet", "num_classes": 3, "options": _OPTIONS, "ranks": {}}
    description = {"format": FORMAT, "model": built, "data": data, "step": 1}
    return save(model.state_dict(), {"dtrain": json.dumps(description)})


@cache
def _sound_rank() -> bytes:
    """What a rank leaves in a checkpoint, described as a model is, so that it can be any of a checkpoint's files."""
    tensors = {RANDOM: torch.get_rng_state()[:40], "state/w/residual.value": torch.zeros(3)}
    return save(tensors, {"dtrain": json.dumps({"format": FORMAT, "model": {"name": "alexnet"}, "step": 1})})


def _hostile_model(rng: random.Random, sound: bytes) -> bytes:
    length = int.from_bytes(sound[:8], "little")
    header, rest = json.loads(sound[8 : 8 + length]), sound[8 + length :]
    match rng.randrange(6):
        case 0:
            return hostile_bytes(rng, sound)
        case 1:
            text = hostile_json(rng, header)
        case 2:
            change_anywhere(rng, header)
            text = json.dumps(header).encode()
        case _:
            told = hostile_json(rng, json.loads(header["__metadata__"]["dtrain"])).decode(errors="replace")
            header["__metadata__"]["dtrain"] = told
            text = json.dumps(header).encode()
    if rng.random() < 0.1:
        rest = hostile_bytes(rng, rest)
    return len(text).to_bytes(8, "little") + text + rest


def _loaded(path: Path) -> None:
    _, description = load_model(path)
    described(description.get("data"), path)


def _manifest() -> Any:
    at = folder() / "sound-manifest.json"
    files = {name: Digest(3, "0" * 64) for name in ("model.safetensors", "optimizer0.safetensors", "rank0.safetensors")}
    write_manifest(Manifest(3, 0, 24, 24, 8, 1, {"compressor.name": "int8", "seed": 0}, files), at)
    return json.loads(at.read_text())


def _resumed(path: Path) -> None:
    checkpoint = open_checkpoint(path.parent)
    assert checkpoint.manifest.progress.step >= 0
    checkpoint.identity()


def _checkpoint(data: bytes) -> None:
    """Hostile tensors under a manifest that names them rightly."""
    at = folder() / "checkpoint"
    at.mkdir(exist_ok=True)
    names = ("model.safetensors", "optimizer0.safetensors", "rank0.safetensors")
    for name in names:
        (at / name).write_bytes(data)
    write_manifest(Manifest(3, 0, 24, 24, 8, 1, {}, dict.fromkeys(names, digest(data))), at / MANIFEST)
    checkpoint = open_checkpoint(at)
    checkpoint.tensors(names[0])
    checkpoint.description()
    checkpoint.rank(0)


# what ranks and publishers say


def _offered(data: bytes) -> None:
    Offer.from_json(data)


def _figures() -> str:
    ledger = Ledger()
    tally = Tally(ledger)
    ledger.sinks.append(tally)
    ledger.activity = Activity.TRAIN
    ledger.record(Op.ALL_REDUCE, 400, 400.0, world_size=2, group="0", purpose=Purpose.GRADIENT).complete()
    ledger.close()
    return own_figures(0, "h", 1.5, tally, None, 3)


def _shown(data: bytes) -> None:
    traffic = JobTraffic(["x"], 2, [read_figures(data), read_figures(_figures())], None)
    json.dumps(traffic.as_json(), allow_nan=False)
    _to_text(traffic.tables())


def _said(data: bytes) -> None:
    own = SoFar(1.0, 2, 3, 4.0, {"gradient": 4.0})
    line([own, None], [own, read_so_far(data)])


class _Peers:
    """Two ranks, of which the other says whatever is given."""

    rank, world_size, backend = 0, 2, "made up"

    def __init__(self, said: bytes) -> None:
        self._said = said

    def start(self, request: Any) -> Any:
        """Its answer."""
        mine = request.payload
        if mine.dtype == torch.int64:
            self.answer = torch.tensor([mine.item(), len(self._said)]).view(2, *mine.shape)
        elif mine.numel() == 8:
            self.answer = torch.stack([mine, 255 - mine])
        else:
            theirs = torch.frombuffer(bytearray(self._said.ljust(mine.numel())[: mine.numel()]), dtype=torch.uint8)
            self.answer = torch.stack([mine, theirs])
        return self

    def wait(self) -> torch.Tensor:
        """See `start`."""
        return self.answer


def _agreed(data: bytes) -> None:
    check_settings({"seed": 0}, _Peers(data), Ledger(), torch.device("cpu"))  # type: ignore[arg-type]
