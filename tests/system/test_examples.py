"""The examples as a reader would run them, on two ranks: what they say of accuracy and bytes at their end.

Those with wrappers have more to hold, in test_wrappers.py, and gpt.py in test_gpt_example.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launchers import HOROVOD, needs_horovod
from programs import REPOSITORY, on_ranks, run

pytestmark = pytest.mark.timeout(600)


def said(command: list[str], folder: Path) -> Any:
    """The line of JSON at its end."""
    out = run(command, folder).expect(0).stdout
    return json.loads(next(line[line.index('{"') :] for line in out.splitlines() if '{"' in line))


def example(name: str) -> str:
    return str(REPOSITORY / "examples" / name)


def test_a_resnet_learns_the_digits_for_an_eighth_of_the_bytes(tmp_path: Path) -> None:
    result = said(on_ranks(2, example("resnet.py"), "--compress=int4", "--epochs=2"), tmp_path)
    assert result["accuracy"] > 93
    assert 7.8 < result["fp32_bytes"] / result["exchanged_bytes"] < 8


def test_a_character_gpt_under_adamw_learns_for_an_eighth_of_the_bytes(tmp_path: Path) -> None:
    result = said(on_ranks(2, example("gpt.py"), "--compress=int4", "--steps=60"), tmp_path)
    assert result["validation_loss"] < 3.0  # 4.6 at random, 2.25 after 400 steps
    assert 7.8 < result["saving_vs_fp32"] < 8


def test_fsdp2_gathers_parameters_twice_a_step_but_for_the_outermost_s(tmp_path: Path) -> None:
    result = said(on_ranks(2, example("fsdp2_gpt.py"), "--epochs=1"), tmp_path)
    sent, ddp = result["sent_bytes"], result["ddp_bytes"]
    assert result["loss"] < 2.6  # 3.5 at random, 1.855 at best
    assert sent["reduce_scatter"] == ddp  # gloo has none of its own, and sums everything everywhere
    assert 0.98 < sent["all_gather"] / ddp < 1


@needs_horovod
def test_over_horovod_one_line_takes_the_place_of_its_optimizer(tmp_path: Path) -> None:
    result = said(HOROVOD.program(2, example("horovod_gpt.py"), "--compress=int4", "--epochs=1"), tmp_path)
    assert result["loss"] < 2.6
    assert 7.8 < result["fp32_bytes"] / result["exchanged_bytes"] < 8
