from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.train.progress import Course, Place, Progress

courses = st.builds(Course, num_samples=st.integers(1, 500), step_samples=st.integers(1, 60))


def walk(course: Course, step_samples: int, start: Progress, end: Place) -> Progress:
    """Step by step, as a loader cuts an epoch."""
    progress = Progress(start.step, start.epoch, start.position)
    while progress.is_before(end):
        stop = end.position if progress.epoch == end.epoch else course.num_samples
        progress.advance(min(step_samples, stop - progress.position), course.num_samples)
    return progress


@given(courses, st.integers(0, 40))
def test_in_steps_as_planned_progress_is_the_number_of_steps(course: Course, num_steps: int) -> None:
    end = course.place(num_steps)
    progress = walk(course, course.step_samples, Progress(), end)
    assert course.steps(progress) == progress.step == num_steps
    assert (progress.epoch, progress.position) == (end.epoch, end.position)


@given(courses, st.integers(0, 20), st.integers(0, 20), st.integers(1, 90))
def test_steps_of_another_size_end_at_the_same_sample(course: Course, made: int, more: int, size: int) -> None:
    middle, end = course.place(made), course.place(made + more)
    start = Progress(made, middle.epoch, middle.position)
    progress = walk(course, size, start, end)
    assert (progress.epoch, progress.position) == (end.epoch, end.position)
    assert course.steps(progress) == made + more
    assert progress.step - made == course.steps_left(start, end, size)
    planned = course.samples(Progress(0, end.epoch, end.position))
    assert course.samples(progress) == planned


def test_a_step_of_another_size_may_end_between_two_of_the_plan() -> None:
    course, progress = Course(num_samples=100, step_samples=10), Progress(3, 0, 30)
    progress.advance(5, 100)
    assert course.steps(progress) == 3.5
    assert progress == Progress(4, 0, 35)


def test_samples_are_those_of_finished_epochs_and_of_the_one_that_runs() -> None:
    course = Course(num_samples=100, step_samples=30)
    seen = [course.samples(Progress(9, epoch, position)) for epoch, position in [(0, 0), (0, 90), (1, 0), (2, 30)]]
    assert seen == [0, 90, 100, 230]


def test_a_step_never_crosses_the_end_of_an_epoch() -> None:
    with pytest.raises(AssertionError):
        Progress(0, 0, 95).advance(10, 100)


def test_what_is_past_the_end_is_not_before_it() -> None:
    end = Place(1, 0)
    assert Progress(0, 0, 99).is_before(end)
    assert not Progress(0, 1, 0).is_before(end)
    assert not Progress(0, 2, 5).is_before(end)
