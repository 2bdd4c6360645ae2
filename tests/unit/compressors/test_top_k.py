import pytest
import torch
from workers import Workers, bucket_layouts, check_mass, check_resume, final_loss, flat, saving

from dtrain.compressors import build
from dtrain.compressors.sparse_routes import ROUTES, split
from dtrain.compressors.top_k import TopK
from dtrain.exchange import Op

WORLD_SIZES = (1, 2, 3, 4, 8)


def message_bytes(density: float, numel: int, value_bits: int) -> int:
    k = max(1, round(density * numel))
    low = (numel // k).bit_length() - 1
    indices = -(-(k * low + k + ((numel - 1) >> low)) // 8)
    return indices + k * value_bits // 8 + (5 if value_bits < 32 else 0)


@pytest.mark.parametrize("value_bits", [8, 16, 32])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("numel", [1, 7, 100_003])
def test_bytes_are_the_formula_s(numel: int, world_size: int, value_bits: int) -> None:
    for density in (0.001, 0.3, 1.0):
        workers = Workers(TopK(density, value_bits), flat(numel), world_size)
        workers.exchange(workers.random())
        assert workers.traffic() == [(Op.ALL_GATHER, message_bytes(density, numel, value_bits))]
        workers = Workers(TopK(density, value_bits, split), flat(numel), world_size)
        workers.exchange(workers.random())
        size = message_bytes(density, -(-numel // world_size), value_bits)
        assert workers.traffic() == [(Op.ALL_TO_ALL, world_size * size), (Op.ALL_GATHER, size)]


@pytest.mark.parametrize(("exchange", "world_size", "least"), [("all_gather", 2, 1000), ("split", 8, 550)])
def test_saving_on_squeezenet(exchange: str, world_size: int, least: float) -> None:
    layouts, traffic = bucket_layouts("squeezenet1_0"), []
    for layout in layouts:
        workers = Workers(build("top_k", density=0.001, value_bits=8, exchange=exchange), layout, world_size)
        workers.exchange(workers.random())
        traffic += workers.traffic()
    assert saving(traffic, layouts, world_size) >= least


def test_the_split_exchange_saves_as_much_with_64_workers_as_with_4() -> None:
    def wire(n: int) -> float:
        return 2 * (n - 1) * message_bytes(0.001, -(-6_250_000 // n), 8)

    assert wire(64) / (2 * 63 / 64) == pytest.approx(wire(4) / (2 * 3 / 4), rel=0.05)


def test_a_kept_element_costs_at_most_2_6_bytes() -> None:
    for numel in (513_000, 735_424, 6_250_000, 37_752_832):
        assert message_bytes(0.001, numel, 8) / round(0.001 * numel) <= 2.6


def test_one_worker_keeps_exactly_the_k_largest() -> None:
    workers = Workers(TopK(0.1, 32), flat(100), 1)
    (value,) = workers.random()
    (result,) = workers.exchange([value])
    expected = torch.zeros(100)
    chosen = value.abs().topk(10).indices
    expected[chosen] = value[chosen]
    assert torch.equal(result.mean, expected)


@pytest.mark.parametrize("exchange", ROUTES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_mean_is_that_of_what_each_rank_selected(exchange: str, world_size: int) -> None:
    """At full density, without rounding, nothing is left out."""
    workers = Workers(TopK(1.0, 32, ROUTES[exchange]), flat(37), world_size)
    values = workers.random()
    for result in workers.exchange(values):
        assert torch.allclose(result.mean, torch.stack(values).mean(0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [0.0, 1e-41, 1.0, 1e30])
@pytest.mark.parametrize("exchange", ROUTES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("numel", [1, 7, 10_003])
def test_contributions_add_up_to_the_mean(numel: int, world_size: int, exchange: str, scale: float) -> None:
    workers = Workers(build("top_k", density=0.01, exchange=exchange), flat(numel), world_size)
    for _ in range(3):
        check_mass(workers, workers.exchange([scale * value for value in workers.random()]))


@pytest.mark.parametrize("exchange", ROUTES)
def test_a_huge_value_reaches_everybody_at_once_and_stays_finite(exchange: str) -> None:
    workers = Workers(build("top_k", density=0.01, exchange=exchange), flat(1000), 3)
    values = workers.random()
    for value in values:
        value[500] = 3e38
    results = workers.exchange(values)
    check_mass(workers, results)
    assert results[0].mean.isfinite().all()
    assert results[0].mean[500].item() == pytest.approx(3e38, rel=1e-6)


@pytest.mark.parametrize("exchange", ROUTES)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_on_one_rank_is_not_finite_on_any(bad: float, exchange: str) -> None:
    workers = Workers(build("top_k", density=0.01, exchange=exchange), flat(1000), 3)
    values = workers.random()
    values[1][567] = bad
    for result in workers.exchange(values):
        assert not result.mean[567].isfinite()


def test_the_owner_of_a_share_contributes_what_it_leaves_out() -> None:
    """Two shares of 4, one element of each: the sum of share 0 is [3, 2, 0, 0], of which the owner sends 3."""
    workers = Workers(TopK(0.25, 32, split), flat(8), 2)
    one = torch.tensor([3.0, 1.0, 0, 0, 0, 0, 0, 5.0])
    two = torch.tensor([0, 2.0, 0, 0, 0, 0, 7.0, 0])
    zero, _ = workers.exchange([one, two])
    assert zero.mean.tolist() == [1.5, 0, 0, 0, 0, 0, 3.5, 0]
    assert workers.contributed.tolist() == [[3.0, -2.0, 0, 0, 0, 0, 0, 5.0], [0, 2.0, 0, 0, 0, 0, 7.0, -5.0]]


@pytest.mark.parametrize("exchange", ROUTES)
def test_what_is_not_sent_waits_in_the_residual(exchange: str) -> None:
    workers = Workers(build("top_k", density=0.05, exchange=exchange), flat(200), 4)
    given = sent = torch.zeros(200, dtype=torch.float64)
    for _ in range(30):
        values = workers.random()
        given = given + torch.stack(values).double().sum(0)
        sent = sent + 4 * workers.exchange(values)[0].mean.double()
    left = 4 * sum(state.residual.value.double() for state in workers.states)
    assert (given - sent - left).abs().max() <= 1e-4


@pytest.mark.parametrize("exchange", ROUTES)
def test_resume_is_bit_exact(exchange: str) -> None:
    check_resume(build("top_k", density=0.05, exchange=exchange), flat(1003), 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_come_back_as_they_were(dtype: torch.dtype) -> None:
    workers = Workers(TopK(1.0, 32), flat(9), 2)
    values = [torch.arange(9, dtype=dtype) for _ in range(2)]
    for result in workers.exchange(values):
        assert result.mean.dtype == dtype
        assert torch.equal(result.mean, values[0])


@pytest.mark.parametrize("exchange", ROUTES)
def test_it_converges_as_float32_does(exchange: str) -> None:
    assert final_loss(build("none")) < 0.01
    assert final_loss(build("top_k", density=0.05, exchange=exchange)) < 0.01
    assert final_loss(TopK(0.05, 8, ROUTES[exchange])) > 0.02  # and error feedback is why


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density=0 must be above 0"),
        ({"density": 1.5}, "density=1.5 must be above 0 and at most 1"),
        ({"value_bits": 4}, "value_bits=4 must be one of 8, 16, 32"),
        ({"exchange": "ring"}, "exchange=ring does not exist: choose one of all_gather, split"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("top_k", **options)
