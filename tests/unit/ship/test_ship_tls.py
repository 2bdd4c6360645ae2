"""A publisher with a certificate, and receivers that trust it or do not."""

from __future__ import annotations

import re
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from shippable import OLD, published, refused

from dtrain import ship
from dtrain.cli import main
from dtrain.ship import publisher as publishing


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, signed by itself, with its key beside it (.key)."""
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=publisher", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-keyout", path.with_suffix(".key"), "-out", path], check=True, capture_output=True)
    return path


def test_a_model_comes_encrypted_from_who_is_trusted_alone(tmp_path: Path, certificate: Path) -> None:
    target = tmp_path / "there" / "r.dtz"
    target.parent.mkdir()
    tls = ship.server_context(certificate, certificate.with_suffix(".key"))
    with published(tmp_path / "m.dtz", tls=tls) as plain_url, ExitStack() as idle:
        url = plain_url.replace("http:", "https:")
        refused(url, target, "its certificate is not trusted here .*: give --ca")
        refused(plain_url, target, "no publisher answers at")
        for _ in range(2 * publishing._MAX_CONNECTIONS):  # who never shake hands
            idle.enter_context(socket.create_connection(ship.check_url(url), timeout=60))
        target.unlink()
        assert main(["ship", "receive", url, "-o", str(target), "--ca", str(certificate)]) == 0
    assert target.read_bytes() == OLD


def test_what_is_no_certificate_is_named(tmp_path: Path, certificate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.dtz").write_bytes(OLD)
    publish = ["ship", "publish", str(tmp_path / "m.dtz"), "--port", "0", "--certificate"]
    receive = ["ship", "receive", "https://127.0.0.1:1", "-o", str(tmp_path / "r.dtz"), "--ca"]
    for arguments, part in (
        ([*publish, str(certificate)], "give both --certificate and --private-key"),
        ([*publish, str(certificate), "--private-key", str(certificate)], "cannot be used"),
        ([*publish, str(tmp_path / "none"), "--private-key", str(certificate)], "no file at"),
        ([*receive, str(tmp_path / "none")], "--ca .* cannot be used"),
        ([*receive, str(tmp_path / "m.dtz")], "give a certificate in PEM"),
        ([*receive[:2], "http://127.0.0.1:1", *receive[3:], str(certificate)], "begins with https"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(part, error), error
