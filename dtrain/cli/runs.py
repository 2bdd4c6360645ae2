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

    compare = verbs.add_parser(
        "compare", help="runs, a row each: bytes, savings, accuracy, time; the fewest bytes that cost no accuracy first"
    )
    compare.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or what python -m dtrain.meter --json wrote"
    )
    form = compare.add_mutually_exclusive_group()
    form.add_argument("--details", action="store_true", help="every figure of runs, which are then columns")
    form.add_argument("--csv", action="store_true", help="print CSV, with exact figures")
    form.add_argument("--markdown", action="store_true", help="print a table for GitHub")
    form.add_argument("--latex", action="store_true", help="print a tabular, which needs the package booktabs")
    json_option(form)
    compare.set_defaults(run=_compare)

    table = verbs.add_parser("claims", help="the SqueezeNet paper's claims that these runs bear on, measured")
    _runs_argument(table)
    json_option(table)
    table.set_defaults(run=_claims)

    report = verbs.add_parser("report", help="one self-contained HTML page about runs")
    _runs_argument(report)
    report.add_argument("-o", "--output", type=Path, help="the page (default: report.html in the first run)")
    report.add_argument("--figures", type=Path, metavar="DIR", help="write the charts there too, as SVG and PNG")
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

    if parsed.details:
        console().print(report.compare_table(report.load_runs(parsed.runs)))
        return 0
    ranked = report.load_ranked(parsed.runs)
    if parsed.json:
        print_json(report.ranked_data(ranked))
    elif parsed.csv:
        print(report.as_csv(ranked), end="")
    elif parsed.markdown:
        print(report.as_markdown(ranked), end="")
    elif parsed.latex:
        print(report.as_latex(ranked), end="")
    else:
        console().print(report.ranked_table(ranked))
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
    runs = report.load_runs(parsed.runs)
    report.write_report(runs, output)
    figures = [] if parsed.figures is None else report.write_figures(runs, parsed.figures)
    if parsed.json:
        told = {"report": str(output), "figures": [str(path) for path in figures], "verdict": report.verdict(runs)}
        print_json(told)
    else:
        print(f"report in {output}")
        if parsed.figures is not None:
            print(f"{len(figures)} figures in {parsed.figures}")
        print(report.verdict(runs))
    return 0
