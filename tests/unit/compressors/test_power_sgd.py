import pytest
import torch
from torch import Tensor
from workers import Workers, bucket_layouts, check_mass, check_resume, final_loss, flat, saving

from dtrain.compressors import build
from dtrain.compressors.codecs.matrices import gains, orthonormal
from dtrain.compressors.power_sgd import PowerSgd
from dtrain.exchange import Bucket, Layout, Op, put_together, take_apart

WORLD_SIZES = (1, 2, 3, 4, 8)
MIXED = Layout(("norm", "conv", "bias", "tiny", "fc"), ((), (8, 4, 3, 3), (8,), (2, 2), (20, 30)))


def traffic_of(layouts: list[Layout], r: int) -> list[tuple[Op, int]]:
    """The formula: 4 (sum of r rows + elements of the others), then 4 (sum of r columns)."""
    traffic = []
    for layout in layouts:
        first = second = 0
        for shape, size in zip(layout.shapes, layout.sizes, strict=True):
            rows = shape[0] if len(shape) > 1 else 1
            columns = size // rows
            if len(shape) > 1 and r * (rows + columns) < rows * columns:
                first, second = first + 4 * r * rows, second + 4 * r * columns
            else:
                first += 4 * size
        traffic += [(Op.ALL_REDUCE, first), (Op.ALL_REDUCE, second)]
    return traffic


def matrix_of(rank: int, rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)


@pytest.mark.parametrize("r", [1, 2, 4])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_bytes_are_the_formula_s(world_size: int, r: int) -> None:
    workers = Workers(PowerSgd(r), MIXED, world_size)
    for _ in range(2):
        workers.exchange(workers.random())
        assert workers.traffic() == traffic_of([MIXED], r)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_saving_on_squeezenet_with_its_biases(world_size: int) -> None:
    layouts, traffic = bucket_layouts("squeezenet1_0"), []
    for layout in layouts:
        workers = Workers(build("power_sgd", power_sgd_rank=1), layout, world_size)
        workers.exchange(workers.random())
        traffic += workers.traffic()
    assert traffic == traffic_of(layouts, 1)
    assert saving(traffic, layouts, world_size) >= 89


@pytest.mark.parametrize("world_size", [2, 4])
def test_saving_on_squeezenet_with_one_all_reduce_a_step(world_size: int) -> None:
    """Over two steps, of which each has one of the factors."""
    layouts, traffic = bucket_layouts("squeezenet1_0"), []
    for layout in layouts:
        workers = Workers(build("power_sgd", power_sgd_rank=1, all_reduces=1), layout, world_size)
        for _ in range(2):
            workers.exchange(workers.random())
            traffic += workers.traffic()
    assert saving(traffic, [*layouts, *layouts], world_size) >= 135


@pytest.mark.parametrize(("all_reduces", "error"), [(1, 0.1), (2, 1e-3)])
def test_either_form_finds_a_matrix_of_its_rank(all_reduces: int, error: float) -> None:
    """With one all_reduce what was left out by one factor tilts the space that the other is given."""
    layout = Layout(("fc",), ((20, 30),))
    workers = Workers(build("power_sgd", power_sgd_rank=2, all_reduces=all_reduces), layout, 2)
    matrix = matrix_of(2, 20, 30)
    for _ in range(12):
        mean = workers.exchange([matrix.reshape(-1).clone() for _ in range(2)], commit=True)[0].mean
    assert (mean.view(20, 30) - matrix).norm() < error * matrix.norm()


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_saving_on_alexnet(world_size: int) -> None:
    layouts = bucket_layouts("alexnet")
    assert saving(traffic_of(layouts, 1), layouts, world_size) >= 1250


def test_what_does_not_gain_is_sent_as_it_is_in_the_first_round() -> None:
    assert not gains((), 1)
    assert not gains((1000,), 1)
    assert not gains((2, 2), 1)
    assert not gains((4, 4), 2)
    assert gains((4, 5), 2)
    assert not gains((0, 5), 1)
    workers = Workers(PowerSgd(1), MIXED, 3)
    values = workers.random()
    mean = dict(MIXED.pieces(workers.exchange(values)[0].mean))
    exact = dict(MIXED.pieces(Workers(build("none"), MIXED, 3).exchange(values)[0].mean))
    assert all(torch.equal(mean[name], exact[name]) for name in ("norm", "bias", "tiny"))
    assert not torch.allclose(mean["fc"], exact["fc"])


def test_a_bucket_without_matrices_takes_one_round_and_is_exact() -> None:
    workers = Workers(build("power_sgd"), flat(9), 3)
    values = workers.random()
    mean = workers.exchange(values)[0].mean
    assert workers.traffic() == [(Op.ALL_REDUCE, 36)]
    assert torch.allclose(mean, torch.stack(values).mean(0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("r", [1, 2, 4])
def test_a_mean_of_rank_r_is_found_in_one_step(r: int) -> None:
    layout = Layout(("a", "b"), ((40, 50), (30, 8, 3, 3)))
    mean = torch.cat((matrix_of(r, 40, 50).view(-1), matrix_of(r, 30, 72).view(-1)))
    noise = 10 * torch.randn(layout.numel, generator=torch.Generator().manual_seed(1))
    workers = Workers(PowerSgd(r), layout, 2)
    result = workers.exchange([mean + noise, mean - noise])[0].mean
    assert (result - mean).norm() <= 1e-4 * mean.norm()


def test_warm_start_turns_towards_the_best_approximation() -> None:
    layout = Layout(("weight",), ((30, 40),))
    value = torch.randn(30, 40, generator=torch.Generator().manual_seed(2))
    u, s, v = torch.linalg.svd(value)
    best = (u[:, :2] * s[:2]) @ v[:2]
    workers = Workers(PowerSgd(2), layout, 1)
    errors = [(workers.exchange([value.view(-1)])[0].mean.view(30, 40) - value).norm().item() for _ in range(200)]
    assert errors[0] > 1.05 * (best - value).norm()
    assert errors[-1] == pytest.approx((best - value).norm().item(), rel=1e-3)


@pytest.mark.parametrize("r", [1, 3])
def test_it_recovers_after_gradients_of_zeros(r: int) -> None:
    """Also where the first row and column stay zero, which is where a QR of zeros points."""
    layout = Layout(("weight",), ((20, 30),))
    workers = Workers(PowerSgd(r), layout, 2)
    for _ in range(3):
        result = workers.exchange([torch.zeros(600)] * 2)[0]
        assert not result.mean.any()
    value = matrix_of(r, 20, 30)
    value[:4], value[:, :4] = 0, 0
    mean = workers.exchange([value.reshape(-1)] * 2)[0].mean.view(20, 30)
    assert (mean - value).norm() <= 1e-4 * value.norm()


def test_a_direction_that_was_not_needed_is_there_when_it_is() -> None:
    layout = Layout(("weight",), ((20, 30),))
    workers = Workers(PowerSgd(3), layout, 1)
    for seed in range(3):
        workers.exchange([matrix_of(1, 20, 30, seed).view(-1)])
    value = matrix_of(3, 20, 30, seed=9)
    mean = workers.exchange([value.view(-1)])[0].mean.view(20, 30)
    assert (mean - value).norm() <= 1e-3 * value.norm()


@pytest.mark.parametrize("scale", [0.0, 1e-41, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("r", [1, 4])
def test_contributions_add_up_to_the_mean(r: int, world_size: int, scale: float) -> None:
    workers = Workers(build("power_sgd", power_sgd_rank=r), MIXED, world_size)
    for _ in range(3):
        results = workers.exchange([scale * value for value in workers.random()])
        check_mass(workers, results)
        assert results[0].mean.isfinite().all()


@pytest.mark.parametrize("huge", [1e30, 3e38])
def test_one_huge_value_is_not_lost(huge: float) -> None:
    layout = Layout(("weight",), ((20, 30),))
    workers = Workers(PowerSgd(2), layout, 3)
    values = workers.random()
    for value in values:
        value[123] = huge
    mean = workers.exchange(values)[0].mean
    assert mean.isfinite().all()
    assert mean[123].item() == pytest.approx(huge, rel=1e-5)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_on_one_rank_is_not_finite_on_any(bad: float) -> None:
    for name, place in (("conv", 50), ("bias", 290), ("fc", 700)):
        workers = Workers(build("power_sgd"), MIXED, 3)
        values = workers.random()
        values[1][place] = bad
        for result in workers.exchange(values):
            assert not dict(MIXED.pieces(result.mean))[name].isfinite().all()


def test_orthonormal_rows_span_the_rows_at_any_scale() -> None:
    rows = torch.randn(3, 50).clamp(-3, 3)
    for scale in (torch.tensor([[1e-40], [1.0], [1e38]]), torch.ones(3, 1)):
        q = orthonormal(rows * scale)
        assert torch.allclose(q @ q.t(), torch.eye(3), atol=1e-5)
        assert torch.allclose(rows @ q.t() @ q, rows, atol=1e-3)


@pytest.mark.parametrize("rows", [torch.zeros(3, 9), torch.ones(3, 9), torch.eye(9)[[0, 0, 0]]])
def test_rows_of_zeros_and_equal_rows_are_completed(rows: Tensor) -> None:
    q = orthonormal(rows)
    assert torch.allclose(q @ q.t(), torch.eye(3), atol=1e-5)


def test_factors_are_drawn_by_name_whatever_the_bucket() -> None:
    def parts(layout: Layout) -> dict[str, dict[str, Tensor]]:
        return take_apart(PowerSgd(2).init(Bucket(torch.zeros(layout.numel), layout)))

    together = parts(MIXED)
    assert together["fc"]["q"].shape == (2, 30)
    assert torch.equal(parts(Layout(("fc",), ((20, 30),)))["fc"]["q"], together["fc"]["q"])
    assert not torch.equal(parts(Layout(("f", "g"), ((20, 30),) * 2))["f"]["q"], together["fc"]["q"])


def test_the_factors_of_another_rank_are_refused() -> None:
    bucket = Bucket(torch.zeros(600), Layout(("fc",), ((20, 30),)))
    with pytest.raises(ValueError, match="saved with another compressor or other options"):
        put_together(PowerSgd(2).init(bucket), take_apart(PowerSgd(1).init(bucket)))


@pytest.mark.parametrize("r", [1, 4])
def test_resume_is_bit_exact(r: int) -> None:
    check_resume(build("power_sgd", power_sgd_rank=r), MIXED, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_come_back_as_they_were(dtype: torch.dtype) -> None:
    value = matrix_of(1, 20, 30).view(-1).to(dtype)
    workers = Workers(PowerSgd(1), Layout(("weight",), ((20, 30),)), 2)
    workers.states = [workers.compressor.init(Bucket(value, workers.layout))] * 2
    for result in workers.exchange([value, value]):
        assert result.mean.dtype == dtype
        assert torch.allclose(result.mean, value, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("r", [1, 2])
def test_it_converges_as_float32_does(r: int) -> None:
    assert final_loss(build("none")) < 0.01
    assert final_loss(build("power_sgd", power_sgd_rank=r)) < 0.01
    assert final_loss(PowerSgd(1)) > 0.02  # and error feedback is why


def test_a_rank_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="power_sgd_rank=0 must be at least 1"):
        build("power_sgd", power_sgd_rank=0)
    with pytest.raises(ValueError, match="power_sgd_rank=0 must be at least 1"):
        build("power_sgd", power_sgd_rank=0, all_reduces=1)
    with pytest.raises(ValueError, match="all_reduces=3 must be 1 or 2"):
        build("power_sgd", all_reduces=3)
