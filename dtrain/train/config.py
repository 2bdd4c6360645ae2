"""The configuration of a training run: frozen, validated, and built from plain data.

Hydra composes YAML into plain data; from here on there are only these dataclasses. Names are looked up in registries:
nothing in a configuration is ever imported or called (`_target_` is refused).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from dtrain.arguments import check_name
from dtrain.comm import BACKENDS
from dtrain.compressors.trials import Guard
from dtrain.observe.trackers import TRACKERS, require_package
from dtrain.train.optimizers import OPTIMIZERS, Optimizer
from dtrain.train.plain_data import Named, build, require
from dtrain.train.synchronizers import AUTO, SYNCS, EveryStepSync, Sync

DEFAULT_EPOCHS = 10
"""Where neither num_steps nor num_epochs is set, nor phases."""

BEFORE = "before"
"""The teacher that is the model as it was before the first phase that compressed it."""

LATEST = "latest"
"""What `resume` is for the newest checkpoint in run_dir that verifies."""

_DURATION, _UNIT_SECONDS = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h)"), {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Backend:
    """What carries the collectives, and how long ranks wait for each other in one, and at the start."""

    name: str
    timeout_seconds: float = 60.0
    start_timeout_seconds: float | None = None

    def __post_init__(self) -> None:
        check_name("backend=", self.name, BACKENDS)
        require(0 < self.timeout_seconds <= 1e9, "backend.timeout_seconds must be more than 0 and at most 1e9")
        start = self.start_timeout_seconds
        require(start is None or 0 < start <= 1e9, "backend.start_timeout_seconds must be more than 0 and at most 1e9")

    @property
    def device_type(self) -> str:
        """Of the devices that train over it."""
        return "cuda" if self.name == "nccl" else "cpu"


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
        require(0 < self.port < 2**16, f"observe.prometheus.port={self.port} must be from 1 to 65535")
        require(
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
    tensorboard: bool = False
    trackio: bool = False
    wandb: bool = False
    prometheus: Prometheus = field(default_factory=Prometheus)

    def __post_init__(self) -> None:
        for name in self.trackers:
            require_package(name)

    @property
    def trackers(self) -> tuple[str, ...]:
        """Those that are asked for."""
        return tuple(name for name in TRACKERS if getattr(self, name))


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
        require(
            (self.num_epochs is None) != (self.num_steps is None), "a phase needs num_epochs or num_steps, one of them"
        )
        require((self.num_epochs or 0) >= 0 and (self.num_steps or 0) >= 0, "a phase cannot be shorter than 0 steps")
        require(self.learning_rate > 0, "a phase's learning_rate, a factor of the optimizer's, must be more than 0")
        require(self.energy is None or 0 < self.energy < 1, f"energy={self.energy} must be between 0 and 1: it is kept")
        for density in (self.density, *self.densities.values()):
            require(density is None or 0 < density <= 1, f"density={density} must be above 0 and at most 1: it is kept")
        for bits in (self.bits, *self.bits_of.values()):
            require(bits is None or 1 <= bits <= 12, f"bits={bits} must be from 1 to 12")

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
    sync: Sync = field(default_factory=EveryStepSync)
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
    codec: Literal["auto", "torch", "numba", "triton"] = "auto"
    threads: int | None = None
    init_weights: str | None = None
    resume: str | None = None
    resume_changes: tuple[str, ...] = ()
    log_every: int = 10
    eval_every_epochs: int = 1
    save_every: int | str = 0
    keep_checkpoints: int | None = None
    on_nonfinite: Literal["raise", "skip", "ignore"] = "raise"
    guard: Guard = "refuse"

    def __post_init__(self) -> None:
        require(
            self.num_steps is None or self.num_epochs is None,
            "num_steps and num_epochs are both set: set one to null (a recipe may have set it)",
        )
        require(
            not self.phases or (self.num_steps is None and self.num_epochs is None),
            "phases have their own num_epochs or num_steps: set the run's to null",
        )
        require(self.temperature > 0, "temperature must be more than 0")
        require(
            self.teacher != BEFORE or any(phase.compresses for phase in self.phases.values()),
            f"teacher={BEFORE} is the model before a phase compresses it: give phases (experiment=deep_compression)",
        )
        chosen = (self.compressor.name == AUTO, self.sync.name)
        require(chosen[0] or chosen[1] != AUTO, "sync=auto is chosen with the compressor: add compressor=auto")
        require(
            not chosen[0] or chosen[1] in ("every_step", AUTO),
            f"compressor=auto chooses how often to exchange itself: write sync=auto in place of sync={chosen[1]}",
        )
        require(
            self.resume != LATEST or self.run_dir is not None,
            "resume=latest goes on in the run's own directory: add run_dir=FOLDER",
        )
        require(
            not isinstance(self.save_every, str) or (self.save_seconds or 0) > 0,
            f"save_every={self.save_every} must be a number of steps, or a time such as 90s, 10min or 2h",
        )
        for name in ("num_steps", "num_epochs", "threads", "keep_checkpoints"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}={value} must be at least 1")
        for name in ("batch_size", "micro_batches", "bucket_bytes", "first_bucket_bytes", "log_every"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("eval_every_epochs", "save_steps"):
            shown = name.replace("save_steps", "save_every")
            require(getattr(self, name) >= 0, f"{shown}={getattr(self, name)} must be 0 (never) or more")
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be at least 0 and below 2^63")

    @property
    def save_steps(self) -> int:
        """Steps between checkpoints; 0: not by steps."""
        return 0 if isinstance(self.save_every, str) else self.save_every

    @property
    def save_seconds(self) -> float | None:
        """Seconds between checkpoints; None: not by time."""
        found = _DURATION.fullmatch(str(self.save_every))
        return None if found is None else float(found[1]) * _UNIT_SECONDS[found[2]]

    def spans(self, steps_per_epoch: int) -> tuple[Span, ...]:
        """The phases of the run, one after the other."""
        alone = Phase(self.num_epochs or DEFAULT_EPOCHS) if self.num_steps is None else Phase(num_steps=self.num_steps)
        spans, start = [], 0
        for name, phase in (self.phases or {"": alone}).items():
            length = phase.num_steps if phase.num_steps is not None else (phase.num_epochs or 0) * steps_per_epoch
            spans.append(Span(name, phase, start, start + length))
            start += length
        require(start > 0, "no phase has a step: give one num_epochs or num_steps above 0")
        return tuple(spans)


_NO_SETTINGS = ("experiment", "recipe")
"""What a recipe leaves in the composed configuration: its name, and what its settings refer to."""


def from_data(data: Mapping[str, Any]) -> TrainConfig:
    """The configuration that plain data (of a composed YAML) describes.

    Raises ValueError naming the key and the cure for a value of the wrong type, an unknown key, or a `_target_`.
    """
    _refuse_targets(data, "")
    settings = {key: value for key, value in data.items() if key not in _NO_SETTINGS}
    config: TrainConfig = build(TrainConfig, settings, "", {Optimizer: OPTIMIZERS, Sync: SYNCS})
    return config


def _refuse_targets(data: Any, path: str) -> None:
    if isinstance(data, Mapping):
        for key, value in data.items():
            if key == "_target_":
                raise ValueError(f"{path}_target_ is refused: a configuration names things, it never imports them")
            _refuse_targets(value, f"{path}{key}.")
