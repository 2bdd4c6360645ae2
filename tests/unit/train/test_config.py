from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from dtrain import compressors
from dtrain.comm import BACKENDS
from dtrain.train.config import TrainConfig, from_data
from dtrain.train.optimizers import OPTIMIZERS
from dtrain.train.synchronizers import AUTO
from dtrain.vision import data, models

CONF = Path(__file__).resolve().parents[3] / "conf"


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_module(version_base="1.3", config_module="dtrain.conf"):
        yield


def composed(*overrides: str) -> dict[str, Any]:
    plain = OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def configured(*overrides: str) -> TrainConfig:
    return from_data(composed(*overrides))


def test_the_defaults_are_valid_and_are_those_of_the_dataclass() -> None:
    config = configured()
    assert (config.model.name, config.data.name, config.compressor.name) == ("squeezenet1_1", "digits", "none")
    bare = TrainConfig(config.model, config.data, config.compressor, config.backend, config.optimizer, config.observe)
    assert config == bare


def test_overrides_that_scripts_rely_on() -> None:
    config = configured(
        "model=alexnet",
        "data=image_folder",
        "data.root=/pictures",
        "data.image_size=64",
        "batch_size=7",
        "num_steps=5",
        "seed=3",
        "run_dir=/out",
        "backend=gloo",
        "compressor=fp16",
    )
    assert (config.model.name, config.data.name, config.compressor.name) == ("alexnet", "image_folder", "fp16")
    assert (config.data.options["root"], config.data.options["image_size"]) == ("/pictures", 64)
    assert (config.batch_size, config.num_steps, config.seed, config.run_dir) == (7, 5, 3, "/out")
    assert config.backend.name == "gloo"


@pytest.mark.parametrize(
    ("group", "registry"),
    [
        ("model", models.MODELS),
        ("data", data.DATASETS),
        ("compressor", (*compressors.COMPRESSORS, AUTO)),
        ("backend", BACKENDS),
        ("optimizer", OPTIMIZERS),
    ],
)
def test_every_registered_name_has_a_file_of_that_name_and_every_file_a_registered_name(group: str, registry) -> None:
    files = {path.stem: yaml.safe_load(path.read_text())["name"] for path in (CONF / group).glob("*.yaml")}
    assert files == {name: name for name in registry}


@pytest.mark.parametrize("name", models.MODELS)
def test_the_options_of_a_model_s_file_are_its_own_with_its_own_defaults(name: str) -> None:
    options = dict(configured(f"model={name}").model.options)
    assert options.pop("num_classes") is None
    assert models.complete_options(name, **options) == models.complete_options(name)


def test_a_target_is_refused_wherever_it_is() -> None:
    for where in ({"_target_": "os.system"}, {"model": {"name": "alexnet", "deep": {"_target_": "os.system"}}}):
        with pytest.raises(ValueError, match="_target_ is refused"):
            from_data({**composed(), **where})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_steps=0", "num_steps=0 must be at least 1"),
        ("num_epochs=-1", "num_epochs=-1 must be at least 1"),
        ("batch_size=0", "batch_size=0 must be at least 1"),
        ("batch_size=1.5", "batch_size=1.5 must be a whole number"),
        ("batch_size=many", "batch_size='many' must be a whole number"),
        ("batch_size=true", "batch_size=True must be a whole number"),
        ("threads=0", "threads=0 must be at least 1"),
        ("seed=-1", "seed=-1 must be at least 0"),
        ("log_every=0", "log_every=0 must be at least 1"),
        ("save_every=-1", "save_every=-1 must be 0"),
        ("save_every=often", "save_every=often must be a number of steps, or a time such as 90s, 10min or 2h"),
        ("save_every=0min", "save_every=0min must be a number of steps, or a time"),
        ("save_every=2.5", "save_every=2.5 must be a whole number"),
        ("keep_checkpoints=0", "keep_checkpoints=0 must be at least 1"),
        ("resume=latest", "resume=latest goes on in the run's own directory: add run_dir=FOLDER"),
        ("bucket_bytes=0", "bucket_bytes=0 must be at least 1"),
        ("overlap=maybe", "overlap='maybe' must be true or false"),
        ("run_dir=5", "run_dir=5 must be text"),
        ("observe.progress=1", "observe.progress=1 must be true or false"),
        (
            "+observe.prometheuss=1",
            "observe.prometheuss is not a setting (did you mean prometheus?); there are: ",
        ),
        ("observe.prometheus.port=0", "observe.prometheus.port=0 must be from 1 to 65535"),
        ("observe.prometheus.targets=here", "names where endpoints are: add observe.prometheus.enabled=true"),
        ("+extra=1", "extra is not a setting; there are: model, data"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate must be more than 0"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate='fast' must be a number"),
        ("optimizer.momentum=1", "optimizer.momentum must be at least 0 and less than 1"),
        ("optimizer.weight_decay=-0.1", "optimizer.weight_decay must be 0 or more"),
        ("optimizer.warmup_steps=-1", "optimizer.warmup_steps must be 0 or more"),
        ("optimizer.schedule=linear", "optimizer.schedule=linear does not exist: choose one of constant, poly"),
        ("optimizer.schedule=step", "optimizer.schedule=step needs optimizer.step_size"),
        ("optimizer.name=adam", "optimizer.name=adam does not exist (did you mean adamw?): choose one of sgd"),
        ("backend.name=tcp", "backend=tcp does not exist: choose one of gloo, nccl"),
        ("backend.timeout_seconds=0", "backend.timeout_seconds must be more than 0"),
        ("backend.timeout_seconds=inf", "backend.timeout_seconds=inf must be a finite number"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_with_the_cure(override: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        configured(override)
    assert message in str(refused.value)


def test_steps_and_epochs_together_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps and num_epochs are both set: set one to null"):
        configured("num_steps=5", "num_epochs=1")


PRUNE = "+phases.prune={density:0.5,num_epochs:1}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((PRUNE, "num_epochs=3"), "phases have their own num_epochs or num_steps"),
        ((PRUNE, "phases.prune.density=1.5"), "density=1.5 must be above 0 and at most 1"),
        ((PRUNE, "+phases.prune.densities={a.weight:0}"), "density=0.0 must be above 0 and at most 1"),
        ((PRUNE, "+phases.prune.densities={a.weight:much}"), "phases.prune.densities.a.weight='much' must be a number"),
        ((PRUNE, "+phases.prune.densities=3"), "phases.prune.densities=3 must be a group of settings"),
        ((PRUNE, "+phases.prune.bits=16"), "bits=16 must be from 1 to 12"),
        ((PRUNE, "+phases.prune.bits_of={a.weight:0}"), "bits=0 must be from 1 to 12"),
        ((PRUNE, "+phases.prune.initialisation=best"), "phases.prune.initialisation=best does not exist"),
        ((PRUNE, "+phases.prune.energy=1"), "energy=1.0 must be between 0 and 1"),
        ((PRUNE, "+phases.prune.num_steps=1"), "a phase needs num_epochs or num_steps, one of them"),
        (("+phases.prune={density:0.5}",), "a phase needs num_epochs or num_steps, one of them"),
        (("+phases.prune={density:0.5,num_epochs:-1}",), "a phase cannot be shorter than 0 steps"),
        ((PRUNE, "+phases.prune.learning_rate=0"), "a phase's learning_rate"),
        (
            (PRUNE, "+phases.prune.desnity=1"),
            "phases.prune.desnity is not a setting (did you mean density?); there are: phases.prune.num_epochs",
        ),
        (("+phases.prune=3",), "phases.prune=3 must be a group of settings"),
        (("phases=3",), "phases=3 must be a group of settings"),
        (("teacher=before",), "teacher=before is the model before a phase compresses it"),
        (("temperature=0",), "temperature must be more than 0"),
    ],
)
def test_a_wrong_phase_is_refused_with_the_cure(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        configured(*overrides)
    assert message in str(refused.value)


def test_phases_follow_one_another_in_their_order() -> None:
    config = configured("+phases.one={num_steps:5}", "+phases.two={num_epochs:0}", "+phases.three={num_epochs:2}")
    assert [(span.name, span.start, span.end) for span in config.spans(10)] == [
        ("one", 0, 5),
        ("two", 5, 5),
        ("three", 5, 25),
    ]


def test_a_run_without_phases_is_one() -> None:
    assert [(s.name, s.end) for s in configured().spans(7)] == [("", 70)]
    assert [(s.name, s.end) for s in configured("num_epochs=3").spans(7)] == [("", 21)]
    assert [(s.name, s.end) for s in configured("num_steps=3").spans(7)] == [("", 3)]


def test_phases_without_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match="no phase has a step"):
        configured("+phases.one={num_epochs:0}").spans(10)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.nesterov=true needs optimizer\.momentum above 0"):
        configured("optimizer.nesterov=true", "optimizer.momentum=0")


def test_a_missing_group_is_refused_by_name() -> None:
    plain = composed()
    del plain["optimizer"]
    with pytest.raises(ValueError, match="optimizer is missing"):
        from_data(plain)


def test_a_value_in_place_of_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer='sgd' must be a group of settings"):
        from_data({**composed(), "optimizer": "sgd"})


def test_a_group_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.name=None must be text"):
        from_data({**composed(), "model": {"num_classes": 10}})


def test_checkpoints_go_by_steps_or_by_time() -> None:
    wanted = {"100": (100, None), "90s": (0, 90.0), "10min": (0, 600.0), "1.5h": (0, 5400.0)}
    for text, expected in wanted.items():
        config = configured(f"save_every={text}")
        assert (config.save_steps, config.save_seconds) == expected


def test_whole_numbers_are_numbers() -> None:
    assert configured("optimizer.learning_rate=1").optimizer.learning_rate == 1.0
    assert configured("backend.timeout_seconds=30").backend.timeout_seconds == 30.0


def test_a_configuration_cannot_be_changed() -> None:
    config = configured()
    with pytest.raises(AttributeError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.data.options["image_size"] = 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("overrides", "factors"),
    [
        (["optimizer.schedule=constant"], [1.0, 1.0, 1.0, 1.0]),
        (["optimizer.schedule=poly"], [1.0, 0.6, 0.5, 0.0]),
        (["optimizer.schedule=poly", "optimizer.power=2"], [1.0, 0.36, 0.25, 0.0]),
        (["optimizer.schedule=cosine"], [1.0, 0.6545085, 0.5, 0.0]),
        (["optimizer.schedule=step", "optimizer.step_size=5", "optimizer.gamma=0.5"], [1.0, 1.0, 0.5, 0.25]),
        (["optimizer.schedule=constant", "optimizer.warmup_steps=10"], [0.1, 0.5, 0.6, 1.0]),
    ],
)
def test_the_schedule_is_the_configured_one(overrides: list[str], factors: list[float]) -> None:
    schedule = configured(*overrides).optimizer.factors(10)
    assert [schedule(step) for step in (0, 4, 5, 10)] == pytest.approx(factors)


@pytest.mark.parametrize(
    ("sync", "message"),
    [
        ({"name": "local", "every": 0}, "every=0 must be at least 1"),
        ({"name": "local", "start_after": -1}, "start_after=-1"),
        ({"name": "local", "outer": "adam"}, "outer=adam does not exist"),
        ({"name": "local", "fragments": 2}, "fragments"),
        ({"name": "streaming", "every": 8, "fragments": 0}, "fragments=0"),
        ({"name": "streaming", "delay": 0, "kept": 0.5}, "kept is for delay > 0"),
    ],
)
def test_rounds_that_cannot_be_are_refused(sync: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_data({**composed(), "sync": sync})
