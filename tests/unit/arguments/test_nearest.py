from __future__ import annotations

import pytest

from dtrain.arguments import check_name, nearest

SETTINGS = ["batch_size", "model", "optimizer", "optimizer.learning_rate", "optimizer.momentum", "compressor.density"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("batchsize", "batch_size"),
        ("modle", "model"),
        ("lr", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("momentum", "optimizer.momentum"),
        ("densty", "compressor.density"),
    ],
)
def test_a_slip_and_initials_and_a_name_without_its_group_are_near(name: str, meant: str) -> None:
    assert nearest(name, SETTINGS) == f" (did you mean {meant}?)"


def test_nothing_is_near_a_name_that_is_like_none() -> None:
    assert nearest("quux", SETTINGS) == ""


def test_the_message_says_the_nearest_and_all_that_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"^model=alexnt does not exist \(did you mean alexnet\?\): choose one of alexnet, "
    ):
        check_name("model=", "alexnt", ["alexnet", "vgg"])
