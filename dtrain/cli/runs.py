"""What is done with runs: evaluate, compare, claims, report."""

from __future__ import annotations

import argparse
from pathlib import Path

from dtrain.cli.output import Verbs, console, json_option, print_json


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    evaluate = verbs.add_parser("evaluate", help="score a trained model on a data set")
    evaluate.add_argument("model", type=Path, help="the model.safetensors of a run")
    evaluate.add_argument("--data", help="data set (default: the one it was trained on)")
    evaluate.add_argument("--root", type=Path, help="the data set's folder")
    evaluate.add_argument("--image-size", type=int, help="height and width in pixels (default: as in training)")
    evaluate.add_argument("--split", choices=("train", "test"), default="test")
    evaluate.add_argument("--batch-size", type=int, default=64)
    json_option(evaluate)
    evaluate.set_defaults(run=_evaluate)

    for verb, summary, run in (
        ("compare", "a table of runs: parameters, bytes per step, savings, accuracy, step time", _compare),
        ("claims", "the SqueezeNet paper's claims that these runs bear on, measured", _claims),
    ):
        table = verbs.add_parser(verb, help=summary)
        _runs_argument(table)
        json_option(table)
        table.set_defaults(run=run)

    report = verbs.add_parser("report", help="one self-contained HTML page about runs")
    _runs_argument(report)
    report.add_argument("-o", "--output", type=Path, help="the page (default: report.html in the first run)")
    json_option(report)
    report.set_defaults(run=_report)


def _runs_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory")


def _evaluate(parsed: argparse.Namespace) -> int:
    from dtrain.train.evaluate import evaluate

    result = evaluate(
        parsed.model,
        name=parsed.data,
        root=parsed.root,
        image_size=parsed.image_size,
        split=parsed.split,
        batch_size=parsed.batch_size,
    )
    if parsed.json:
        print_json(result)
    else:
        print(
            f"{result['model']} on {result['data']} ({result['split']}, {result['num_images']:,} images): "
            f"accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f}"
        )
    return 0


def _compare(parsed: argparse.Namespace) -> int:
    from dtrain import report

    runs = report.load_runs(parsed.runs)
    if parsed.json:
        print_json(report.compare_data(runs))
    else:
        console().print(report.compare_table(runs))
    return 0


def _claims(parsed: argparse.Namespace) -> int:
    from dtrain import report

    claims = report.claims(report.load_runs(parsed.runs))
    if parsed.json:
        print_json(report.claims_data(claims))
    else:
        console().print(report.claims_table(claims))
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from dtrain import report

    output = parsed.output or parsed.runs[0] / "report.html"
    report.write_report(report.load_runs(parsed.runs), output)
    if parsed.json:
        print_json({"report": str(output)})
    else:
        print(f"report in {output}")
    return 0
