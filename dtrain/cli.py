"""`dtrain <verb>`. Exit codes: 0 done, 1 something failed on the way, 2 a mistake in the request, 130 interrupted."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dtrain import __version__

if TYPE_CHECKING:
    from dtrain import ship

MISTAKE, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        from dtrain.train.entry import main as train  # Hydra reads the rest of the command line itself

        sys.argv = ["dtrain train", *arguments[1:]]
        return train()
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except (ValueError, OSError) as error:
        print(f"dtrain: error: {' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dtrain", description="Distributed training that counts its bytes.")
    parser.add_argument("--version", action="version", version=f"dtrain {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    train = verbs.add_parser("train", help="train a model (settings as KEY=VALUE; see `dtrain train --help`)")
    train.set_defaults(run=None)

    evaluate = verbs.add_parser("evaluate", help="score a trained model on a data set")
    evaluate.add_argument("model", type=Path, help="the model.safetensors of a run")
    evaluate.add_argument("--data", help="data set (default: the one it was trained on)")
    evaluate.add_argument("--root", type=Path, help="the data set's folder")
    evaluate.add_argument("--image-size", type=int, help="height and width in pixels (default: as in training)")
    evaluate.add_argument("--split", choices=("train", "test"), default="test")
    evaluate.add_argument("--batch-size", type=int, default=64)
    _json_option(evaluate)
    evaluate.set_defaults(run=_evaluate)

    for verb, summary, run in (
        ("compare", "a table of runs: parameters, bytes per step, savings, accuracy, step time", _compare),
        ("claims", "the SqueezeNet paper's claims that these runs bear on, measured", _claims),
    ):
        table = verbs.add_parser(verb, help=summary)
        _runs_argument(table)
        _json_option(table)
        table.set_defaults(run=run)

    explain = verbs.add_parser("explain", help="what a compressor would put on the network, before anything runs")
    explain.add_argument("compressor")
    explain.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="the compressor's options")
    explain.add_argument("--model", default="squeezenet1_1")
    explain.add_argument("--world-size", type=int, default=2, metavar="N")
    explain.add_argument("--num-classes", type=int, default=1000, metavar="N")
    explain.add_argument("--step", type=int, default=0, help="the step to look at (a warm-up differs)")
    _json_option(explain)
    explain.set_defaults(run=_explain)

    report = verbs.add_parser("report", help="one self-contained HTML page about runs")
    _runs_argument(report)
    report.add_argument("-o", "--output", type=Path, help="the page (default: report.html in the first run)")
    _json_option(report)
    report.set_defaults(run=_report)

    doctor = verbs.add_parser(
        "doctor",
        help="what on this machine would keep ranks from training together, and the cure",
        description="Exit code: 0 all well, 3 warnings, 1 errors (torchrun makes 1 of both), 2 a mistake.",
    )
    doctor.add_argument(
        "--net",
        action="store_true",
        help="measure between ranks: torchrun's or mpiexec's (of `-m dtrain.cli doctor --net`), else 2 of this host",
    )
    doctor.add_argument("--run-dir", type=Path, default=Path("runs"), help="where runs go (default: runs)")
    _json_option(doctor)
    doctor.set_defaults(run=_doctor)

    _pack_parsers(verbs)

    ship = verbs.add_parser("ship", help="a model from where it is made to where it is used, over HTTP")
    _ship_parsers(ship.add_subparsers(required=True, metavar="VERB"))

    dashboard = verbs.add_parser("dashboard", help="Grafana dashboards, Prometheus rules and alerts to watch runs with")
    export = dashboard.add_subparsers(required=True, metavar="VERB").add_parser(
        "export", help="write prometheus.yml, rules/ and grafana/ into a folder"
    )
    export.add_argument("folder", type=Path)
    export.add_argument("--overwrite", action="store_true", help="replace files there that differ")
    _json_option(export)
    export.set_defaults(run=_dashboard_export)

    cluster = verbs.add_parser("cluster", help="a cluster on this machine, with links of a chosen speed (root)")
    _cluster_parser(cluster.add_subparsers(required=True, metavar="VERB"))
    return parser


def _pack_parsers(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pack = verbs.add_parser("pack", help="a model in fewer bytes on disk")
    pack.add_argument("model", type=Path, help=".safetensors, .npz, or Deep Compression's .net")
    pack.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.dtz")
    pack.add_argument("--preset", default="lossless", help="what is done to weights (default: lossless, nothing)")
    pack.add_argument(
        "--coder", default="contexts", help="of small integers: contexts (default), or huffman as in Deep Compression"
    )
    pack.add_argument(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="of images such as the network is for, without labels; --preset smallest then harms outputs less "
        "(dead-leaves: made ones, if there are none)",
    )
    _json_option(pack)
    pack.set_defaults(run=_pack)

    unpack = verbs.add_parser("unpack", help="a packed model as safetensors")
    unpack.add_argument("packed", type=Path, metavar="FILE.dtz")
    unpack.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.safetensors")
    _json_option(unpack)
    unpack.set_defaults(run=_unpack)

    inspect = verbs.add_parser("inspect", help="where the bytes of a packed model are")
    inspect.add_argument("packed", type=Path, metavar="FILE.dtz")
    _json_option(inspect)
    inspect.set_defaults(run=_inspect)


def _ship_parsers(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    publish = verbs.add_parser(
        "publish",
        help="serve a model, and every new version of its file, until Ctrl-C",
        description="Receivers that hold an earlier version of a packed model are sent the difference. Whoever can "
        "reach the address can fetch the model: there is no password and no encryption.",
    )
    publish.add_argument("model", type=Path, metavar="MODEL.dtz", help="or .safetensors, which is sent as it is")
    publish.add_argument(
        "--base", type=Path, action="append", default=[], metavar="OLD.dtz", help="an earlier version (repeatable)"
    )
    publish.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine's own)")
    publish.add_argument("--port", type=int, default=8470, help="0 takes a free one (default: 8470)")
    _ledger_option(publish)
    publish.add_argument("--json", action="store_true", help="print JSON, a line for each file sent")
    publish.set_defaults(run=_ship_publish)

    receive = verbs.add_parser(
        "receive",
        help="make a file the newest version that a publisher serves, or leave it as it is",
        description="The file is replaced at once, and only by a whole version whose SHA-256 is right.",
    )
    receive.add_argument("url", help="what `dtrain ship publish` printed, such as http://127.0.0.1:8470")
    receive.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    receive.add_argument("--every", type=float, metavar="SECONDS", help="go on asking for new versions, until Ctrl-C")
    receive.add_argument("--max-bytes", type=int, metavar="N", help="refuse larger files (default: 268,435,456)")
    _ledger_option(receive)
    receive.add_argument("--json", action="store_true", help="print JSON, a line for each new version")
    receive.set_defaults(run=_ship_receive)


def _ledger_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ledger", type=Path, metavar="FILE", help="write what is sent or received there, as JSON lines"
    )


def _cluster_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = verbs.add_parser(
        "run",
        help="run a command on every node, with the rendezvous filled in; then a table of bytes per node",
        description="Exit code: 0, the first failing node's, 2 for a mistake, 130 after Ctrl-C or SIGTERM.",
    )
    run.add_argument("--nodes", type=int, default=2, metavar="N", help="how many (default: 2)")
    run.add_argument("--rate", help="of each node's link, each way, such as 100mbit (default: unshaped)")
    run.add_argument("--json", action="store_true", help="print JSON; the nodes' output then goes to standard error")
    run.add_argument("command", nargs="+", metavar="-- COMMAND", help="the program that every node runs")
    run.set_defaults(run=_cluster_run)


def _runs_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory")


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


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
        _print_json(result)
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
        _print_json(report.compare_data(runs))
    else:
        _console().print(report.compare_table(runs))
    return 0


def _claims(parsed: argparse.Namespace) -> int:
    from dtrain import report

    claims = report.claims(report.load_runs(parsed.runs))
    if parsed.json:
        _print_json(report.claims_data(claims))
    else:
        _console().print(report.claims_table(claims))
    return 0


def _explain(parsed: argparse.Namespace) -> int:
    from dtrain.plan.explain import explain, explain_table

    explanation = explain(
        parsed.compressor,
        model=parsed.model,
        world_size=parsed.world_size,
        num_classes=parsed.num_classes,
        step=parsed.step,
        **_options(parsed.options),
    )
    if parsed.json:
        _print_json(explanation.as_json())
    else:
        _console().print(explain_table(explanation))
    return 0


def _options(assignments: Sequence[str]) -> dict[str, Any]:
    """OPTION=VALUE as on the training command line: VALUE is YAML."""
    from omegaconf import OmegaConf

    for assignment in assignments:
        if "=" not in assignment:
            raise ValueError(f"{assignment!r} is not of the form OPTION=VALUE")
    options = OmegaConf.to_container(OmegaConf.from_dotlist(list(assignments)))
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def _report(parsed: argparse.Namespace) -> int:
    from dtrain import report

    output = parsed.output or parsed.runs[0] / "report.html"
    report.write_report(report.load_runs(parsed.runs), output)
    if parsed.json:
        _print_json({"report": str(output)})
    else:
        print(f"report in {output}")
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from dtrain import doctor
    from dtrain.comm import detect_launch

    launch = detect_launch(os.environ)
    checks = doctor.examine(launch, os.environ, parsed.run_dir)
    if parsed.net:
        checks += doctor.examine_network(launch, checks)
    if launch.rank != 0:
        return 0
    if parsed.json:
        _print_json([asdict(check) for check in checks])
    else:
        _console().print(doctor.checks_table(checks))
    return doctor.exit_code(checks)


def _pack(parsed: argparse.Namespace) -> int:
    from dtrain.slim.files import pack_file

    result = pack_file(parsed.model, parsed.output, preset=parsed.preset, coder=parsed.coder, images=parsed.calibrate)
    if parsed.json:
        _print_json(result)
    else:
        print(
            f"{parsed.output}: {result['packed_bytes']:,} bytes, {result['compression_ratio']:.2f}x fewer than the "
            f"{result['tensor_bytes']:,} of its {result['num_tensors']} tensors ({result['preset']})"
        )
    return 0


def _unpack(parsed: argparse.Namespace) -> int:
    from dtrain.slim.files import unpack_file

    result = unpack_file(parsed.packed, parsed.output)
    if parsed.json:
        _print_json(result)
    else:
        print(f"{parsed.output}: {result['num_tensors']} tensors, {result['tensor_bytes']:,} bytes")
    return 0


def _inspect(parsed: argparse.Namespace) -> int:
    from dtrain.slim.files import inspect_file, inspect_table

    inspected = inspect_file(parsed.packed)
    if parsed.json:
        _print_json(inspected)
    else:
        _console().print(inspect_table(inspected))
    return 0


def _ship_publish(parsed: argparse.Namespace) -> int:
    from dtrain import ship
    from dtrain.meter.nic import is_loopback

    def said(line: dict[str, Any], text: str) -> None:
        print(json.dumps(line) if parsed.json else text, flush=True)

    def on_sent(sent: ship.Sent) -> None:
        cut = "" if sent.whole else "broken off after "
        text = f"{sent.receiver}: {sent.kind} {sent.sha256[:12]}, {cut}{sent.num_bytes:,} bytes in {sent.seconds:.2f} s"
        said(asdict(sent), text)

    publisher = ship.Publisher(parsed.model, parsed.base)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        ship.open_ledger(parsed.ledger) as ledger,
        ship.open_server(publisher, host=parsed.host, port=parsed.port, ledger=ledger, on_sent=on_sent) as server,
    ):
        host, port = str(server.server_address[0]), server.server_address[1]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        newest = publisher.newest
        said(
            {"url": url, **asdict(newest)},
            f"{url} serves {parsed.model}, {newest.sha256[:12]}, {newest.num_bytes:,} bytes",
        )
        if not is_loopback(host):
            print(
                f"dtrain: warning: whoever reaches {host} can fetch the model, unencrypted", file=sys.stderr, flush=True
            )
        server.serve_forever()
    return 0


def _ship_receive(parsed: argparse.Namespace) -> int:
    from dtrain import ship

    ship.check_url(parsed.url)
    if parsed.every is not None and not 0 <= parsed.every < 1e6:
        raise ValueError(f"--every {parsed.every}: give seconds, 0 or more")
    max_bytes = ship.MAX_BYTES if parsed.max_bytes is None else parsed.max_bytes
    with ship.open_ledger(parsed.ledger) as ledger:
        warned = ""
        while True:
            try:
                received = ship.receive(parsed.url, parsed.output, max_bytes=max_bytes, ledger=ledger)
            except (ValueError, OSError) as error:
                if parsed.every is None:
                    raise
                warning = " ".join(str(error).split())
                if warning != warned:  # once, however often it is tried
                    print(f"dtrain: warning: {warning}", file=sys.stderr, flush=True)
                warned = warning
            else:
                warned = ""
                if parsed.every is None or received.kind != "nothing new":
                    print(
                        json.dumps(asdict(received)) if parsed.json else _received(parsed.output, received), flush=True
                    )
            if parsed.every is None:
                return 0
            time.sleep(parsed.every)


def _received(output: Path, received: ship.Received) -> str:
    version = f"{output}: {received.sha256[:12]}, {received.num_bytes:,} bytes"
    if received.kind == "nothing new":
        return f"{version}, is the newest already"
    return (
        f"{version}; came as {received.kind}, {received.transferred_bytes:,} bytes in "
        f"{received.transfer_seconds:.2f} s, {received.seconds:.2f} s in all"
    )


def _dashboard_export(parsed: argparse.Namespace) -> int:
    from dtrain.observe import dashboards as dashboard

    written = dashboard.export(parsed.folder, overwrite=parsed.overwrite)
    if parsed.json:
        _print_json([str(path) for path in written])
    else:
        print(f"{len(written)} files in {parsed.folder}: prometheus.yml is for Prometheus, grafana/ for Grafana")
    return 0


def _cluster_run(parsed: argparse.Namespace) -> int:
    try:
        from dtrain import cluster
    except ModuleNotFoundError as error:
        raise ValueError(f"a cluster needs {error.name}: pip install 'dtrain[cluster]'") from None

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # while nodes are made, as Ctrl-C does
    outcome = cluster.run_cluster(
        parsed.command,
        num_nodes=parsed.nodes,
        rate=None if parsed.rate is None else cluster.parse_rate(parsed.rate),
        output=sys.stderr if parsed.json else sys.stdout,
    )
    if parsed.json:
        _print_json(outcome.as_json())
    else:
        _console().print(cluster.outcome_table(outcome))
    return outcome.exit_code


def _console() -> Console:
    return Console(highlight=False)


if __name__ == "__main__":
    sys.exit(main())
