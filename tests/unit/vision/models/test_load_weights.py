"""Weights of other people's files: what loads, what is refused, and that the published ones compute what Caffe did."""

import argparse
import gzip
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import format as npy
from safetensors.torch import save_file
from torch import Tensor, nn

from dtrain.vision.models import PUBLISHED, SqueezeNet, build, load_weights

DATA = Path(__file__).parents[5] / "shared" / "data"
SUFFIXES = (".safetensors", ".pth", ".pt", ".npz")


def published(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {name} in ../shared/data, which is not part of the repository")
    return path


def small(num_classes: int = 3) -> SqueezeNet:
    model = build("squeezenet", num_classes=num_classes, base_e=8, incr_e=4, conv1_channels=4, conv1_kernel=3)
    assert isinstance(model, SqueezeNet)
    return model


def caffe_arrays(model: SqueezeNet) -> dict[str, np.ndarray]:
    state = model.state_dict()
    weights = {f"{caffe}|w": state[f"{path}.weight"].numpy() for caffe, path in model.caffe_layers.items()}
    biases = {f"{caffe}|b": state[f"{path}.bias"].numpy() for caffe, path in model.caffe_layers.items()}
    return weights | biases


def save(model: SqueezeNet, path: Path) -> None:
    if path.suffix == ".npz":
        np.savez(path, **caffe_arrays(model))
    elif path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)


def assert_equal_states(one: nn.Module, other: dict[str, Tensor]) -> None:
    state = one.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


def assert_refused(model: nn.Module, path: Path, match: str, error: type[Exception] = ValueError) -> None:
    """Loading fails with one error that says `match`, and nothing in the model moved."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=match):
        load_weights(model, path)
    assert_equal_states(model, before)


# The published weights


def test_published_v1_0_weights_reproduce_caffes_probabilities() -> None:
    weights, activations = published("squeezenet_v1.0_fp32.npz"), published("squeezenet_v1.0_activations.npz")
    model = build("squeezenet1_0", num_classes=1000, **PUBLISHED["caffe"]["squeezenet1_0"]).eval()
    load_weights(model, weights)
    with np.load(activations, allow_pickle=False) as caffe, torch.inference_mode():
        logits = model(torch.from_numpy(caffe["data"])[None])[0]
        np.testing.assert_allclose(logits.numpy(), caffe["pool10"].ravel(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(logits.softmax(0).numpy(), caffe["prob"].ravel(), rtol=0, atol=1e-6)


def test_published_v1_1_half_precision_weights_see_what_v1_0_sees() -> None:
    weights, activations = published("squeezenet_v1.1_fp16.npz"), published("squeezenet_v1.0_activations.npz")
    model = build("squeezenet1_1", num_classes=1000, **PUBLISHED["caffe"]["squeezenet1_1"]).eval()
    load_weights(model, weights)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    with np.load(weights, allow_pickle=False) as stored:
        fire9 = model.get_parameter("features.12.expand3x3.weight")
        assert torch.equal(fire9, torch.from_numpy(stored["fire9/expand3x3|w"]).float())
    with np.load(activations, allow_pickle=False) as caffe, torch.inference_mode():
        probabilities = model(torch.from_numpy(caffe["data"])[None])[0].softmax(0)
        assert probabilities.argmax() == caffe["prob"].argmax()
        assert probabilities.max() > 0.5


def test_a_published_file_of_the_other_version_is_refused() -> None:
    path = published("squeezenet_v1.0_fp32.npz")
    assert_refused(
        build("squeezenet1_1", num_classes=1000),
        path,
        r"'conv1\|w' is \(96, 3, 7, 7\) in the file, \(64, 3, 3, 3\) in the model",
    )


# Formats


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_back_what_was_saved(tmp_path: Path, suffix: str) -> None:
    source, model = small(), small()
    path = tmp_path / f"weights{suffix}"
    save(source, path)
    load_weights(model, str(path))
    assert_equal_states(model, source.state_dict())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_half_precision_is_cast_to_the_models_dtype(tmp_path: Path, suffix: str) -> None:
    source, model = small().half(), small()
    path = tmp_path / f"weights{suffix}"
    save(source, path)
    load_weights(model, path)
    assert_equal_states(model, source.float().state_dict())


@pytest.mark.parametrize("name", ["alexnet", "alexnet_torchvision"])
def test_alexnet_has_caffes_layer_names(name: str) -> None:
    with torch.device("meta"):
        model = build(name, num_classes=1000)
    layers = model.caffe_layers
    assert list(layers) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    sizes = [tuple(model.get_submodule(path).weight.shape) for path in layers.values()]
    assert [len(size) for size in sizes] == [4] * 5 + [2] * 3
    assert sizes[5:] == [(4096, 9216), (4096, 4096), (1000, 4096)]


def test_any_module_loads_its_state_dict_with_its_buffers(tmp_path: Path) -> None:
    source, model = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    source(torch.randn(8, 3))
    torch.save(source.state_dict(), tmp_path / "norm.pth")
    load_weights(model, tmp_path / "norm.pth")
    assert_equal_states(model, source.state_dict())


def test_loaded_weights_are_still_trainable_and_the_optimizers(tmp_path: Path) -> None:
    source, model = small(), small()
    parameters = list(model.parameters())
    save(source, tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    assert all(now is then and now.requires_grad for now, then in zip(model.parameters(), parameters, strict=True))


# Files that do not fit


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_class_count_is_refused_with_both_shapes(tmp_path: Path, suffix: str) -> None:
    save(small(num_classes=5), tmp_path / f"weights{suffix}")
    name = r"conv10\|w" if suffix == ".npz" else "classifier.1.weight"
    match = rf"'{name}' is \(5, \d+, 1, 1\) in the file, \(3, \d+, 1, 1\) in the model.*num_classes"
    assert_refused(small(num_classes=3), tmp_path / f"weights{suffix}", match)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = small().state_dict()
    del state["features.4.squeeze.bias"], state["classifier.1.bias"]
    save_file(state, tmp_path / "weights.safetensors")
    assert_refused(small(), tmp_path / "weights.safetensors", "has no 'features.4.squeeze.bias', which the model needs")


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    torch.save(small().state_dict() | {"classifier.4.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    assert_refused(small(), tmp_path / "weights.pth", r"has 'classifier\.4\.weight', which the model lacks")


def test_a_missing_caffe_layer_is_named(tmp_path: Path) -> None:
    arrays = caffe_arrays(small())
    del arrays["fire5/expand3x3|b"]
    np.savez(tmp_path / "weights.npz", **arrays)
    assert_refused(small(), tmp_path / "weights.npz", r"has no 'fire5/expand3x3\|b'")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_integer_codes_are_not_taken_for_weights(tmp_path: Path, suffix: str) -> None:
    source = small()
    codes = {name: tensor.to(torch.int8) for name, tensor in source.state_dict().items()}
    path = tmp_path / f"codes{suffix}"
    if suffix == ".npz":
        np.savez(path, **{name: array.astype(np.int8) for name, array in caffe_arrays(source).items()})
    elif suffix == ".safetensors":
        save_file(codes, path)
    else:
        torch.save(codes, path)
    assert_refused(small(), path, "holds int8, not weights as torch.float32")


def test_sparse_tensors_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    state = small().state_dict()
    state["classifier.1.bias"] = state["classifier.1.bias"].to_sparse()
    torch.save(state, tmp_path / "weights.pth")
    assert_refused(small(), tmp_path / "weights.pth", r"'classifier\.1\.bias' holds sparse_coo")


def test_caffe_names_are_for_squeezenet_and_alexnet_only(tmp_path: Path) -> None:
    save(small(), tmp_path / "weights.npz")
    assert_refused(nn.Linear(2, 2), tmp_path / "weights.npz", "no Caffe layer names are known for Linear")


def test_a_model_without_memory_is_refused(tmp_path: Path) -> None:
    save(small(), tmp_path / "weights.safetensors")
    with torch.device("meta"):
        model = small()
    with pytest.raises(ValueError, match="meta device"):
        load_weights(model, tmp_path / "weights.safetensors")


# Files that cannot be read


def test_content_that_is_no_format_known_lists_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "weights.caffemodel").write_bytes(b"\n\tSqueezeNet")
    assert_refused(small(), tmp_path / "weights.caffemodel", r"neither safetensors, a state dict .* or \.npz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_file_not_found(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"nowhere{suffix}"
    assert_refused(small(), path, f"no weight file at .*nowhere{suffix}", FileNotFoundError)


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def drop_the_end(data: bytes) -> bytes:
    return data[:-1]


def replace_by_text(_: bytes) -> bytes:
    return b"<html>404 not found</html>"


def empty(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("spoil", [truncate, drop_the_end, replace_by_text, empty])
def test_an_unreadable_file_is_one_value_error_that_names_it(
    tmp_path: Path, suffix: str, spoil: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"weights{suffix}"
    save(small(), path)
    path.write_bytes(spoil(path.read_bytes()))
    assert_refused(small(), path, f"cannot read .*weights{suffix} as .* fetch (it|the file itself) again")


def test_a_damaged_archive_is_refused_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    save(small(), path)
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 64]) + data[middle + 64 :])
    assert_refused(small(), path, "cannot read .*weights.npz")


def test_a_directory_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").mkdir()
    assert_refused(small(), tmp_path / "weights.npz", "cannot read .*weights.npz")


class Payload:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Payload()}, tmp_path / "weights.pth")
    assert_refused(small(), tmp_path / "weights.pth", "tensors by name, nothing else")
    with zipfile.ZipFile("weights.npz", "w") as archive:
        archive.writestr("conv1|w.npy", pickle.dumps(Payload()))
    assert_refused(small(), tmp_path / "weights.npz", "cannot read .*weights.npz")
    assert not Path("executed").exists()


# Files as other people's programs write them


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_of_ddp_and_compiled_models_load(tmp_path: Path, prefix: str, suffix: str) -> None:
    source, model = small(), small()
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    load_weights(model, path)
    assert_equal_states(model, source.state_dict())


def test_wrappers_of_parts_of_a_model_are_passed_over_too(tmp_path: Path) -> None:
    source, model = small(), small()
    state = {name.replace("features.", "features._orig_mod."): value for name, value in source.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth")
    assert_equal_states(model, source.state_dict())


def test_a_model_with_a_module_called_module_keeps_its_names(tmp_path: Path) -> None:
    source, model = nn.Module(), nn.Module()
    source.module, model.module = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth")
    assert_equal_states(model, source.state_dict())
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pth")
    assert_refused(model, tmp_path / "weights.pth", "has no 'module.weight'")


def test_two_names_that_would_become_one_are_refused(tmp_path: Path) -> None:
    state = nn.Linear(2, 2).state_dict()
    torch.save(state | {f"module.{name}": value for name, value in state.items()}, tmp_path / "weights.pth")
    assert_refused(nn.Linear(2, 2), tmp_path / "weights.pth", "has 'module.weight', which the model lacks")


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_the_state_dict_in_a_training_program_s_checkpoint_loads(tmp_path: Path, key: str) -> None:
    source, model = small(), small()
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    checkpoint = {"epoch": 3, "arch": "squeezenet", key: state, "optimizer": optimizer.state_dict(), "best": 0.5}
    torch.save(checkpoint, tmp_path / "checkpoint.pth.tar")
    load_weights(model, tmp_path / "checkpoint.pth.tar")
    assert_equal_states(model, source.state_dict())


@pytest.mark.parametrize(
    "name", ["WEIGHTS.PTH", "weights.Pt", "pytorch_model.bin", "last.ckpt", "weights.pth.tar", "w"]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_loads_whatever_its_name(tmp_path: Path, name: str, zipped: bool) -> None:
    source, model = small(), small()
    torch.save(source.state_dict(), tmp_path / name, _use_new_zipfile_serialization=zipped)
    load_weights(model, tmp_path / name)
    assert_equal_states(model, source.state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_other_formats_load_whatever_their_name(tmp_path: Path, suffix: str) -> None:
    source, model = small(), small()
    save(source, tmp_path / f"weights{suffix}")
    (tmp_path / f"weights{suffix}").rename(tmp_path / "weights.bin")
    load_weights(model, tmp_path / "weights.bin")
    assert_equal_states(model, source.state_dict())


STATE = nn.Linear(2, 2).state_dict()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (
            {"epoch": 3, "net": STATE},
            "it holds epoch, net, and no state dict as state_dict, model_state_dict, model: save",
        ),
        ({"model": STATE, "state_dict": STATE}, "state dicts as state_dict, model: save the one that you mean"),
        ([STATE], "it holds a list"),
        ({}, "it holds nothing"),
        (
            {"state_dict": STATE, "args": argparse.Namespace()},
            r"Python objects \(argparse.Namespace\).*save its state dict",
        ),
        (nn.Linear(2, 2), r"Python objects \(torch.nn.modules.linear.Linear\)"),
    ],
)
def test_what_is_no_state_dict_is_named_with_the_cure(tmp_path: Path, content: object, part: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert_refused(nn.Linear(2, 2), tmp_path / "weights.pth", f"cannot read .*weights.pth as weights: .*{part}")


def test_a_torchscript_program_is_named_with_the_cure(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "weights.pt")
    assert_refused(nn.Linear(2, 2), tmp_path / "weights.pt", r"a TorchScript program: save the state_dict\(\)")


def tar_of(data: bytes) -> bytes:
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("weights.pth")
        member.size = len(data)
        tar.addfile(member, BytesIO(data))
    return archive.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        (
            "weights.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4993696\n",
            "a Git LFS pointer to a file of 4,993,696 bytes: fetch that, by `git lfs pull`",
        ),
        ("weights.pth", b"\n<!DOCTYPE html><html>", "a web page: fetch the file itself"),
        ("weights.pth", b"", "empty: fetch it again"),
        ("weights.pth.gz", gzip.compress(b"weights", mtime=0), "unpack it, and name the file in it"),
        ("weights.pth.tar", tar_of(b"weights"), "unpack it, and name the file in it"),
        ("weights.dtz", b"\x93DTZ....", "a packed model: make safetensors of it, by `dtrain unpack`"),
    ],
)
def test_what_is_no_file_of_weights_is_named_with_the_cure(tmp_path: Path, name: str, data: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert_refused(small(), tmp_path / name, f"cannot read .*{name} as weights: it is .*{part}")


def test_a_folder_is_refused_with_the_files_in_it(tmp_path: Path) -> None:
    assert_refused(small(), tmp_path, "it is a folder; name a file of weights")
    for name in ("pytorch_model.bin", "config.json", "model.safetensors"):
        (tmp_path / name).touch()
    assert_refused(small(), tmp_path, "it is a folder; name a file in it: model.safetensors, pytorch_model.bin$")


def test_a_zip_archive_of_other_files_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert_refused(small(), tmp_path / "weights.pth", "a zip archive of other files: unpack it")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, suffix: str, value: float) -> None:
    source = small()
    with torch.no_grad():
        source.get_parameter("classifier.1.bias")[1] = value
    save(source, tmp_path / f"weights{suffix}")
    name = r"conv10\|b" if suffix == ".npz" else "classifier.1.bias"
    assert_refused(small(), tmp_path / f"weights{suffix}", f"'{name}' holds NaN or Inf: .* take an earlier checkpoint")


def test_weights_that_overflow_in_the_model_s_dtype_are_refused(tmp_path: Path) -> None:
    source = nn.Linear(2, 2)
    nn.init.constant_(source.weight, 1e6)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert_refused(nn.Linear(2, 2).half(), tmp_path / "weights.pth", "'weight' holds NaN or Inf")


def test_an_array_that_claims_a_huge_shape_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in caffe_arrays(small()).items():
            with archive.open(f"{name}.npy", "w") as entry:
                shape = (1 << 60,) if name == "conv10|b" else array.shape
                npy.write_array_header_1_0(entry, {"descr": "<f4", "fortran_order": False, "shape": shape})
                entry.write(array.tobytes())
    assert_refused(small(), path, rf"'conv10\|b' is \({1 << 60},\) in the file")


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = caffe_arrays(small())
    arrays["conv1|b"] = arrays["conv1|b"].astype(object)
    np.savez(tmp_path / "weights.npz", **arrays)
    assert_refused(small(), tmp_path / "weights.npz", r"'conv1\|b' holds object")
