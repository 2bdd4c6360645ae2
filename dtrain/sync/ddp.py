"""A DDP communication hook, for other people's models: any compressor under stock DistributedDataParallel.

DDP rebuilds its buckets after the first step, so states are kept by parameter name (`States`). Exchanges run on one
thread per rank, on a process group of their own: DDP's own group stays free for what torch sends on it during backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.amp import GradScaler
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.exchange import Bucket, Compressor, Exchange, Exchanged
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.sync.buckets import NamedParameter, layout_of
from dtrain.sync.engine import Engine
from dtrain.sync.models import check_hook, check_parameters, kind_of
from dtrain.sync.states import States
from dtrain.sync.synchronizer import NOTHING_SPENT, Spent


class DdpSynchronizer:
    """Exchanges the gradient buckets of a DDP model through a compressor: a `Synchronizer`. Made by `attach`.

    DDP waits for the exchange inside backward, so a program need not call anything: a step is committed when the next
    one begins, and by `after_step` and `state_dict`. Until then `discard` takes it back. A step whose mean is not
    finite is handed on as it is, for the program to leave out, and leaves states as they were.

    `scaler` scales the program's losses: where its scale changes, so does what compressors keep.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        compressor: Compressor,
        ledger: Ledger,
        *,
        seed: int = 0,
        scaler: GradScaler | None = None,
    ) -> None:
        group: dist.ProcessGroup = model.process_group
        self.model, shared = model, TorchCommunicator(group)
        rank, self._world_size = shared.rank, shared.world_size
        parameters = [NamedParameter(name, p) for name, p in model.module.named_parameters()]
        self._scaler, self._scale = scaler, scaler.get_scale() if scaler is not None else 1.0
        self._new_states = partial(States, parameters=parameters, rank=rank, world_size=self._world_size, seed=seed)
        self._states = self._new_states(compressor)
        self._communicator = shared.duplicate()  # where ranks wait for one that had to compile
        self._ledger = ledger
        self._names: dict[Tensor, str] = {p: name for name, p in parameters}
        self._device = next(model.parameters()).device
        self._engine = Engine(self._communicator, ledger, self._device, overlap=True)
        self._is_whole = False  # every bucket of the step is exchanged, and it is not committed yet
        self._is_closed = False
        _scope_own_traffic(model, ledger)
        self.error: BaseException | None = None
        """The exception that an exchange met; DDP itself reports it as a failure to cast a future's value."""

    def on_bucket(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """The hook proper: DDP calls it for each bucket, in the same order on every rank.

        Once closed, gradients are averaged as DDP itself does, since torch never lets go of a hook.
        """
        if self._is_closed:
            return allreduce_hook(self.model.process_group, bucket)
        devices: list[int | str | torch.device] | None = [self._device] if self._device.type == "cuda" else None
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        parameters = bucket.parameters()
        layout = layout_of([(self._names[p], p) for p in parameters])
        value = Bucket(bucket.buffer(), layout)

        def start() -> Exchange:
            self._commit()
            self._follow_scale()
            value.value.mul_(1.0 / self._world_size)
            return self._states.exchange(value)

        def hand_over(result: Exchanged) -> None:
            self._states.stage(layout, result)
            # DDP addresses the result from the start of its storage, so a part of a larger tensor will not do
            whole = result.mean.is_contiguous() and result.mean.storage_offset() == 0
            future.set_result(result.mean if whole else result.mean.clone(memory_format=torch.contiguous_format))

        def fail(error: BaseException) -> None:
            self.error = self.error or error
            future.set_exception(error)  # type: ignore[arg-type]

        self._engine.submit(start, hand_over, fail)
        if bucket.is_last():
            self._engine.flush(self._end_step)
        return future

    def no_sync(self) -> AbstractContextManager[None]:
        """DDP's own."""
        context: AbstractContextManager[None] = self.model.no_sync()
        return context

    def before_step(self) -> Spent:
        """Gradients are there once backward is done: wait for the thread. Raises the error that an exchange met."""
        self._engine.wait()
        if self.error is not None:
            raise self.error
        return Spent(0.0, self._engine.take_codec_seconds())

    def after_step(self) -> Spent:
        """Commit the step."""
        self._engine.wait()
        self._commit()
        return Spent(0.0, 0.0)

    @property
    def ends_with_step(self) -> bool:
        """See `Synchronizer`."""
        return True

    def align(self) -> Spent:
        """Replicas are equal after every step."""
        return NOTHING_SPENT

    def discard(self) -> None:
        """Take back the step whose backward was the last."""
        self._engine.wait()
        if self._is_whole:
            self._is_whole = False
            self._states.discard()

    def state_dict(self) -> dict[str, Any]:
        """After the last backward: see `States.state_dict`."""
        self.after_step()
        return self._states.state_dict()

    def load_state_dict(self, *saved: Mapping[str, Any]) -> None:
        """Before the first backward, or between steps: see `States.load_state_dict`."""
        self.after_step()
        self._states.load_state_dict(*saved)

    def exchange_through(self, compressor: Compressor) -> None:
        """Another compressor from the next step on, on every rank; what the old one had kept back is let go of."""
        self.after_step()
        self._states = self._new_states(compressor)

    def close(self) -> None:
        """End the thread, and leave the process group of the exchange; DDP then averages gradients uncompressed."""
        if not self._is_closed:
            self._is_closed = True
            self._engine.close()
            self._communicator.close()
            for name in _SCOPES:
                self.model.__dict__.pop(name, None)

    def __reduce__(self) -> Any:
        return Detached, ()

    def _end_step(self) -> None:
        self._states.not_finite()  # before DDP writes over the means
        self._is_whole = True
        self._ledger.rounds += 1

    def _follow_scale(self) -> None:
        if self._scaler is not None and (scale := self._scaler.get_scale()) != self._scale:
            self._states.rescale(scale / self._scale)
            self._scale = scale

    def _commit(self) -> None:
        """If there is a step to commit; in the engine's thread, or while that one rests."""
        if self._is_whole:
            self._is_whole = False
            self._states.commit()


S = TypeVar("S", bound=DdpSynchronizer)


def attach(
    model: nn.Module,
    compressor: Compressor,
    ledger: Ledger,
    *,
    seed: int = 0,
    scaler: GradScaler | None = None,
) -> DdpSynchronizer:
    """Exchange the gradients of `model` through `compressor` from now on, and scope DDP's other traffic in `ledger`.

    Raises ValueError, naming the cure, for a model whose gradients DDP does not average, or not through one hook.
    """
    ddp = checked(model)
    return hooked(DdpSynchronizer(ddp, compressor, ledger, seed=seed, scaler=scaler))


def checked(model: nn.Module) -> DistributedDataParallel:
    """The DDP model, whose gradients can be exchanged. Raises ValueError, naming the cure, where they cannot."""
    ddp = _ddp_of(model)
    check_hook(ddp)
    check_parameters(ddp.module)
    return ddp


def hooked(synchronizer: S) -> S:
    """It, called by its model from now on."""
    synchronizer.model.register_comm_hook(synchronizer, dtrain_hook)
    return synchronizer


def dtrain_hook(state: Any, bucket: Any) -> Any:
    """What DDP calls for each bucket."""
    future: torch.futures.Future[Tensor] = state.on_bucket(bucket)
    return future


# torch reads the annotations and accepts only the classes themselves, not their names
dtrain_hook.__annotations__ = {"bucket": GradBucket, "return": torch.futures.Future[Tensor]}


def _ddp_of(model: nn.Module) -> DistributedDataParallel:
    """The DDP model, also inside a compiled one."""
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, DistributedDataParallel):
        return inner
    kind = kind_of(inner)
    raise ValueError(f"dtrain.compress takes a DistributedDataParallel model, and this is {kind.name}: {kind.instead}")


class Detached:
    """What stands for a synchroniser in a pickled or copied model, which exchanges nothing through it."""


class _Scoped:
    """A method of one DDP model whose traffic is of this purpose. A pickled or copied model scopes nothing."""

    def __init__(self, model: DistributedDataParallel, name: str, ledger: Ledger, purpose: Purpose) -> None:
        self.model, self.name, self.ledger, self.purpose = model, name, ledger, purpose

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        method = getattr(type(self.model), self.name)
        with self.ledger.scope(purpose=self.purpose):
            return method(self.model, *arguments, **keywords)

    def __reduce__(self) -> Any:
        return partial, (getattr(type(self.model), self.name), self.model)


_SCOPES = {"_pre_forward": Purpose.CONTROL, "_sync_buffers": Purpose.BUFFERS}
"""What DDP sends besides gradients, by the method that does: messages before the forward pass, and buffers."""


def _scope_own_traffic(model: DistributedDataParallel, ledger: Ledger) -> None:
    for name, purpose in _SCOPES.items():
        model.__dict__[name] = _Scoped(model, name, ledger, purpose)
