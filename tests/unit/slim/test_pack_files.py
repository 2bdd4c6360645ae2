"""dtrain pack, unpack and inspect on files: published ones, and mistakes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dtrain.cli import main
from dtrain.slim.calibrate import dead_leaves
from dtrain.train.model_files import save_model
from dtrain.vision.models import PUBLISHED, build, load_weights

DATA = Path(__file__).parents[4] / "shared" / "data"
ORDER_0_BYTES = 541_576  # of the content of Deep Compression's file, codebooks and biases included


def published(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {name} in ../shared/data, which is not part of the repository")
    return path


def dtrain(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def the_line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dtrain: error: ")
    return line


def test_deep_compressions_file_comes_back_bit_for_bit_in_fewer_bytes_than_its_order_0_entropy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published("han_squeezenet_v1.0_compressed.net")
    packed = dtrain(capsys, "pack", source, "-o", tmp_path / "m.dtz")
    assert packed["packed_bytes"] == (tmp_path / "m.dtz").stat().st_size <= 0.97 * ORDER_0_BYTES
    dtrain(capsys, "unpack", tmp_path / "m.dtz", "-o", tmp_path / "m.safetensors")
    unpacked = load_file(tmp_path / "m.safetensors")
    weights = read_by_the_description(source.read_bytes())
    assert list(unpacked) == [f"{layer}.{kind}" for layer in weights for kind in ("weight", "bias")]
    for layer, (weight, bias) in weights.items():
        assert unpacked[f"{layer}.weight"].numpy().tobytes() == weight.tobytes()
        assert unpacked[f"{layer}.bias"].numpy().tobytes() == bias.tobytes()
    model = build("squeezenet1_0", num_classes=1000, **PUBLISHED["caffe"]["squeezenet1_0"])
    load_weights(model, tmp_path / "m.safetensors")


def read_by_the_description(data: bytes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The file read once more, code by code."""
    model = build("squeezenet1_0", num_classes=1000)
    shapes = {p: tuple(model.state_dict()[f"{p}.weight"].shape) for p in model.caffe_layers.values()}
    stored = np.frombuffer(data, "<u4", 26)
    at, layers = 104, {}
    for count, (layer, shape) in zip(stored, shapes.items(), strict=True):
        codebook, at = np.frombuffer(data, "<f4", 256, at), at + 1024
        bias, at = np.frombuffer(data, "<f4", shape[0], at), at + 4 * shape[0]
        codes, at = data[at : at + count], at + int(count)
        gaps, at = data[at : at + (count + 1) // 2], at + int(count + 1) // 2
        flat, place = np.zeros(int(np.prod(shape)), np.float32), -1
        for index, code in enumerate(codes):
            place += (gaps[index // 2] >> 4 * (index % 2) & 15) + 1
            flat[place] = codebook[code]
        layers[layer] = flat.reshape(shape), bias
    assert at == len(data)
    return layers


@pytest.mark.parametrize("name", ["squeezenet_v1.0_fp32.npz", "squeezenet_v1.1_fp16.npz"])
def test_published_weights_come_back_bit_for_bit_under_our_names(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published(name)
    packed = dtrain(capsys, "pack", source, "-o", tmp_path / "m.dtz")
    assert packed["compression_ratio"] > 1.15
    dtrain(capsys, "unpack", tmp_path / "m.dtz", "-o", tmp_path / "m.safetensors")
    unpacked = load_file(tmp_path / "m.safetensors")
    network = build("squeezenet1_0" if "v1.0" in name else "squeezenet1_1", num_classes=1000)
    with np.load(source) as arrays:
        for caffe, ours in network.caffe_layers.items():
            assert unpacked[f"{ours}.weight"].numpy().tobytes() == arrays[f"{caffe}|w"].tobytes()
            assert unpacked[f"{ours}.bias"].numpy().tobytes() == arrays[f"{caffe}|b"].tobytes()


def test_squeezenet_is_packed_within_10_seconds_of_processor_and_unpacked_within_1() -> None:
    """A bound of several times what it takes, since machines are busy; benchmarks/pack_curve.py measures."""
    from dtrain.pack import from_bytes, pack, read_npz, to_bytes, unpack

    model = read_npz(published("squeezenet_v1.0_fp32.npz"))
    start = time.process_time()
    data = to_bytes(pack(model, "smallest"))
    packed = time.process_time()
    unpack(from_bytes(data))
    assert packed - start < 30
    assert time.process_time() - packed < 5


def test_a_run_s_model_keeps_its_description_and_every_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    types = (torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.uint8, torch.int64, torch.float64)
    tensors = {str(dtype): torch.randint(0, 2, (3, 5)).to(dtype) for dtype in types}
    save_file(tensors, tmp_path / "m.safetensors", {"dtrain": '{"name": "x"}'})
    dtrain(capsys, "pack", tmp_path / "m.safetensors", "-o", tmp_path / "m.dtz")
    dtrain(capsys, "unpack", tmp_path / "m.dtz", "-o", tmp_path / "n.safetensors")
    assert (tmp_path / "n.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_images_calibrate_the_model_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = build("squeezenet1_1", num_classes=10)
    data = {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    description = {"model": {"name": "squeezenet1_1", "num_classes": 10, "options": {}}, "data": data}
    save_model(network, tmp_path / "m.safetensors", description)
    images = dead_leaves(40, 40)
    for index, image in enumerate(images):
        folder = tmp_path / "images" / str(index % 3)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index}.png")
    errors = []
    inputs = (torch.from_numpy(images[:, :, 4:36, 4:36].copy()).float() / 255 - 0.5) / 0.25
    for options in ([], ["--calibrate", tmp_path / "images"], ["--calibrate", "dead-leaves"]):
        packed = dtrain(
            capsys, "pack", tmp_path / "m.safetensors", "-o", tmp_path / "m.dtz", "--preset", "smallest", *options
        )
        assert packed["compression_ratio"] > 8
        dtrain(capsys, "unpack", tmp_path / "m.dtz", "-o", tmp_path / "n.safetensors")
        unpacked = build("squeezenet1_1", num_classes=10)
        load_weights(unpacked, tmp_path / "n.safetensors")
        with torch.no_grad():
            errors.append(float((unpacked.eval()(inputs) - network.eval()(inputs)).norm()))
    assert errors[1] < errors[0]


def test_calibration_without_its_images_or_its_network_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "m.safetensors", tmp_path / "m.dtz"
    save_file({"a": torch.randn(40, 30)}, source)
    images = ["-o", target, "--calibrate", tmp_path]
    assert "calibrate the preset smallest" in the_line(capsys, "pack", source, *images)
    smallest = [*images, "--preset", "smallest"]
    assert "was not saved by dtrain" in the_line(capsys, "pack", source, *smallest)
    np.savez(tmp_path / "m.npz", a=np.zeros((3, 4), np.float32))
    assert "no published network" in the_line(capsys, "pack", tmp_path / "m.npz", *smallest)
    data = {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    description = {"model": {"name": "squeezenet1_1", "num_classes": 10, "options": {}}, "data": data}
    save_model(build("squeezenet1_1", num_classes=10), source, description)
    assert "no images below" in the_line(capsys, "pack", source, *smallest)
    assert not target.exists()


def test_inspect_accounts_for_every_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a.weight": torch.randn(40, 30), "b.weight": torch.ones(20, 20)}, tmp_path / "m.safetensors")
    dtrain(capsys, "pack", tmp_path / "m.safetensors", "-o", tmp_path / "m.dtz", "--preset", "smallest")
    inspected = dtrain(capsys, "inspect", tmp_path / "m.dtz")
    assert [tensor["name"] for tensor in inspected["tensors"]] == ["a.weight", "b.weight"]
    sections = [section for tensor in inspected["tensors"] for section in tensor["sections"]]
    assert inspected["header_bytes"] + sum(section["bytes"] for section in sections) == inspected["packed_bytes"]
    assert inspected["packed_bytes"] == (tmp_path / "m.dtz").stat().st_size
    assert main(["inspect", str(tmp_path / "m.dtz")]) == 0
    assert "a.weight" in capsys.readouterr().out


def test_mistakes_are_one_line_with_the_cure_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "m.safetensors", tmp_path / "out"
    save_file({"a": torch.randn(40, 30)}, source)
    out.mkdir()
    assert "no file at" in the_line(capsys, "pack", tmp_path / "no.npz", "-o", out / "m.dtz")
    assert "ends in .dtz" in the_line(capsys, "pack", source, "-o", out / "m.zip")
    assert "make it first" in the_line(capsys, "pack", source, "-o", tmp_path / "no" / "m.dtz")
    assert "choose one of lossless" in the_line(capsys, "pack", source, "-o", out / "m.dtz", "--preset", "x")
    for suffix in (".pth", ".npz", ".net", ".safetensors"):
        (tmp_path / f"bad{suffix}").write_bytes(b"damaged")
        assert f"bad{suffix}" in the_line(capsys, "pack", tmp_path / f"bad{suffix}", "-o", out / "m.dtz")
    assert "not a packed model" in the_line(capsys, "unpack", source, "-o", out / "m.safetensors")
    assert "not a packed model" in the_line(capsys, "inspect", source)
    assert main(["pack", str(source), "-o", str(tmp_path / "m.dtz")]) == 0
    capsys.readouterr()
    assert "must end in .safetensors" in the_line(capsys, "unpack", tmp_path / "m.dtz", "-o", out / "m.npz")
    (tmp_path / "m.dtz").write_bytes((tmp_path / "m.dtz").read_bytes()[:-3])
    assert "truncated or altered" in the_line(capsys, "unpack", tmp_path / "m.dtz", "-o", out / "m.safetensors")
    assert list(out.iterdir()) == []
