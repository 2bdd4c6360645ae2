"""The configuration of a training run: frozen, validated, and built from plain data.

Hydra composes YAML into plain data; from here on there are only these dataclasses. Names are looked up in registries:
nothing in a configuration is ever imported or called (`_target_` is refused).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dtrain.comm import BACKENDS
from dtrain.train import schedule as schedules

DEFAULT_EPOCHS = 10
"""Where neither num_steps nor num_epochs is set, nor phases."""

BEFORE = "before"
"""The teacher that is the model as it was before the first phase that compressed it."""

ScheduleName = Literal["constant", "poly", "cosine", "step"]


@dataclass(frozen=True)
class Named:
    """A registry's name, with options for what it names."""

    name: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Backend:
    """What carries the collectives."""

    name: str
    timeout_seconds: float = 60.0

    def __post_init__(self) -> None:
        _require(self.name in BACKENDS, f"backend={self.name} does not exist: choose one of {', '.join(BACKENDS)}")
        _require(0 < self.timeout_seconds <= 1e9, "backend.timeout_seconds must be more than 0 and at most 1e9")


@dataclass(frozen=True)
class Optimizer:
    """SGD, and how its learning rate changes."""

    name: Literal["sgd"] = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0002
    nesterov: bool = False
    schedule: ScheduleName = "poly"
    power: float = 1.0
    step_size: int | None = None
    gamma: float = 0.1
    warmup_steps: int = 0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optimizer.learning_rate must be more than 0")
        _require(0 <= self.momentum < 1, "optimizer.momentum must be at least 0 and less than 1")
        _require(self.weight_decay >= 0, "optimizer.weight_decay must be 0 or more")
        _require(not self.nesterov or self.momentum > 0, "optimizer.nesterov=true needs optimizer.momentum above 0")
        _require(self.clip_norm is None or self.clip_norm > 0, "optimizer.clip_norm must be more than 0, or null")
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps must be 0 or more")
        if self.schedule == "step":
            _require((self.step_size or 0) > 0, "optimizer.schedule=step needs optimizer.step_size, in steps")

    def factors(self, num_steps: int) -> schedules.Schedule:
        """The schedule over a run of `num_steps`."""
        match self.schedule:
            case "constant":
                base = schedules.constant()
            case "poly":
                base = schedules.poly(num_steps, self.power)
            case "cosine":
                base = schedules.cosine(num_steps)
            case "step":
                assert self.step_size is not None
                base = schedules.step_decay(self.step_size, self.gamma)
        return schedules.with_warmup(base, self.warmup_steps)


@dataclass(frozen=True)
class Prometheus:
    """Whether and where each rank shows its metrics: an endpoint at port + local_rank, and folders for its address
    while it runs and for its last figures."""

    enabled: bool = False
    host: str = "127.0.0.1"
    port: int = 9400
    targets: str | None = None
    textfile: str | None = None

    def __post_init__(self) -> None:
        _require(0 < self.port < 2**16, f"observe.prometheus.port={self.port} must be from 1 to 65535")
        _require(
            self.enabled or self.targets is None,
            "observe.prometheus.targets names where endpoints are: add observe.prometheus.enabled=true",
        )


@dataclass(frozen=True)
class Observe:
    """What a run shows and measures beside its results."""

    progress: bool = True
    nic_interface: str | None = None
    profile: bool = False
    meter: bool = True
    prometheus: Prometheus = field(default_factory=Prometheus)


@dataclass(frozen=True)
class Phase:
    """A part of a run: what it first makes of the model, and how long it trains what then is left.

    `energy` first puts two layers of low rank in the place of one, where they are smaller, that keep this fraction of
    the sum of squares. `density` prunes to that fraction of each weight tensor, `bits` shares what is left of it by
    k-means; what they did holds for the phases that follow. `densities` and `bits_of` say it by parameter name and go
    before the one for all. `learning_rate` is a factor of the optimizer's.
    """

    num_epochs: int | None = None
    num_steps: int | None = None
    learning_rate: float = 1.0
    energy: float | None = None
    density: float | None = None
    densities: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    bits: int | None = None
    bits_of: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    initialisation: Literal["linear", "density", "random"] = "linear"

    def __post_init__(self) -> None:
        _require(
            (self.num_epochs is None) != (self.num_steps is None), "a phase needs num_epochs or num_steps, one of them"
        )
        _require((self.num_epochs or 0) >= 0 and (self.num_steps or 0) >= 0, "a phase cannot be shorter than 0 steps")
        _require(self.learning_rate > 0, "a phase's learning_rate, a factor of the optimizer's, must be more than 0")
        _require(
            self.energy is None or 0 < self.energy < 1, f"energy={self.energy} must be between 0 and 1: it is kept"
        )
        for density in (self.density, *self.densities.values()):
            _require(
                density is None or 0 < density <= 1, f"density={density} must be above 0 and at most 1: it is kept"
            )
        for bits in (self.bits, *self.bits_of.values()):
            _require(bits is None or 1 <= bits <= 12, f"bits={bits} must be from 1 to 12")

    @property
    def prunes(self) -> bool:
        """Whether it removes weights."""
        return self.density is not None or bool(self.densities)

    @property
    def shares(self) -> bool:
        """Whether it makes weights equal."""
        return self.bits is not None or bool(self.bits_of)

    @property
    def compresses(self) -> bool:
        """Whether it changes the model at all."""
        return self.prunes or self.shares or self.energy is not None


@dataclass(frozen=True)
class Span:
    """A phase with its steps in the run: after `start` of them to `end`. A run without phases is one span, unnamed."""

    name: str
    phase: Phase
    start: int
    end: int


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run depends on. Units: steps, bytes, images."""

    model: Named
    data: Named
    compressor: Named
    backend: Backend
    optimizer: Optimizer
    observe: Observe
    num_steps: int | None = None
    num_epochs: int | None = None
    phases: Mapping[str, Phase] = field(default_factory=lambda: MappingProxyType({}))
    teacher: str | None = None
    temperature: float = 2.0
    batch_size: int = 32
    micro_batches: int = 1
    amp: bool = False
    seed: int = 0
    run_dir: str | None = None
    overwrite: bool = False
    overlap: bool = True
    bucket_bytes: int = 25 * 1024 * 1024
    first_bucket_bytes: int = 1024 * 1024
    threads: int | None = None
    init_weights: str | None = None
    resume: str | None = None
    log_every: int = 10
    eval_every_epochs: int = 1
    save_every: int = 0
    on_nonfinite: Literal["raise", "skip", "ignore"] = "raise"

    def __post_init__(self) -> None:
        _require(
            self.num_steps is None or self.num_epochs is None,
            "num_steps and num_epochs are both set: set one to null (a recipe may have set it)",
        )
        _require(
            not self.phases or (self.num_steps is None and self.num_epochs is None),
            "phases have their own num_epochs or num_steps: set the run's to null",
        )
        _require(self.temperature > 0, "temperature must be more than 0")
        _require(
            self.teacher != BEFORE or any(phase.compresses for phase in self.phases.values()),
            f"teacher={BEFORE} is the model before a phase compresses it: give phases (experiment=deep_compression)",
        )
        for name in ("num_steps", "num_epochs", "threads"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name}={value} must be at least 1")
        for name in ("batch_size", "micro_batches", "bucket_bytes", "first_bucket_bytes", "log_every"):
            _require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("eval_every_epochs", "save_every"):
            _require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must be 0 (never) or more")
        _require(0 <= self.seed < 2**63, f"seed={self.seed} must be at least 0 and below 2^63")

    def spans(self, steps_per_epoch: int) -> tuple[Span, ...]:
        """The phases of the run, one after the other."""
        alone = Phase(self.num_epochs or DEFAULT_EPOCHS) if self.num_steps is None else Phase(num_steps=self.num_steps)
        spans, start = [], 0
        for name, phase in (self.phases or {"": alone}).items():
            length = phase.num_steps if phase.num_steps is not None else (phase.num_epochs or 0) * steps_per_epoch
            spans.append(Span(name, phase, start, start + length))
            start += length
        _require(start > 0, "no phase has a step: give one num_epochs or num_steps above 0")
        return tuple(spans)


def from_data(data: Mapping[str, Any]) -> TrainConfig:
    """The configuration that plain data (of a composed YAML) describes.

    Raises ValueError naming the key and the cure for a value of the wrong type, an unknown key, or a `_target_`.
    """
    _refuse_targets(data, "")
    config: TrainConfig = _build(TrainConfig, {k: v for k, v in data.items() if k != "experiment"}, "")
    return config


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _refuse_targets(data: Any, path: str) -> None:
    if isinstance(data, Mapping):
        for key, value in data.items():
            if key == "_target_":
                raise ValueError(f"{path}_target_ is refused: a configuration names things, it never imports them")
            _refuse_targets(value, f"{path}{key}.")


def _build(kind: Any, data: Any, path: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{path.rstrip('.')}={data!r} must be a group of settings")
    if kind is Named:
        options = {key: value for key, value in data.items() if key != "name"}
        return Named(_convert(str, data.get("name"), f"{path}name"), MappingProxyType(options))
    hints = get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(f"{path}{unknown[0]} is not a setting; there are: {', '.join(path + name for name in hints)}")
    missing = [
        f.name for f in fields(kind) if f.name not in data and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{path}{missing[0]} is missing")
    return kind(**{name: _convert(hints[name], value, path + name) for name, value in data.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    if get_origin(hint) in (Union, UnionType):
        if value is None and NoneType in get_args(hint):
            return None
        (hint,) = (h for h in get_args(hint) if h is not NoneType)
    if get_origin(hint) is Literal:
        _require(value in get_args(hint), f"{path}={value} does not exist: choose one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is Mapping:
        _require(isinstance(value, Mapping), f"{path}={value!r} must be a group of settings")
        _, kind = get_args(hint)
        return MappingProxyType({str(key): _convert(kind, item, f"{path}.{key}") for key, item in value.items()})
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, bool, str):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
        _require(type(value) is hint, f"{path}={value!r} must be {wanted}")
        return value
    return _build(hint, value, path + ".")
