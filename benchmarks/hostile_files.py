"""Files of others' formats, keys, and what answers for a publisher, that were made to do harm."""

from __future__ import annotations

import io
import json
import random
import socket
import threading
import zipfile
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from hostile import Format, change_anywhere, hostile_bytes
from hostile_texts import folder
from torch import nn

from dtrain import ship
from dtrain.pack import Model, Tensor, pack, parse_safetensors, read_net, read_npz, to_bytes, write_safetensors
from dtrain.ship import client
from dtrain.ship.keys import SIGNATURE, make_keys, read_public_key, read_signing_key
from dtrain.ship.offer import Blob, Offer
from dtrain.vision import models


def formats() -> dict[str, Format]:
    """By name."""
    client._PAUSE_SECONDS = 0.0  # between tries
    keys = _keys()
    return {
        "safetensors": Format(
            _hostile_safetensors, lambda data: to_bytes(pack(parse_safetensors(data, folder() / "m")))
        ),
        "npz": Format(partial(_hostile_npz, _arrays()), _in("m.npz", read_npz)),
        "net": Format(lambda rng: hostile_bytes(rng, _net()), _in("m.net", lambda path: read_net(path, {"a": (4, 3)}))),
        "weights, safetensors": Format(_hostile_safetensors, _in("w.safetensors", _filled)),
        "weights, torch": Format(lambda rng: hostile_bytes(rng, _saved_by_torch()), _in("w.pth", _filled)),
        "weights, npz": Format(partial(_hostile_npz, _caffe()), _in("w.npz", _filled_from_caffe)),
        "public key": Format(lambda rng: hostile_bytes(rng, keys[1]), _in("k.pub", read_public_key)),
        "private key": Format(lambda rng: hostile_bytes(rng, keys[0]), _in("k", read_signing_key)),
        "signature": Format(_hostile_signature, _checked),
        "publisher": Format(_hostile_answers, _received, (ValueError, OSError)),
    }


def _in(name: str, read: Callable[..., object]) -> Callable[[bytes], object]:
    def put_and_read(data: bytes) -> None:
        (folder() / name).write_bytes(data)
        read(folder() / name)

    return put_and_read


@cache
def _model() -> Model:
    rng = np.random.default_rng(0)
    tensors = {
        name: Tensor.of(rng.normal(size=shape).astype("<f4")) for name, shape in (("weight", (5, 7)), ("bias", (5,)))
    }
    return Model(tensors, {"a": "b"})


@cache
def _safetensors() -> bytes:
    path = folder() / "sound.safetensors"
    write_safetensors(_model(), path)
    return path.read_bytes()


def _hostile_safetensors(rng: random.Random) -> bytes:
    sound = _safetensors()
    if rng.random() < 0.2:
        return hostile_bytes(rng, sound)
    length = int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 2))):
        change_anywhere(rng, header)
    if rng.random() < 0.3:  # sizes that no tensor has, and that are no bytes
        header["x"] = {"dtype": "F32", "shape": [rng.choice((1 << 40, 1 << 62)), 0], "data_offsets": [0, 0]}
    text = json.dumps(header).encode()
    text = (
        text.replace(b"{", b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},', 1)
        if rng.random() < 0.1
        else text
    )
    return len(text).to_bytes(8, "little") + text + sound[8 + length :]


def _arrays() -> dict[str, np.ndarray]:
    return {name: np.frombuffer(one.data, "<f4").reshape(one.shape) for name, one in _model().tensors.items()}


def _hostile_npz(arrays: dict[str, np.ndarray], rng: random.Random) -> bytes:
    """Other headers in a sound archive, other bytes, or what unpacks to very much."""
    out = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array)
            data = member.getvalue()
            match rng.randrange(5) if rng.random() < 2 / len(arrays) else 4:
                case 0:
                    data = hostile_bytes(rng, data)
                case 1:
                    shape = rng.choice((b"(99999999999,)", b"(1, 1 << 40)", b"(-1, 7)", b"(5, 7, 0)", b"((((5,))))"))
                    data = data.replace(str(array.shape).encode(), shape)
                case 2:
                    data = data.replace(b"<f4", rng.choice((b"|O8", b"<f8", b"<M8", b"|V9", b"<U9", b">f4")))
                case 3 if rng.random() < 0.02:
                    data += bytes(1 << 24)
            archive.writestr(f"{name}.npy", data)
    return hostile_bytes(rng, out.getvalue()) if rng.random() < 0.3 else out.getvalue()


def _net() -> bytes:
    codebook, bias = np.zeros(256, "<f4").tobytes(), np.zeros(4, "<f4").tobytes()
    return (6).to_bytes(4, "little") + codebook + bias + bytes(range(6)) + bytes(3)


@cache
def _saved_by_torch() -> bytes:
    out = io.BytesIO()
    torch.save(nn.Linear(7, 5).state_dict(), out)
    return out.getvalue()


def _filled(path: object) -> None:
    models.load_weights(nn.Linear(7, 5), str(path))


_SMALL = {"base_e": 4, "incr_e": 0, "pct3x3": 0.5, "freq": 1, "squeeze_ratio": 0.5, "conv1_channels": 2}


@cache
def _squeezenet() -> models.SqueezeNet:
    model = models.build("squeezenet", num_classes=3, **_SMALL)
    assert isinstance(model, models.SqueezeNet)
    return model


def _caffe() -> dict[str, np.ndarray]:
    state = _squeezenet().state_dict()
    return {
        f"{caffe}|{kind}": state[f"{ours}.{name}"].numpy()
        for caffe, ours in _squeezenet().caffe_layers.items()
        for kind, name in (("w", "weight"), ("b", "bias"))
    }


def _filled_from_caffe(path: object) -> None:
    models.load_weights(_squeezenet(), str(path))


# shipping


@cache
def _keys() -> tuple[bytes, bytes]:
    """The private one and its public half."""
    path = folder() / "key"
    public = make_keys(path)
    return path.read_bytes(), public.read_bytes()


def _signed(rng: random.Random, offer: Offer) -> tuple[bytes, str]:
    said = offer.to_json()
    return said, read_signing_key(folder() / "key")(said)


def _hostile_signature(rng: random.Random) -> bytes:
    said, signature = _signed(rng, Offer(".dtz", Blob.of(b"x"), None, 7))
    return hostile_bytes(rng, signature.encode() + b"\n" + said)


def _checked(data: bytes) -> None:
    signature, _, said = data.partition(b"\n")
    check = read_public_key(folder() / "key.pub")
    check(said, signature.decode("latin-1"))
    Offer.from_json(said)


@cache
def _packed() -> bytes:
    return to_bytes(pack(_model()))


def _answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join((f"HTTP/1.0 {status}", f"Content-Length: {len(body)}", *headers, "", "")).encode() + body


_BETWEEN = b"\0next\0"


def _hostile_answers(rng: random.Random) -> bytes:
    """An offer, and a file, of which one or both are something else than HTTP has."""
    offer = Offer(".dtz", Blob.of(_packed()), None, 7)
    said, signature = _signed(rng, offer)
    answers = [_answer(said, f"{SIGNATURE}: {signature}"), _answer(_packed())]
    for one in rng.choice(([0], [1], [0, 1])):
        match rng.randrange(4):
            case 0:
                answers[one] = hostile_bytes(rng, answers[one])
            case 1:
                length = rng.choice((b"-1", b"99999999999999999999", b"0", b"x", b"1e9", b" 5"))
                answers[one] = answers[one].replace(b"Content-Length: ", b"Content-Length: " + length + b"\r\nX: ")
            case 2:
                header = rng.choice(
                    (b"Transfer-Encoding: chunked\r\n", b"Location: file:///etc/passwd\r\n", b"A: b\r\n" * 200)
                )
                answers[one] = answers[one].replace(b"\r\n", b"\r\n" + header, 1)
            case _:
                status = rng.choice(
                    (b"301 Moved", b"206 Partial", b"100 Continue", b"404 No", b"999999 \x1b[2J", b"OK")
                )
                answers[one] = answers[one].replace(b"200 OK", status)
    return _BETWEEN.join(answers)


class _Liar:
    """Listens, and gives each connection the next of some answers."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.answers: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                try:
                    connection.recv(4096)
                    connection.sendall(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(4096)
                except OSError:
                    continue


@cache
def _liar() -> _Liar:
    return _Liar()


def _received(data: bytes) -> None:
    liar = _liar()
    liar.answers = data.split(_BETWEEN)
    target = folder() / "received.dtz"
    target.unlink(missing_ok=True)
    (folder() / "received.dtz.version").unlink(missing_ok=True)
    ship.receive(liar.url, target, check=read_public_key(folder() / "key.pub"))
    if target.read_bytes() != _packed():
        raise AssertionError("another file than was signed")
