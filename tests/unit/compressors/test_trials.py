"""What was measured to fail is refused, with what held instead; everything else is left alone."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from dtrain.compressors import COMPRESSORS, trials
from dtrain.compressors.trials import Trial, check, in_words, load_trials, that_hold, trials_with


def trial(compressor: str, cost: float | None, saving: float | None = 10.0, **more: Any) -> Trial:
    fields: dict[str, Any] = {
        "task": "digits",
        "optimizer": "sgd",
        "exchanged": "gradient",
        "options": {},
        "every": 1,
        "world_size": 2,
        "seeds": 1,
    }
    return Trial(**{**fields, "compressor": compressor, "cost": cost, "saving": saving, **more})


TRIED = (
    trial("int4", 0.2, 7.9),
    trial("int4", -0.4, 7.9, task="gpt"),
    trial("ternary", 0.1, 19.8, options={"rounding": "stochastic"}, exchanged="update"),
    trial("top_k", 52.0, 190.0, options={"density": 0.01}),
    trial("top_k", 0.5, 40.0, options={"density": 0.05}),
    trial("dgc", 0.6, 1598.0, options={"density": 0.001}),
    trial("dgc", 3.0, 1598.0, options={"density": 0.001}, task="gpt"),
    trial("dgc", 0.4, 1598.0, options={"density": 0.001}, optimizer="adamw"),
    trial("dgc", 7.0, 1598.0, options={"density": 0.001}, optimizer="adamw", task="gpt"),
    trial("one_bit", None, 31.0),
    trial("power_sgd", 9.0, 20.0, options={"power_sgd_rank": 4}),
)


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "load_trials", lambda: TRIED)


def asked(compressor: str, **more: Any) -> None:
    settings: dict[str, Any] = {"optimizer": "sgd", "exchanged": "gradient", "options": {}, "world_size": 2, **more}
    check(compressor, settings.pop("options"), **settings)


def test_a_method_that_failed_is_refused_with_its_cost_and_what_held() -> None:
    with pytest.raises(ValueError) as caught:
        asked("top_k", options={"density": 0.01})
    message = str(caught.value)
    assert message.startswith(
        "top_k density=0.01 of gradients under SGD with momentum cost 52.0 points on digits (n=2) against fp32. "
        "These held: int4, 7.9x fewer bytes, cost 0.2 points on digits (n=2) and cost nothing on gpt (n=2, -0.4% of "
        "loss); top_k density=0.05, 40x fewer bytes, cost 0.5 points on digits (n=2); ternary rounding=stochastic of "
        "updates (dtrain.local, sync=local), 19.8x fewer bytes"
    )
    assert message.endswith("guard=warn trains all the same")
    assert "dgc" not in message  # which held in one task of two


@pytest.mark.parametrize(
    ("compressor", "options"),
    [("top_k", {"density": 0.001}), ("top_k", {}), ("one_bit", {}), ("power_sgd", {"power_sgd_rank": 1})],
    ids=["sparser", "by default", "diverged", "of lower rank"],
)
def test_so_is_what_is_harsher_than_what_failed(compressor: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="guard=warn trains all the same"):
        asked(compressor, options=options)


@pytest.mark.parametrize(
    "more",
    [
        {"options": {"density": 0.05}},
        {"options": {"density": 0.01}, "optimizer": None},
        {"options": {"density": 0.01}, "optimizer": "adamw"},
        {"options": {"density": 0.01}, "exchanged": "update"},
        {"options": {"density": 0.01, "start_after": 100}},
        {"options": {"density": 0.01}, "guard": "off"},
    ],
    ids=["milder", "another optimizer", "adamw", "updates", "after a start", "guard off"],
)
def test_what_was_not_measured_to_fail_is_left_alone(more: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked("top_k", **more)


def test_where_a_trial_is_of_the_tasks_at_hand_only_those_speak() -> None:
    with pytest.raises(ValueError, match=r"cost 7\.0% of loss on gpt \(n=2\)"):
        asked("dgc", options={"density": 0.0001}, optimizer="adamw")
    asked("dgc", options={"density": 0.0001}, optimizer="adamw", tasks=("digits",))
    with pytest.raises(ValueError, match="one_bit"):
        asked("one_bit", tasks=("cifar10",))


@pytest.mark.parametrize(("every", "refused"), [(1, True), (2, True), (4, False), (9, False)])
def test_of_a_task_the_trial_with_the_most_steps_between_exchanges_speaks(
    monkeypatch: pytest.MonkeyPatch, every: int, refused: bool
) -> None:
    updates = [trial("top_k", cost, exchanged="update", every=n, options={"density": 0.01}) for n, cost in TOP_K]
    monkeypatch.setattr(trials, "load_trials", lambda: (*TRIED, *updates))
    found = trials.trials_of("top_k", {"density": 0.01}, optimizer="sgd", exchanged="update", every=every)
    assert [one.fails for one in found] == [refused]


@pytest.mark.parametrize(("world_size", "cost"), [(1, 1.0), (2, 1.0), (3, 1.0), (4, 7.0), (16, 7.0)])
def test_the_trial_with_the_most_workers_up_to_those_at_hand_speaks(
    monkeypatch: pytest.MonkeyPatch, world_size: int, cost: float
) -> None:
    more = [
        trial("int8", 1.0, task="gpt", exchanged="update", every=8, optimizer="adamw"),
        trial("int8", 7.0, None, task="gpt", exchanged="update", every=4, optimizer="adamw", world_size=4),
        trial("int4", 1.0, task="gpt", optimizer="adamw"),
        trial("int4", 1.5, None, task="gpt", optimizer="adamw", world_size=4),
    ]
    monkeypatch.setattr(trials, "load_trials", lambda: (*TRIED, *more))
    how: dict[str, Any] = {"optimizer": "adamw", "exchanged": "update", "world_size": world_size}
    assert [one.cost for one in trials.trials_of("int8", {}, every=9, **how)] == [cost]
    held = {methods[0].compressor for methods in that_hold("adamw", world_size)}
    assert held == ({"int4", "int8"} if world_size <= 2 else {"int4"})
    if cost > 5:
        with pytest.raises(ValueError, match=r"int8 every=4 .* cost 7\.0% of loss on gpt \(n=4\).* held: int4, 10x"):
            check("int8", {}, every=9, **how)


TOP_K = ((1, 6.0), (4, -1.0))
"""Steps between exchanges, and points."""


def test_a_warning_goes_on() -> None:
    with pytest.warns(UserWarning, match=r"one_bit of gradients under SGD with momentum diverged on digits \(n=2\)"):
        asked("one_bit", guard="warn")


def test_a_guard_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="guard=never does not exist: choose one of refuse, warn, off"):
        asked("int4", guard="never")


def test_those_that_hold_in_most_tasks_come_first_and_then_those_that_save_most() -> None:
    assert [held[0].compressor for held in that_hold("sgd")] == ["int4", "top_k", "ternary"]
    assert that_hold("adamw") == []


def test_what_explain_says() -> None:
    assert in_words(trials_with("int4", {})) == [
        "gradients under SGD with momentum: cost 0.2 points on digits (n=2), cost nothing on gpt (n=2, -0.4% of loss)"
    ]
    assert in_words(trials_with("one_bit", {})) == [
        "gradients under SGD with momentum: diverged on digits (n=2) (refused)"
    ]
    assert trials_with("top_k", {"density": 0.02}) == ()


def test_the_trials_that_come_with_dtrain_have_methods_that_hold_under_both_optimizers() -> None:
    shipped = load_trials()  # imported before it is replaced
    assert all(one.compressor in COMPRESSORS for one in shipped)
    assert {one.optimizer for one in shipped if one.holds and one.saving and one.saving > 7} == {"sgd", "adamw"}
    assert any(one.fails for one in shipped)


def test_an_outer_optimizer_that_failed_is_refused_through_every_compressor(monkeypatch: pytest.MonkeyPatch) -> None:
    outer: dict[str, Any] = {"task": "gpt", "exchanged": "update", "every": 16, "outer": "nesterov"}
    failed = [trial("rotated_signs", cost, optimizer=optimizer, **outer) for optimizer, cost in OUTER_COSTS]
    monkeypatch.setattr(trials, "load_trials", lambda: (*TRIED, *failed))
    updates: dict[str, Any] = {"exchanged": "update", "every": 16}
    asked("int4", optimizer="adamw", **updates)
    asked("int4", optimizer="sgd", outer="nesterov", **updates)
    with pytest.raises(ValueError, match=r"rotated_signs every=16 outer=nesterov of updates .* cost 13\.4% of loss"):
        asked("int4", optimizer="adamw", outer="nesterov", **updates)
    assert not any(one.outer == "nesterov" for held in that_hold("sgd") for one in held)


OUTER_COSTS = (("sgd", 1.7), ("adamw", 13.4))
