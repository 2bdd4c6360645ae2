import pytest

from dtrain.train.schedule import constant, cosine, poly, step_decay, with_warmup


def test_constant_is_one() -> None:
    assert [constant()(step) for step in (0, 7, 10**6)] == [1.0, 1.0, 1.0]


def test_poly_of_power_one_falls_on_a_line_to_zero() -> None:
    assert [poly(4, 1.0)(step) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_poly_of_power_two_is_the_square() -> None:
    assert poly(4, 2.0)(1) == 0.75**2


def test_cosine_falls_from_one_over_a_half_in_the_middle_to_zero() -> None:
    schedule = cosine(10)
    assert schedule(0) == 1.0
    assert schedule(5) == pytest.approx(0.5)
    assert schedule(10) == pytest.approx(0.0)


@pytest.mark.parametrize("schedule", [poly(10, 1.0), poly(10, 0.5), cosine(10)])
def test_beyond_the_end_it_stays_at_zero(schedule) -> None:
    assert schedule(11) == schedule(10_000) == pytest.approx(0.0)


def test_step_decay_multiplies_by_gamma_every_so_many_steps() -> None:
    schedule = step_decay(3, 0.1)
    assert [schedule(step) for step in range(7)] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])


def test_warm_up_ramps_to_the_schedule_and_never_starts_at_zero() -> None:
    schedule = with_warmup(poly(10, 1.0), 4)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.25 * 1.0, 0.5 * 0.9, 0.75 * 0.8, 1.0 * 0.7, 0.6])


def test_no_warm_up_is_the_schedule_itself() -> None:
    schedule = cosine(5)
    assert with_warmup(schedule, 0) is schedule


def test_a_step_may_begin_between_two_of_the_plan() -> None:
    assert poly(4, 1.0)(2.5) == 0.375
    assert step_decay(3, 0.5)(2.9) == 1.0
    assert with_warmup(constant(), 4)(0.5) == 0.375
