import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save, save_file
from torch import nn

from dtrain.train.model_files import as_bytes, lay_out, load_model_state, read_description, save_model

DESCRIPTION = {"model": {"name": "tiny", "options": {"width": 3}}, "step": 7}


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_a_saved_model_comes_back_bit_for_bit_buffers_included(tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "model.safetensors"
    model(torch.randn(2, 3, 3, 3))
    save_model(model, path, DESCRIPTION)
    other = make_model(1)
    load_model_state(other, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_the_description_comes_back(tmp_path: Path) -> None:
    save_model(make_model(), tmp_path / "model.safetensors", DESCRIPTION)
    description = read_description(tmp_path / "model.safetensors")
    assert {key: description[key] for key in DESCRIPTION} == DESCRIPTION


def test_others_can_read_the_file(tmp_path: Path) -> None:
    save_model(make_model(), tmp_path / "model.safetensors", DESCRIPTION)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(make_model().state_dict())


def test_the_same_model_is_the_same_bytes(tmp_path: Path) -> None:
    files = set()
    for _ in range(8):
        save_model(make_model(), tmp_path / "model.safetensors", DESCRIPTION)
        files.add((tmp_path / "model.safetensors").read_bytes())
    assert len(files) == 1


def test_a_tensor_that_is_a_view_is_saved_as_it_looks(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    model.weight.data = torch.arange(6.0).view(3, 2).t()
    save_model(model, tmp_path / "model.safetensors", DESCRIPTION)
    other = nn.Linear(3, 2)
    load_model_state(other, tmp_path / "model.safetensors")
    assert other.weight.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step-000001" / "model.safetensors"
    save_model(make_model(), path, DESCRIPTION)
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_a_failure_leaves_the_file_before_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(make_model(), path, DESCRIPTION)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_model(make_model(1), path, {"step": object()})
    assert path.read_bytes() == before


def test_a_file_that_is_not_there_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"give the model\.safetensors of a run"):
        read_description(tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 100, b"\x10" + bytes(7) + b"{" * 16])
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a readable safetensors file"):
        read_description(path)


@pytest.mark.parametrize(
    "metadata", [None, {"dtrain": '{"format": "dtrain-model-99"}'}, {"dtrain": "[]"}, {"dtrain": "null"}]
)
def test_a_model_that_dtrain_did_not_save_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(ValueError, match="was not saved by dtrain"):
        read_description(path)


def test_metadata_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path, {"dtrain": "{half"})
    with pytest.raises(ValueError, match=r"model\.safetensors: not a readable"):
        read_description(path)


def tensors_of_all_kinds() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    kinds = {str(dtype): torch.randn(3, 5).mul(9).to(dtype) for dtype in KINDS}
    return {
        **kinds,
        "scalar": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
        "turned": torch.randn(4, 3).t(),
        "ö": RANDOM,
    }


KINDS = (torch.float64, torch.int64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16)
KINDS += (torch.int8, torch.uint8, torch.bool, torch.complex64)
RANDOM = torch.get_rng_state()


@pytest.mark.parametrize("metadata", [None, {"a": 1, "ö": [2]}], ids=["", "metadata"])
def test_what_is_laid_out_is_byte_for_byte_what_the_library_writes(metadata: dict[str, Any] | None) -> None:
    tensors = tensors_of_all_kinds()
    told = None if metadata is None else {"dtrain": json.dumps(metadata, sort_keys=True)}
    expected = save({name: tensor.contiguous() for name, tensor in tensors.items()}, told)
    assert bytes(as_bytes(lay_out(tensors, metadata))) == expected


def test_a_buffer_is_written_over_where_it_fits_and_what_becomes_of_a_tensor_does_not_reach_it() -> None:
    tensor = torch.ones(5)
    first = lay_out({"a": tensor})
    tensor.mul_(2)
    assert load(bytes(as_bytes(first)))["a"].tolist() == [1] * 5
    second = lay_out({"a": tensor}, buffer=first)
    assert second.data_ptr() == first.data_ptr()
    assert load(bytes(as_bytes(second)))["a"].tolist() == [2] * 5
    assert load(bytes(as_bytes(lay_out({"a": tensor[:3]}, buffer=first))))["a"].tolist() == [2] * 3
