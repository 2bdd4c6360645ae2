"""What a job would take elsewhere, and what would make it faster: plan."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.cli.output import Verbs, console, json_option, print_json

if TYPE_CHECKING:
    from dtrain.plan.calibration import Calibration
    from dtrain.plan.candidates import Candidate
    from dtrain.plan.planner import Job
    from dtrain.plan.subject import Subject


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    plan = verbs.add_parser("plan", help="how long a step would take with each way to exchange, and which to choose")
    plan.add_argument("job", nargs="*", metavar="SETTING", help="of `dtrain train`: model=alexnet batch_size=32")
    plan.add_argument("--module", metavar="FILE:FUNCTION", help="a model of yours: the function gives (model, loss)")
    plan.add_argument("--params", metavar="N", help="a model of which only the size is known, such as 25.6M")
    plan.add_argument("--compute", metavar="TIME", help="of --params: a step's without any exchange, such as 180ms")
    plan.add_argument("--nodes", type=int, required=True, metavar="N")
    plan.add_argument("--ranks-per-node", type=int, default=1, metavar="N")
    plan.add_argument("--link", required=True, metavar="RATE", help="of a node, such as 1gbit; or a file of the probe's")
    plan.add_argument("--latency", metavar="TIME", help="of a message between nodes, such as 0.3ms (default: 0.1ms)")
    plan.add_argument("--cores", type=float, metavar="N", help="of a node (default: as many as here)")
    plan.add_argument("--threads", type=int, metavar="N", help="of a rank's computing (default: cores by ranks)")
    plan.add_argument("--backend", choices=("gloo", "nccl", "mpi", "horovod"), default="gloo")
    plan.add_argument("--optimizer", choices=("sgd", "adamw", "other"), help="of a model that is not ours")
    plan.add_argument("--methods", nargs="+", metavar="METHOD", help="'int4', 'local ternary every=4'")
    plan.add_argument("--calibration", type=Path, metavar="FILE", help="keep what is measured here, and use it again")
    json_option(plan)
    plan.set_defaults(run=_plan)


def _plan(parsed: argparse.Namespace) -> int:
    from dtrain.plan.planner import plan
    from dtrain.plan.tables import plan_table

    subject = _subject(parsed)
    job = _job(parsed, subject)
    chosen = _chosen(parsed, job)
    planned = plan(_calibration(parsed, subject, job, chosen), chosen, job)
    if parsed.json:
        print_json({"subject": subject.name, **planned.as_json()})
    else:
        console().print(plan_table(planned, subject.name))
    return 0


def _subject(parsed: argparse.Namespace) -> Subject:
    from dtrain.plan.link import parse_seconds
    from dtrain.plan.subject import of_module, of_size, parse_count

    kinds = [bool(parsed.job), parsed.module is not None, parsed.params is not None]
    if sum(kinds) != 1:
        raise ValueError("say what to plan for: settings such as model=alexnet, or --module, or --params and --compute")
    if (parsed.params is None) != (parsed.compute is None):
        raise ValueError("--params and --compute go together: the size of a model, and what its step takes")
    optimizer = None if parsed.optimizer == "other" else parsed.optimizer
    if parsed.params is not None:
        return of_size(parse_count(parsed.params), parse_seconds(parsed.compute), optimizer)
    _set_threads(parsed)
    if parsed.module is not None:
        return of_module(parsed.module, optimizer)
    if parsed.optimizer is not None:
        raise ValueError("--optimizer is for models that are not ours: write optimizer=adamw")
    from dtrain.train.subject import subject_of

    return subject_of(parsed.job, _threads(parsed))


def _threads(parsed: argparse.Namespace) -> int:
    cores = parsed.cores or os.cpu_count() or 1
    return parsed.threads or max(1, int(cores) // parsed.ranks_per_node)


def _set_threads(parsed: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(_threads(parsed))


def _job(parsed: argparse.Namespace, subject: Subject) -> Job:
    from dtrain.plan.link import read_link
    from dtrain.plan.planner import Job
    from dtrain.plan.timeline import Host

    if parsed.nodes < 1 or parsed.ranks_per_node < 1:
        raise ValueError("--nodes and --ranks-per-node must be at least 1")
    if parsed.cores is not None and parsed.cores <= 0:
        raise ValueError("--cores must be more than 0")
    return Job(
        world_size=parsed.nodes * parsed.ranks_per_node,
        host=Host(parsed.cores or os.cpu_count() or 1, parsed.ranks_per_node),
        link=replace(read_link(parsed.link, parsed.latency), ranks=parsed.ranks_per_node),
        backend=parsed.backend,
        optimizer=subject.tried_as,
    )


def _chosen(parsed: argparse.Namespace, job: Job) -> list[Candidate]:
    from dtrain.plan.candidates import candidates, parse_all

    return parse_all(parsed.methods) if parsed.methods else candidates(job.optimizer, job.world_size)


def _calibration(
    parsed: argparse.Namespace, subject: Subject, job: Job, chosen: list[Candidate]
) -> Calibration:
    from dtrain.plan.calibration import calibrate, load, save
    from dtrain.plan.neighbours import neighbours

    if parsed.calibration is not None and parsed.calibration.exists():
        return load(parsed.calibration, subject.name, [one.label for one in chosen])
    _set_threads(parsed)
    crowd = job.host.ranks > 1 or job.host.cores < 1
    shown: Any = nullcontext() if parsed.json else console().status("measuring")
    with shown as status, neighbours((os.cpu_count() or 1) - 1 if crowd else 0):
        def tell(label: str) -> None:
            if status is not None:
                status.update(f"measuring {label}")

        tell("a step")
        calibration = calibrate(
            subject.name, subject.model, subject.optimizer, subject.measured_step(), chosen,
            world_size=job.world_size, on_progress=tell,
        )
    if parsed.calibration is not None:
        save(calibration, parsed.calibration)
    return calibration
