"""What a job would take elsewhere, what would make it faster, and how it scales: plan, simulate."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.arguments import say_doing
from dtrain.cli.output import Verbs, console, json_option, print_json

if TYPE_CHECKING:
    from dtrain.plan.calibration import Calibration
    from dtrain.plan.candidates import Candidate
    from dtrain.plan.planner import Job, Plan
    from dtrain.plan.subject import Subject


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    plan = verbs.add_parser("plan", help="how long a step would take with each way to exchange, and which to choose")
    plan.add_argument("--nodes", type=int, required=True, metavar="N")
    _job_options(plan)
    plan.add_argument("--num-steps", type=int, metavar="N", help="of the whole run: tell its hours and gigabytes")
    plan.add_argument("--price", type=float, metavar="P", help="of a node for an hour: tell the run's cost")
    plan.add_argument("--html", type=Path, metavar="FILE", help="write a page: step time against the link, a timeline")
    json_option(plan)
    plan.set_defaults(run=_plan)

    simulate = verbs.add_parser("simulate", help="how a job scales, to thousands of ranks, with stragglers and faults")
    simulate.add_argument("--ranks", nargs="+", type=int, metavar="N", help="(default: 1, 2, 4, ... 4096)")
    _job_options(simulate)
    simulate.add_argument("--spread", type=float, default=0.0, metavar="S", help="of a rank's steps: deviation by mean")
    simulate.add_argument("--hours-between-faults", type=float, default=0.0, metavar="H", help="of one node (0: none)")
    json_option(simulate)
    simulate.set_defaults(run=_simulate)


def _job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="*", metavar="JOB", help="settings of `dtrain train`, or a trace (run.json)")
    parser.add_argument("--module", metavar="FILE:FUNCTION", help="a model of yours: the function gives (model, loss)")
    parser.add_argument("--params", metavar="N", help="a model of which only the size is known, such as 25.6M")
    parser.add_argument("--compute", metavar="TIME", help="of --params: a step's without any exchange, such as 180ms")
    parser.add_argument("--ranks-per-node", type=int, default=1, metavar="N")
    parser.add_argument(
        "--link", required=True, metavar="RATE", help="of a node, such as 1gbit; or a file of the probe"
    )
    parser.add_argument("--latency", metavar="TIME", help="of a message between nodes, such as 0.3ms (default: 0.1ms)")
    parser.add_argument("--cores", type=float, metavar="N", help="of a node (default: as many as here)")
    parser.add_argument("--threads", type=int, metavar="N", help="of a rank's computing (default: cores by ranks)")
    parser.add_argument("--backend", choices=("gloo", "nccl", "mpi", "horovod"), default="gloo")
    parser.add_argument("--optimizer", choices=("sgd", "adamw", "other"), help="of a model that is not ours")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="'int4', 'local ternary every=4'")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="keep what is measured here, and use it again")


def _plan(parsed: argparse.Namespace) -> int:
    say_doing("starting")
    from dtrain.plan.planner import plan
    from dtrain.plan.tables import plan_table
    from dtrain.plan.whole_run import whole_run

    if parsed.nodes < 1:
        raise ValueError(f"--nodes {parsed.nodes} must be at least 1")
    run = whole_run(parsed.num_steps, parsed.price)
    subject, job, chosen, calibration = _measured(parsed, [parsed.nodes * parsed.ranks_per_node])
    planned = plan(calibration, chosen, job, run)
    told = {"subject": subject.name, **planned.as_json()}
    if parsed.html is not None:
        _write_page(told, calibration, planned, parsed.html)
    if parsed.json:
        print_json(told)
    else:
        console().print(plan_table(planned, subject.name))
        if parsed.html is not None:
            print(f"page in {parsed.html}")
    return 0


def _write_page(told: dict[str, Any], calibration: Calibration, planned: Plan, path: Path) -> None:
    from dtrain.plan.curves import curves, timelines
    from dtrain.report import write_plan

    drawn = {"curves": curves(calibration, planned), "timelines": timelines(calibration, planned)}
    write_plan({**told, **drawn, "machine": dict(calibration.machine)}, path)


def _simulate(parsed: argparse.Namespace) -> int:
    say_doing("starting")
    from dtrain.plan.scaling import Uncertain, scale
    from dtrain.plan.tables import scaling_table

    sizes = parsed.ranks or [2**i for i in range(13)]
    if min(sizes) < 1:
        raise ValueError(f"--ranks {min(sizes)} must be at least 1")
    for option, value in (("--spread", parsed.spread), ("--hours-between-faults", parsed.hours_between_faults)):
        if not 0 <= value < inf:
            raise ValueError(f"{option} {value:g} must be 0 or more")
    subject, job, chosen, calibration = _measured(parsed, sizes)
    points = scale(calibration, chosen, job, sizes, Uncertain(parsed.spread, parsed.hours_between_faults))
    if parsed.json:
        print_json({"subject": subject.name, "points": [point.as_json() for point in points]})
    else:
        console().print(scaling_table(points, subject.name))
    return 0


def _subject(parsed: argparse.Namespace) -> Subject:
    from dtrain.plan.link import parse_seconds
    from dtrain.plan.subject import of_module, of_size, of_trace, parse_count

    kinds = [bool(parsed.job), parsed.module is not None, parsed.params is not None]
    if sum(kinds) != 1:
        raise ValueError("say what to plan for: settings such as model=alexnet, or --module, or --params and --compute")
    if (parsed.params is None) != (parsed.compute is None):
        raise ValueError("--params and --compute go together: the size of a model, and what its step takes")
    optimizer = None if parsed.optimizer == "other" else parsed.optimizer
    if parsed.params is not None:
        return of_size(parse_count(parsed.params), parse_seconds(parsed.compute), optimizer)
    if [Path(one).suffix for one in parsed.job] == [".json"]:
        return of_trace(Path(parsed.job[0]))
    _set_threads(parsed)
    if parsed.module is not None:
        return of_module(parsed.module, optimizer)
    if parsed.optimizer is not None:
        raise ValueError("--optimizer is for models that are not ours: write optimizer=adamw")
    from dtrain.train.subject import subject_of

    return subject_of(parsed.job, _threads(parsed))


def _threads(parsed: argparse.Namespace) -> int:
    cores = parsed.cores or os.cpu_count() or 1
    threads: int = parsed.threads or max(1, int(cores) // parsed.ranks_per_node)
    return threads


def _set_threads(parsed: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(_threads(parsed))


def _measured(parsed: argparse.Namespace, sizes: list[int]) -> tuple[Subject, Job, list[Candidate], Calibration]:
    """What is planned, and what was measured of it, now or before."""
    from dtrain.plan.link import read_link
    from dtrain.plan.planner import Job
    from dtrain.plan.timeline import Host

    if parsed.ranks_per_node < 1:
        raise ValueError(f"--ranks-per-node {parsed.ranks_per_node} must be at least 1")
    if parsed.threads is not None and parsed.threads < 1:
        raise ValueError(f"--threads {parsed.threads} must be at least 1")
    if parsed.cores is not None and not 0 < parsed.cores < inf:
        raise ValueError(f"--cores {parsed.cores:g} must be more than 0")
    link = replace(read_link(parsed.link, parsed.latency), ranks=parsed.ranks_per_node)
    subject = _subject(parsed)
    cores = parsed.cores or os.cpu_count() or 1
    job = Job(max(sizes), Host(cores, parsed.ranks_per_node), link, parsed.backend, subject.tried_as)
    chosen = _chosen(parsed, job)
    return subject, job, chosen, _calibration(parsed, subject, job, sizes, chosen)


def _chosen(parsed: argparse.Namespace, job: Job) -> list[Candidate]:
    from dtrain.plan.candidates import candidates, parse_all

    return parse_all(parsed.methods) if parsed.methods else candidates(job.optimizer, job.world_size)


def _calibration(
    parsed: argparse.Namespace, subject: Subject, job: Job, sizes: list[int], chosen: list[Candidate]
) -> Calibration:
    from dtrain.plan.calibration import calibrate, load, save
    from dtrain.plan.neighbours import neighbours

    _set_threads(parsed)
    if parsed.calibration is not None and parsed.calibration.exists():
        kept = load(parsed.calibration, subject.name, [one.label for one in chosen])
        if kept is not None:
            return kept
    crowded = job.host.ranks > 1 or job.host.cores < 1
    with console().status("measuring") if not parsed.json else nullcontext() as status:

        def tell(label: str) -> None:
            if status is not None:
                status.update(f"measuring {label}")

        with neighbours((os.cpu_count() or 1) - 1 if crowded else 0):
            calibration = calibrate(subject, chosen, world_sizes=sizes, on_progress=tell)
    if parsed.calibration is not None:
        save(calibration, parsed.calibration)
    return calibration
