"""A short run of benchmarks/fuzz.py over every format but packed models, whose run is with their tests."""

from __future__ import annotations

import json
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import hostile_files
import hostile_payloads
import hostile_texts
from hostile import attempts

from dtrain.pack import pack, parse_safetensors, to_bytes
from dtrain.plan.link import read_link
from dtrain.train.checkpoint import open_checkpoint
from dtrain.vision.models import load_weights

FORMATS = {**hostile_texts.formats(), **hostile_files.formats(), **hostile_payloads.formats()}
SLOW = ("run's", "payload", "model", "weights, npz")


@pytest.fixture(autouse=True)
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_inputs_are_read_or_refused_in_one_line_soon_and_in_little_memory(name: str) -> None:
    inputs = 4 if name.startswith(SLOW) else 40
    list(attempts(FORMATS[name], 2, seed=1))  # imports
    outcomes = list(attempts(FORMATS[name], inputs, seed=1))
    assert not [(seed, outcome) for seed, outcome in outcomes if outcome.is_fault]


@pytest.mark.parametrize("name", ["manifest", "checkpoint"])
def test_what_was_changed_in_vain_is_read(name: str) -> None:
    """Else its sample is none, and all is refused at once."""
    assert "read" in {outcome.kind for _, outcome in attempts(FORMATS[name], 40, seed=1)}


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("model", 2000223),  # a name with a line break in it
        ("model", 2000639),  # half of a surrogate pair
        ("figures of a rank", 3002789),  # of no seconds
        ("calibration", 5014861),  # of a subject in two lines
    ],
)
def test_what_was_a_fault_once(name: str, seed: int) -> None:
    ((_, outcome),) = attempts(FORMATS[name], 1, seed)
    assert not outcome.is_fault


# what long runs found, by name


def test_metadata_of_null_are_none() -> None:
    text = b'{"__metadata__":null,"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    model = parse_safetensors(len(text).to_bytes(8, "little") + text + bytes(4), Path("m"))
    assert to_bytes(pack(model))


def test_what_a_parser_says_of_hostile_words_is_short_and_printable(tmp_path: Path) -> None:
    for word in ("x" * 5000, "\x1b[2J", "a\nb"):
        (tmp_path / "link.json").write_text(json.dumps({"link": {word: 1}}))
        (tmp_path / "manifest.json").write_text(json.dumps({"format": word}))
        for read in (lambda: read_link(str(tmp_path / "link.json"), None), lambda: open_checkpoint(tmp_path)):
            with pytest.raises(ValueError) as refused:
                read()
            assert str(refused.value).isprintable()
            assert len(str(refused.value)) < 500


def test_an_archive_of_a_version_that_nobody_has_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 85  # of the version that it needs to be unpacked
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.npz as weights: it is an archive without its end"):
        load_weights(nn.Linear(1, 1), path)
