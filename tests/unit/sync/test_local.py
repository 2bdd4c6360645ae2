"""What H steps of each worker's own optimizer changed, averaged: rounds, ranks, masked momentum, what is not finite.

What holds with every compressor is in test_synchronizer_contract.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from threads import ThreadCommunicator, run_ranks
from torch import Tensor, nn

from dtrain.compressors import build
from dtrain.meter.ledger import Ledger
from dtrain.sync.every_step import EveryStep
from dtrain.sync.fragments import Fragments
from dtrain.sync.local import Local, Method
from dtrain.sync.outer import Outer
from dtrain.sync.rounds import Rounds
from dtrain.sync.synchronizer import NonFiniteGradientError

MILD: dict[str, dict[str, Any]] = {
    "top_k": {"density": 0.2},
    "random_k": {"density": 0.2},
}


def initial() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))


MODEL = initial()
"""Made once: the generator is of the whole process, and ranks are its threads."""


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-2)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


@dataclass
class Worker:
    """One rank's model, optimizer and synchroniser."""

    model: nn.Sequential
    optimizer: torch.optim.Optimizer
    synchronizer: Local
    ledger: Ledger
    rank: int

    def gradients(self, step: int) -> None:
        generator = torch.Generator().manual_seed(100 * step + self.rank)
        self.optimizer.zero_grad()
        self.model(torch.randn(4, 12, generator=generator)).square().mean().backward()

    def step(self, step: int) -> None:
        self.gradients(step)
        self.synchronizer.before_step()
        self.optimizer.step()
        self.synchronizer.after_step()

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])


def worker(
    communicator: ThreadCommunicator,
    name: str = "none",
    *,
    every: int = 1,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
    masks_momentum: bool = False,
    rounds: Rounds | None = None,
    outer: Outer | None = None,
    fragments: Fragments | None = None,
    **options: Any,
) -> Worker:
    model, ledger = copy.deepcopy(MODEL), Ledger()
    own = optimizer(model)
    compressor = build(name, **{**MILD.get(name, {}), **options})
    method = Method(rounds or Rounds(every), outer or Outer(), fragments or Fragments(), masks_momentum)
    synchronizer = Local(model, own, compressor, communicator, ledger, method=method)
    return Worker(model, own, synchronizer, ledger, communicator.rank)


def test_between_exchanges_each_has_weights_of_its_own_until_they_are_aligned() -> None:
    def body(communicator: ThreadCommunicator) -> tuple[Tensor, Tensor]:
        own = worker(communicator, every=4)
        for step in range(2):
            own.step(step)
        apart = own.weights
        own.synchronizer.align()
        assert own.synchronizer.align() == (0.0, 0.0)
        return apart, own.weights

    (apart, aligned), (other_apart, other_aligned) = run_ranks(2, body)
    assert not torch.equal(apart, other_apart)
    assert torch.equal(aligned, other_aligned)
    torch.testing.assert_close(aligned, (apart + other_apart) / 2)


def test_given_the_states_of_all_ranks_each_goes_on_with_its_own() -> None:
    def train(communicator: ThreadCommunicator) -> tuple[dict[str, Any], dict[str, Any]]:
        own = worker(communicator, "int4", every=2)
        for step in range(3):
            own.step(step)
        return own.synchronizer.state_dict(), own.model.state_dict()

    saved = run_ranks(2, train)

    def take_up(communicator: ThreadCommunicator) -> dict[str, Any]:
        own = worker(communicator, "int4", every=2)
        own.model.load_state_dict(saved[communicator.rank][1])
        own.synchronizer.load_state_dict(*(state for state, _ in saved))
        return own.synchronizer.state_dict()

    for (before, _), after in zip(saved, run_ranks(2, take_up), strict=True):
        assert (after["changed"], after["rank"]) == ([1], before["rank"])
        for name, parts in before["parameters"].items():
            assert all(torch.equal(after["parameters"][name][path], part) for path, part in parts.items())


def test_another_number_of_ranks_has_the_mean_of_the_optimizers_and_the_sum_of_residuals() -> None:
    def train(communicator: ThreadCommunicator) -> dict[str, Any]:
        own = worker(communicator, "int4")
        for step in range(3):
            own.step(step)
        return own.synchronizer.state_dict()

    saved = run_ranks(2, train)

    def take_up(communicator: ThreadCommunicator) -> dict[str, Any]:
        own = worker(communicator, "int4")
        own.synchronizer.load_state_dict(*saved)
        return own.synchronizer.state_dict()

    taken = run_ranks(3, take_up)
    for name, _ in MODEL.named_parameters():
        before, after = ([state["parameters"][name] for state in states] for states in (saved, taken))
        mean = sum(parts["optimizer.exp_avg"] for parts in before) / 2
        assert all(torch.allclose(parts["optimizer.exp_avg"], mean) for parts in after)
        assert all(parts["optimizer.step"] == 3 for parts in after)
        left = [sum(parts["residual"] for parts in side) for side in (before, after)]
        torch.testing.assert_close(left[0], left[1])


def test_a_round_under_way_is_for_as_many_ranks_only() -> None:
    def body(communicator: ThreadCommunicator) -> dict[str, Any]:
        own = worker(communicator, every=2)
        own.step(0)
        return own.synchronizer.state_dict()

    saved = run_ranks(2, body)

    def take_up(communicator: ThreadCommunicator) -> None:
        with pytest.raises(ValueError, match=r"saved 1 steps after the last exchange by 2 ranks.*call align\(\)"):
            worker(communicator).synchronizer.load_state_dict(*saved)

    run_ranks(1, take_up)


@pytest.mark.parametrize("name", ["none", "int4", "top_k", "power_sgd", "random_k"])
def test_a_gradient_that_is_not_finite_on_one_rank_leaves_weights_and_states_as_they_were(name: str) -> None:
    def body(communicator: ThreadCommunicator) -> None:
        own = worker(communicator, name)
        own.step(0)
        weights, state = own.weights, own.synchronizer.state_dict()
        own.gradients(1)
        if own.rank == 1:
            grad = own.model[2].weight.grad
            assert grad is not None
            grad[1, 2] = float("nan")
        own.synchronizer.before_step()
        own.optimizer.step()
        with pytest.raises(NonFiniteGradientError, match="is not finite in step 1"):
            own.synchronizer.after_step()
        own.synchronizer.discard()
        assert torch.equal(own.weights, weights)
        now = own.synchronizer.state_dict()
        for parameter, parts in state["parameters"].items():
            for path, part in parts.items():
                if not path.startswith("optimizer.") or own.rank == 1:
                    assert torch.equal(now["parameters"][parameter][path], part), (parameter, path)
        own.step(2)
        assert torch.isfinite(own.weights).all() and not torch.equal(own.weights, weights)

    run_ranks(2, body)


def test_a_step_left_out_on_one_rank_keeps_nobody_waiting() -> None:
    def body(communicator: ThreadCommunicator) -> Tensor:
        own = worker(communicator)
        own.gradients(0)
        own.synchronizer.before_step()
        if own.rank == 0:
            own.synchronizer.discard()
        else:
            own.optimizer.step()
            own.synchronizer.after_step()
        return own.weights

    first, second = run_ranks(2, body)
    assert torch.equal(first, second)
    start = torch.cat([p.detach().reshape(-1) for p in MODEL.parameters()])
    assert 0 < (first - start).abs().max() <= 0.5e-2 + 1e-4  # half of one step of AdamW


def test_fewer_rounds_send_fewer_bytes() -> None:
    def body(communicator: ThreadCommunicator) -> tuple[int, int]:
        return tuple(  # type: ignore[return-value]
            sum(own.synchronizer._states.step for _ in [own.step(step) for step in range(6)][:1])
            for own in (worker(communicator, every=1), worker(communicator.duplicate(), every=3))
        )

    assert run_ranks(2, body)[0] == (6, 2)


def test_no_step_between_exchanges_is_refused() -> None:
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        run_ranks(1, lambda communicator: worker(communicator, every=0))


def test_the_top_of_updates_with_masked_momentum_is_deep_gradient_compression() -> None:
    """At one exchange a step and a learning rate that is a power of 2, which leaves roundings as they are."""
    rate, momentum = 0.25, 0.9

    def heavy(model: nn.Module) -> torch.optim.Optimizer:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim > 1)  # biases are small enough to be sent whole
        return torch.optim.SGD(model.parameters(), rate, momentum=momentum)

    def of_updates(communicator: ThreadCommunicator) -> Tensor:
        own = worker(communicator, "top_k", optimizer=heavy, masks_momentum=True)
        for step in range(8):
            own.step(step)
        return own.weights

    def of_gradients(communicator: ThreadCommunicator) -> Tensor:
        model = copy.deepcopy(MODEL)
        optimizer = heavy(model)
        optimizer.param_groups[0]["momentum"] = 0.0
        dgc = build("dgc", density=0.2, momentum=momentum)
        synchronizer: Any = EveryStep(model, dgc, communicator, Ledger())
        own = Worker(model, optimizer, synchronizer, Ledger(), communicator.rank)
        for step in range(8):
            own.step(step)
        return own.weights

    torch.testing.assert_close(run_ranks(2, of_updates)[0], run_ranks(2, of_gradients)[0])


def test_momentum_of_what_was_sent_is_masked_but_for_parameters_that_are_sent_whole() -> None:
    def heavy(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def body(communicator: ThreadCommunicator) -> tuple[list[float], list[float]]:
        found = []
        for masks_momentum in (True, False):
            own = worker(
                communicator, "top_k", optimizer=heavy, every=2, exempt_below=20, masks_momentum=masks_momentum
            )
            for step in range(2):
                own.step(step)
            momenta = [own.optimizer.state[p]["momentum_buffer"] for p in own.model.parameters()]
            found.append([float((m == 0).float().mean()) for m in momenta])
        return found[0], found[1]

    for masked, kept in run_ranks(2, body):
        assert kept == [0.0] * 4
        weight, bias, last_weight, last_bias = masked
        assert (bias, last_bias) == (0.0, 0.0)  # exempt: sent whole
        sent = (weight * 16 * 12 + last_weight * 3 * 16) / (16 * 12 + 3 * 16)
        assert sent == pytest.approx(0.2, abs=0.01)
