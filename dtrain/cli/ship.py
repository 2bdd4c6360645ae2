"""A model from where it is made to where it is used: ship keygen, ship publish, ship receive."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.cli.output import Verbs, add_verbs

if TYPE_CHECKING:
    from dtrain import ship


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    ship = verbs.add_parser("ship", help="a model from where it is made to where it is used, over HTTP")
    ship_verbs = add_verbs(ship)
    _add_keygen(ship_verbs)
    _add_publish(ship_verbs)
    _add_receive(ship_verbs)


def _add_keygen(verbs: Verbs) -> None:
    keygen = verbs.add_parser(
        "keygen",
        help="make a key that offers are signed with, and its public half",
        description="Writes KEY, for `ship publish --key`, and KEY.pub, for `ship receive --public-key`. Whoever has "
        "KEY can publish: keep it to yourself. Neither file is ever overwritten.",
    )
    keygen.add_argument("key", type=Path, metavar="KEY")
    keygen.set_defaults(run=_keygen)


def _add_publish(verbs: Verbs) -> None:
    publish = verbs.add_parser(
        "publish",
        help="serve a model, and every new version of its file, until Ctrl-C",
        description="Receivers that hold an earlier version of a packed model are sent the difference. Whoever can "
        "reach the address can fetch the model: there is no password.",
    )
    publish.add_argument("model", type=Path, metavar="MODEL.dtz", help="or .safetensors, which is sent as it is")
    publish.add_argument(
        "--base", type=Path, action="append", default=[], metavar="OLD.dtz", help="an earlier version (repeatable)"
    )
    publish.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine's own)")
    publish.add_argument("--port", type=int, default=8470, help="0 takes a free one (default: 8470)")
    publish.add_argument("--key", type=Path, metavar="KEY", help="sign offers with this key of `dtrain ship keygen`")
    publish.add_argument("--certificate", type=Path, metavar="PEM", help="encrypt with TLS, and show this certificate")
    publish.add_argument("--private-key", type=Path, metavar="PEM", help="of the certificate")
    _ledger_option(publish)
    publish.add_argument("--json", action="store_true", help="print JSON, a line for each file sent")
    publish.set_defaults(run=_publish)


def _add_receive(verbs: Verbs) -> None:
    receive = verbs.add_parser(
        "receive",
        help="make a file the newest version that a publisher serves, or leave it as it is",
        description="The file is replaced at once, and only by a whole version whose SHA-256 is right.",
    )
    receive.add_argument("url", help="what `dtrain ship publish` printed, such as http://127.0.0.1:8470")
    receive.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    receive.add_argument("--every", type=float, metavar="SECONDS", help="go on asking for new versions, until Ctrl-C")
    receive.add_argument("--max-bytes", type=int, metavar="N", help="refuse larger files (default: 268,435,456)")
    receive.add_argument(
        "--public-key",
        type=Path,
        metavar="KEY.pub",
        help="refuse what was not signed by its key, or is older than before",
    )
    receive.add_argument("--ca", type=Path, metavar="PEM", help="whose certificate an https address must have")
    _ledger_option(receive)
    receive.add_argument("--json", action="store_true", help="print JSON, a line for each new version")
    receive.set_defaults(run=_receive)


def _ledger_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ledger", type=Path, metavar="FILE", help="write what is sent or received there, as JSON lines"
    )


def _keygen(parsed: argparse.Namespace) -> int:
    from dtrain import ship

    public = ship.make_keys(parsed.key)
    print(f"{parsed.key}: for `dtrain ship publish --key`; {public}: for `dtrain ship receive --public-key`")
    return 0


def _publish(parsed: argparse.Namespace) -> int:
    from dtrain import ship
    from dtrain.meter.nic import is_loopback

    def said(line: dict[str, Any], text: str) -> None:
        print(json.dumps(line) if parsed.json else text, flush=True)

    def on_sent(sent: ship.Sent) -> None:
        cut = "" if sent.whole else "broken off after "
        text = f"{sent.receiver}: {sent.kind} {sent.sha256[:12]}, {cut}{sent.num_bytes:,} bytes in {sent.seconds:.2f} s"
        said(asdict(sent), text)

    if (parsed.certificate is None) != (parsed.private_key is None):
        raise ValueError("give both --certificate and --private-key, or neither")
    if not 0 <= parsed.port < 2**16:
        raise ValueError(f"--port {parsed.port} must be from 0 (a free one) to 65535")
    tls = None if parsed.certificate is None else ship.server_context(parsed.certificate, parsed.private_key)
    sign = None if parsed.key is None else ship.read_signing_key(parsed.key)
    publisher = ship.Publisher(parsed.model, parsed.base)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        ship.open_ledger(parsed.ledger) as ledger,
        ship.open_server(
            publisher, host=parsed.host, port=parsed.port, ledger=ledger, on_sent=on_sent, sign=sign, tls=tls
        ) as server,
    ):
        host, port = str(server.server_address[0]), server.server_address[1]
        url = f"http{'' if tls is None else 's'}://{f'[{host}]' if ':' in host else host}:{port}"
        newest = publisher.newest
        said(
            {"url": url, **asdict(newest)},
            f"{url} serves {parsed.model}, {newest.sha256[:12]}, {newest.num_bytes:,} bytes",
        )
        if not is_loopback(host):
            _warn(f"whoever reaches {host} can fetch the model{', unencrypted' if tls is None else ''}")
        if sign is None:
            _warn("offers are not signed, so receivers cannot tell whose they are: give --key")
        server.serve_forever()
    return 0


def _receive(parsed: argparse.Namespace) -> int:
    from dtrain import ship

    ship.check_url(parsed.url)
    encrypted = parsed.url.lower().startswith("https:")
    if parsed.ca is not None and not encrypted:
        raise ValueError(f"--ca {parsed.ca}: it is for an address that begins with https")
    tls = ship.client_context(parsed.ca) if encrypted else None
    check = None if parsed.public_key is None else ship.read_public_key(parsed.public_key)
    if parsed.every is not None and not 0 <= parsed.every < 1e6:
        raise ValueError(f"--every {parsed.every}: give seconds, 0 or more")
    max_bytes = ship.MAX_BYTES if parsed.max_bytes is None else parsed.max_bytes
    unchecked = check is None
    with ship.open_ledger(parsed.ledger) as ledger:
        warned = ""
        while True:
            try:
                received = ship.receive(
                    parsed.url, parsed.output, max_bytes=max_bytes, ledger=ledger, check=check, tls=tls
                )
            except (ValueError, OSError) as error:
                if parsed.every is None:
                    raise
                warning = " ".join(str(error).split())
                if warning != warned:  # once, however often it is tried
                    _warn(warning)
                warned = warning
            else:
                warned = ""
                if unchecked:
                    _warn(
                        "offers are not signed, or not checked: whoever answers there chooses the model; "
                        "give --public-key"
                    )
                    unchecked = False
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


def _warn(text: str) -> None:
    print(f"dtrain: warning: {text}", file=sys.stderr, flush=True)
