from itertools import pairwise

import pytest
import torch
from torch import Tensor
from workers import Workers, bucket_layouts, check_mass, check_resume, final_loss, flat, saving

from dtrain.compressors import build
from dtrain.compressors.dgc import Dgc
from dtrain.compressors.sparse_routes import ROUTES, all_gather
from dtrain.exchange import Exchanged, Layout


class Reference:
    """One worker of Algorithm 4, on dense vectors, with exact values."""

    def __init__(self, numel: int, momentum: float, k: int) -> None:
        self.u, self.v, self.momentum, self.k = torch.zeros(numel), torch.zeros(numel), momentum, k

    def send(self, gradient: Tensor) -> Tensor:
        self.u = self.momentum * self.u + gradient
        self.v = self.v + self.u
        mask = torch.zeros_like(self.v).index_fill_(0, self.v.abs().topk(self.k).indices, 1.0)
        sent = self.v * mask
        self.v, self.u = self.v * (1 - mask), self.u * (1 - mask)
        return sent


def test_it_is_algorithm_4_of_the_paper() -> None:
    workers = Workers(Dgc(density=0.1, value_bits=32, momentum=0.7), flat(100), 3)
    references = [Reference(100, 0.7, 10) for _ in range(3)]
    for _ in range(12):
        values = workers.random()
        mean = workers.exchange(values)[0].mean
        expected = sum(r.send(value) for r, value in zip(references, values, strict=True)) / 3
        assert torch.allclose(mean, expected, rtol=1e-5, atol=1e-6)
        for state, reference in zip(workers.states, references, strict=True):
            assert torch.allclose(3 * state.velocity.value, reference.u, rtol=1e-5, atol=1e-6)
            assert torch.allclose(3 * state.accumulated.value, reference.v, rtol=1e-5, atol=1e-6)


def test_at_full_density_it_hands_over_every_gradient_once() -> None:
    """All momentum is masked in each step."""
    workers = Workers(Dgc(density=1.0, value_bits=32), flat(40), 2)
    for _ in range(3):
        values = workers.random()
        assert torch.allclose(workers.exchange(values)[0].mean, torch.stack(values).mean(0), rtol=1e-6, atol=1e-7)


def test_the_density_falls_exponentially_from_a_quarter() -> None:
    compressor = Dgc(density=0.001, warmup_steps=100)
    densities = [compressor.density_at(step) for step in range(102)]
    assert densities[0] == 0.25
    ratios = [after / before for before, after in pairwise(densities[:101])]
    assert ratios == pytest.approx([(0.001 / 0.25) ** 0.01] * 100)
    assert densities[100:] == [0.001, 0.001]
    assert Dgc(density=0.5, warmup_steps=10).density_at(3) == 0.5
    assert Dgc(density=0.001).density_at(0) == 0.001


@pytest.mark.parametrize("exchange", ROUTES)
def test_messages_have_the_size_of_top_k_at_the_step_s_density(exchange: str) -> None:
    compressor = Dgc(0.01, warmup_steps=3, route=ROUTES[exchange])
    workers = Workers(compressor, flat(5000), 2)
    sizes = []
    for step in range(5):
        workers.exchange(workers.random())
        sizes.append(workers.traffic())
        top_k = Workers(build("top_k", density=compressor.density_at(step), exchange=exchange), flat(5000), 2)
        top_k.exchange(top_k.random())
        assert sizes[step] == top_k.traffic()
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3] == sizes[4]


@pytest.mark.parametrize(("exchange", "world_size", "least"), [("all_gather", 2, 1000), ("split", 8, 550)])
def test_saving_on_squeezenet(exchange: str, world_size: int, least: float) -> None:
    layouts, traffic = bucket_layouts("squeezenet1_0"), []
    for layout in layouts:
        workers = Workers(build("dgc", density=0.001, exchange=exchange), layout, world_size)
        workers.exchange(workers.random())
        traffic += workers.traffic()
    assert saving(traffic, layouts, world_size) >= least


@pytest.mark.parametrize("scale", [0.0, 1e-41, 1.0, 1e30])
@pytest.mark.parametrize("exchange", ROUTES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("numel", [1, 7, 10_003])
def test_contributions_add_up_to_the_mean(numel: int, world_size: int, exchange: str, scale: float) -> None:
    workers = Workers(build("dgc", density=0.01, exchange=exchange), flat(numel), world_size)
    for _ in range(3):
        check_mass(workers, workers.exchange([scale * value for value in workers.random()]))


@pytest.mark.parametrize("exchange", ROUTES)
def test_what_is_accumulated_and_not_contributed_is_kept(exchange: str) -> None:
    """Also what 8-bit values and the owner of a share leave out."""
    workers = Workers(Dgc(0.05, momentum=0.0, route=ROUTES[exchange]), flat(200), 3)
    given = sent = torch.zeros(200, dtype=torch.float64)
    for _ in range(20):
        values = workers.random()
        given = given + torch.stack(values).double().sum(0)
        sent = sent + 3 * workers.exchange(values)[0].mean.double()
    left = 3 * sum(state.accumulated.value.double() for state in workers.states)
    assert (given - sent - left).abs().max() <= 1e-4


def test_local_gradients_are_clipped_by_parameter_to_their_share_of_the_norm() -> None:
    layout = Layout(("large", "small"), ((3,), (2, 2)))
    workers = Workers(Dgc(density=1.0, value_bits=32, clip_norm=2.0), layout, 4)
    large, small = torch.tensor([0.0, 3e38, 0.0]), torch.tensor([0.1, 0.2, 0.3, -0.4])
    mean = workers.exchange([torch.cat((large, small))] * 4)[0].mean
    assert mean[:3].tolist() == pytest.approx([0.0, 1.0, 0.0])  # 2 / sqrt(4)
    assert torch.equal(mean[3:], small)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_on_one_rank_is_not_finite_on_any(bad: float, clip_norm: float | None) -> None:
    workers = Workers(Dgc(density=0.01, clip_norm=clip_norm), flat(1000), 3)
    values = workers.random()
    values[1][567] = bad
    for result in workers.exchange(values):
        assert not result.mean.isfinite().all()


def test_a_step_that_does_not_count_leaves_no_trace() -> None:
    one, two = Workers(Dgc(0.05), flat(300), 2), Workers(Dgc(0.05), flat(300), 2)
    for step in range(6):
        values = one.random()
        if step % 2:
            two.exchange([value * 100 for value in values], commit=False)
        results: list[tuple[Exchanged, Exchanged]] = list(zip(one.exchange(values), two.exchange(values), strict=True))
        assert all(torch.equal(a.mean, b.mean) for a, b in results)


@pytest.mark.parametrize("exchange", ROUTES)
def test_resume_is_bit_exact(exchange: str) -> None:
    check_resume(build("dgc", density=0.05, exchange=exchange, warmup_steps=4), flat(1003), 3)


@pytest.mark.parametrize("exchange", ROUTES)
def test_it_converges_as_float32_with_momentum_does(exchange: str) -> None:
    assert final_loss(build("none"), momentum=0.9) < 1e-3
    assert final_loss(build("dgc", density=0.1, exchange=exchange), momentum=0.0) < 1e-3
    assert final_loss(build("none"), momentum=0.0) > 1e-3  # and momentum is why


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum=1.0 must be at least 0 and less than 1"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be 0 or more"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 must be above 0, or null for no clipping"),
        ({"density": 0}, "density=0 must be above 0"),
        ({"value_bits": 9}, "value_bits=9 must be one of 8, 16, 32"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("dgc", **options)


def test_the_default_route_is_all_gather() -> None:
    assert build("dgc") == Dgc(route=all_gather)
