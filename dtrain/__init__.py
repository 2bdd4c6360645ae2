"""Distributed training that measures, and then slashes, the bytes that workers exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn
    from torch.amp import GradScaler
    from torch.nn.parallel import DistributedDataParallel
    from torch.optim import Optimizer

    from dtrain.compressors.trials import Guard
    from dtrain.sync.ddp import DdpSynchronizer
    from dtrain.sync.horovod import HorovodSynchronizer
    from dtrain.sync.models import ProcessGroup
    from dtrain.sync.program import LocalProgram

__all__ = ["__version__", "compress", "compress_horovod", "local"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Modules that programs know as `dtrain.<name>`, imported when first asked for."""
    found: ModuleType
    match name:
        case "data":
            from dtrain.vision import data as found
        case "models":
            from dtrain.vision import models as found
        case "sensitivity":
            from dtrain.slim import sensitivity as found
        case _:
            raise AttributeError(f"module 'dtrain' has no attribute {name!r}")
    return found


def compress(
    model: DistributedDataParallel,
    compressor: str,
    *,
    optimizer: Optimizer | None = None,
    scaler: GradScaler | None = None,
    guard: Guard = "refuse",
    seed: int = 0,
    **options: Any,
) -> DdpSynchronizer:
    """Exchange the gradients of a DDP model through a compressor from now on.

        dtrain.compress(ddp_model, "int4", optimizer=optimizer)

    Args:
        model: stock DistributedDataParallel, before its first backward pass.
        compressor: a name in `dtrain.compressors.COMPRESSORS`; or "auto": after some steps the fastest here of those
            that train under this optimizer, and again when the link changes. It says on standard error what and why.
        optimizer: the one that steps, or what accelerate or Lightning made of it. What was measured to fail under it
            is refused; and a method that keeps the momentum itself (dgc) takes SGD's over, in the optimizer given.
        guard: "refuse", "warn" about or take ("off") what was measured to fail under this optimizer.
        scaler: the GradScaler of the program, if it has one, so that what was not sent yet follows its scale.
        seed: the same on every rank; for compressors that draw random numbers.
        options: the compressor's own.

    Returns:
        What holds the compressor's state on this rank: `state_dict()` to save it, `load_state_dict(saved)` to go on
        with it, `discard()` after a backward pass whose step is left out, `close()` when done. A mean that is not
        finite is handed on as it is and leaves the state as it was.

    Raises:
        ValueError: no such compressor or option, another kind of model, one that has a communication hook, sparse
            embeddings, parameters on several devices, or a method that fails under this optimizer.
    """
    from dtrain import compressors
    from dtrain.meter import c10d
    from dtrain.meter.ledger import Ledger
    from dtrain.sync import ddp, models, momentum

    ledger = c10d.installed_ledger() or Ledger()
    if compressor == "auto":
        from dtrain.plan import auto_ddp

        if optimizer is None or options:
            raise ValueError(
                '"auto" takes optimizer=..., by which it knows what trains, and no options of a compressor'
            )
        return auto_ddp.attach(model, models.unwrapped(optimizer), ledger, seed=seed, scaler=scaler)
    if optimizer is None:
        built = compressors.build(compressor, **options)
    else:
        n = models.num_workers()
        built = momentum.compressor_for(models.unwrapped(optimizer), compressor, options, guard, n)
    return ddp.attach(model, built, ledger, seed=seed, scaler=scaler)


def local(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    every: int = 1,
    start_after: int = 0,
    growth: float = 0.0,
    qsr: float = 0.0,
    outer: str = "average",
    outer_rate: float | None = None,
    outer_momentum: float | None = None,
    fragments: int = 1,
    delay: int = 0,
    kept: float = 0.0,
    group: ProcessGroup | None = None,
    compressor: str = "none",
    scaler: GradScaler | None = None,
    guard: Guard = "refuse",
    seed: int = 0,
    **options: Any,
) -> LocalProgram:
    """Exchange what the optimizer changed in a model, through a compressor, in place of its gradients.

        dtrain.local(model, optimizer, compressor="ternary")

    Each worker steps with gradients and an optimizer state of its own; after every `every` steps the mean change over
    workers becomes everybody's. With AdamW that pays with 2 workers; what it costs and saves: docs/compressors.md.

    Args:
        model: a plain module, which becomes rank 0's; or a DDP model, whose own all_reduce then stays away.
        optimizer: of this model's parameters, the worker's own, or what accelerate or Lightning made of it.
        every: steps from one exchange to the next: a local round.
        start_after, growth, qsr: a round of one step at the start, and longer ones later: see `sync.rounds.Rounds`.
        outer, outer_rate, outer_momentum: what becomes of the mean change: "average", "sgd", or DiLoCo's "nesterov":
            see `sync.outer`.
        fragments, delay, kept: the model in so many parts that have their turn within a round, each exchanged beside
            the steps that follow: see `sync.fragments.Fragments`. `align()` at the end makes all workers equal.
        group: the workers that exchange, if not all: what keeps the model together among others goes on to do so. For a
            DDP model over a group of its own, the same rank of each; for FSDP2's, those who hold the same shard.
        compressor: a name in `dtrain.compressors.COMPRESSORS`.
        guard: "refuse", "warn" about or take ("off") what was measured to fail under this optimizer.
        scaler: the GradScaler of the program, if it has one: a step that it leaves out on one rank must not keep the
            others waiting.
        seed: the same on every rank; for compressors that draw random numbers.
        options: the compressor's own.

    Returns:
        What holds this rank's state, its optimizer's included: `state_dict()` to save it, `load_state_dict(saved)` to
        go on with it, `discard()` in place of a step that is left out, `align()` to exchange now, `close()` when done.

    Raises:
        ValueError: no such compressor or option, a model that something else keeps together, a parameter that the
            optimizer does not have, or no process group.
    """
    from dtrain import compressors
    from dtrain.compressors import trials
    from dtrain.meter import c10d
    from dtrain.meter.ledger import Ledger
    from dtrain.sync import models, momentum, program
    from dtrain.sync.fragments import Fragments
    from dtrain.sync.local import Method
    from dtrain.sync.outer import outer_named, tried_as
    from dtrain.sync.rounds import Rounds

    optimizer = models.unwrapped(optimizer)
    method = Method(
        Rounds(every, start_after, growth, qsr),
        outer_named(outer, outer_rate, outer_momentum),
        Fragments(fragments, delay, kept),
        masks_momentum=compressors.sends_few(compressor),
    )
    built, ledger = compressors.build(compressor, **options), c10d.installed_ledger() or Ledger()
    compressors.check_for_updates(compressor, options)
    kind, n = momentum.kind_of(optimizer), models.num_workers(group)
    trials.check(
        compressor,
        options,
        optimizer=kind,
        exchanged="update",
        world_size=n,
        every=every,
        outer=tried_as(outer, outer_rate, outer_momentum),
        guard=guard,
    )
    return program.attach(model, optimizer, built, ledger, method=method, group=group, seed=seed, scaler=scaler)


def compress_horovod(
    model: nn.Module,
    optimizer: Optimizer,
    compressor: str,
    *,
    guard: Guard = "refuse",
    seed: int = 0,
    **options: Any,
) -> HorovodSynchronizer:
    """Exchange gradients over Horovod through a compressor from now on, in place of hvd.DistributedOptimizer.

        synchronizer = dtrain.compress_horovod(model, optimizer, "int4")

    The gradients that `optimizer.step()` then finds are the mean over ranks.

    Args:
        model: the same on every rank, after hvd.init() and before its first backward pass.
        optimizer: the plain one, of this model's parameters; its step takes no closure. A method that keeps the
            momentum itself (dgc) takes SGD's over.
        compressor: a name in `dtrain.compressors.COMPRESSORS`.
        guard: "refuse", "warn" about or take ("off") what was measured to fail under this optimizer.
        seed: the same on every rank; for compressors that draw random numbers.
        options: the compressor's own.

    Returns:
        What holds the compressor's state on this rank (`state_dict()` to save it, `load_state_dict(saved)` to go on
        with it) and counts what the exchange sends (`ledger`). Backward passes inside its `no_sync()` only accumulate.

    Raises:
        ValueError: no such compressor or option, a method that fails under this optimizer, an optimizer that exchanges
            gradients itself, or no Horovod.
    """
    from dtrain.sync import horovod, momentum

    built = momentum.compressor_for(optimizer, compressor, options, guard, horovod.num_workers())
    return horovod.attach(model, optimizer, built, seed=seed)
