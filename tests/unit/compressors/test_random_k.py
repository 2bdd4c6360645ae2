import pytest
import torch
from workers import Workers, bucket_layouts, check_mass, check_resume, final_loss, flat, saving

from dtrain.compressors import build
from dtrain.compressors.random_k import RandomK
from dtrain.exchange import Layout, Op


def drawn(workers: Workers) -> set[int]:
    """What the next step exchanges."""
    ones = [torch.ones(workers.layout.numel) for _ in range(workers.world_size)]
    return set(workers.exchange(ones)[0].mean.nonzero().view(-1).tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("numel", [1, 7, 100_003])
def test_bytes_are_4_for_each_element_kept(numel: int, world_size: int) -> None:
    for density in (0.001, 0.3, 1.0):
        workers = Workers(RandomK(density), flat(numel), world_size)
        workers.exchange(workers.random())
        assert workers.traffic() == [(Op.ALL_REDUCE, 4 * max(1, round(density * numel)))]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_saving_on_squeezenet_is_one_over_the_density(world_size: int) -> None:
    layouts, traffic = bucket_layouts("squeezenet1_0"), []
    for layout in layouts:
        workers = Workers(build("random_k", density=0.001), layout, world_size)
        workers.exchange(workers.random())
        traffic += workers.traffic()
    assert saving(traffic, layouts, world_size) == pytest.approx(1000, rel=0.001)


def test_one_element_is_drawn_from_each_of_k_equal_strata() -> None:
    workers = Workers(RandomK(0.1), flat(200), 1)
    for _ in range(20):
        assert sorted(index // 10 for index in drawn(workers)) == list(range(20))


def test_every_element_has_its_turn() -> None:
    workers = Workers(RandomK(0.25), flat(30), 1)
    assert set.union(*(drawn(workers) for _ in range(100))) == set(range(30))


def test_draws_depend_on_seed_step_and_layout_alone() -> None:
    def draw(seed: int = 1, step: int = 0, name: str = "a", world_size: int = 1) -> set[int]:
        workers = Workers(RandomK(0.01), Layout((name,), ((10_000,),)), world_size, seed=seed)
        workers.step = step
        return drawn(workers)

    assert draw() == draw() == draw(world_size=3)
    assert len({frozenset(d) for d in (draw(), draw(seed=2), draw(step=1), draw(name="b"))}) == 4


@pytest.mark.parametrize("scale", [0.0, 1e-41, 1.0, 1e30])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("numel", [1, 7, 10_003])
def test_contributions_add_up_to_the_mean(numel: int, world_size: int, scale: float) -> None:
    workers = Workers(build("random_k", density=0.1), flat(numel), world_size)
    for _ in range(3):
        check_mass(workers, workers.exchange([scale * value for value in workers.random()]))


def test_at_full_density_it_is_the_mean() -> None:
    workers = Workers(RandomK(1.0), flat(17), 3)
    values = workers.random()
    expected = Workers(build("none"), flat(17), 3).exchange(values)[0].mean
    assert torch.equal(workers.exchange(values)[0].mean, expected)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_seen_in_the_same_step_even_if_it_is_not_drawn(bad: float) -> None:
    for place in range(10):
        workers = Workers(build("random_k", density=0.1), flat(10), 2)
        values = workers.random()
        values[1][place] = bad
        for result in workers.exchange(values):
            assert not result.mean.isfinite().all()


def test_a_huge_value_is_no_false_alarm() -> None:
    workers = Workers(RandomK(0.1), flat(100), 2)
    assert workers.exchange([torch.full((100,), 3e38)] * 2)[0].mean.isfinite().all()


def test_resume_is_bit_exact() -> None:
    check_resume(build("random_k", density=0.1), flat(1003), 3)


def test_it_converges_as_float32_does() -> None:
    assert final_loss(build("none"), steps=200) < 0.001
    assert final_loss(build("random_k", density=0.1), steps=200) < 0.001
    assert final_loss(RandomK(0.1), steps=200) > 0.01  # and error feedback is why


@pytest.mark.parametrize("density", [0.0, -1.0, 1.01, float("nan")])
def test_a_density_out_of_range_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match=r"must be above 0 and at most 1|must be a finite number"):
        build("random_k", density=density)
