from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dtrain.train.optimizers import OPTIMIZERS, AdamW, Sgd
from dtrain.train.schedule import Schedule, constant, cosine, poly, step_decay, with_warmup


def train(optimizer: Any, model: nn.Module, steps: int = 5) -> Tensor:
    for step in range(steps):
        torch.manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 7))


def test_sgd_is_torch_s_bit_for_bit() -> None:
    one, two = model(), model()
    ours = Sgd(learning_rate=0.1, momentum=0.8, weight_decay=0.01, nesterov=True).build(one.parameters())
    theirs = torch.optim.SGD(two.parameters(), lr=0.1, momentum=0.8, weight_decay=0.01, nesterov=True)
    assert torch.equal(train(ours, one), train(theirs, two))


def test_adamw_is_torch_s() -> None:
    one, two = model(), model()
    ours = AdamW(learning_rate=0.01, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1).build(one.parameters())
    theirs = torch.optim.AdamW(two.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, foreach=False)
    assert torch.allclose(train(ours, one), train(theirs, two), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_that_are_equal_or_zero_stay_so(name: str) -> None:
    """Pruned weights get gradients of zero, shared ones equal gradients, whatever place in a vector they have."""
    weight = nn.Parameter(torch.full((1003,), 0.25))
    pruned = nn.Parameter(torch.zeros(77))
    optimizer = OPTIMIZERS[name](learning_rate=0.01, weight_decay=0.1).build([weight, pruned])
    for step in range(20):
        weight.grad = torch.full_like(weight, 0.3 - 0.017 * step)
        pruned.grad = torch.zeros_like(pruned)
        optimizer.step()
    assert len(weight.unique()) == 1
    assert not pruned.any()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", constant()),
        ("poly", poly(10, 2.0)),
        ("cosine", cosine(10)),
        ("step", step_decay(4, 0.5)),
    ],
    ids=["constant", "poly", "cosine", "step"],
)
def test_all_have_the_same_schedules(name: str, schedule: Any, expected: Schedule) -> None:
    options: Any = {"schedule": schedule, "power": 2.0, "step_size": 4, "gamma": 0.5, "warmup_steps": 2}
    factors, warmed_up = OPTIMIZERS[name](**options).factors(10), with_warmup(expected, 2)
    assert [factors(step) for step in range(11)] == [warmed_up(step) for step in range(11)]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sgd", {"momentum": 1.0}, "optimizer.momentum must be"),
        ("sgd", {"nesterov": True, "momentum": 0.0}, "optimizer.nesterov=true needs"),
        ("adamw", {"beta1": 1.0}, "optimizer.beta1 must be"),
        ("adamw", {"beta2": -0.1}, "optimizer.beta2 must be"),
        ("adamw", {"eps": 0.0}, "optimizer.eps must be"),
        ("adamw", {"learning_rate": 0.0}, "optimizer.learning_rate must be"),
        ("adamw", {"clip_norm": 0.0}, "optimizer.clip_norm must be"),
        ("sgd", {"schedule": "step"}, "optimizer.schedule=step needs optimizer.step_size"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OPTIMIZERS[name](**options)


def test_each_says_how_to_turn_its_momentum_off() -> None:
    assert Sgd().has_momentum and AdamW().has_momentum
    assert (Sgd().tried_as, AdamW().tried_as) == ("sgd", "adamw")
    assert Sgd(momentum=0.5).tried_as is None and AdamW(beta1=0.0).tried_as is None
    momentum, without = Sgd(weight_decay=0.001).hand_over_momentum()
    assert (momentum, without.has_momentum) == (0.9, False)
    assert without.weight_decay == pytest.approx(0.01)
    assert not Sgd(momentum=0.0).has_momentum
    assert not AdamW(beta1=0.0).has_momentum
    assert Sgd().without_momentum.startswith("optimizer.momentum=0")
    assert AdamW().without_momentum == "optimizer.beta1=0"
