"""A DDP communication hook, for other people's models: any compressor under stock DistributedDataParallel.

DDP rebuilds its buckets after the first step, so states are kept by parameter name (`States`). Exchanges run on one
thread per rank, on a process group of their own: DDP's own group stays free for what torch sends on it during backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.exchange import Bucket, Compressor, Exchange, Exchanged, Layout
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.sync.buckets import trainable
from dtrain.sync.engine import Engine
from dtrain.sync.states import States
from dtrain.sync.synchronizer import Spent


class DdpSynchronizer:
    """Exchanges the gradient buckets of a DDP model through a compressor: a `Synchronizer`. Made by `attach`.

    DDP waits for the exchange inside backward, so a program need not call anything: a step is committed when the next
    one begins, and by `after_step` and `state_dict`. Until then `discard` takes it back.
    """

    def __init__(
        self, model: DistributedDataParallel, compressor: Compressor, ledger: Ledger, *, seed: int = 0
    ) -> None:
        group: dist.ProcessGroup = model.process_group
        self._model, self._communicator = model, TorchCommunicator(group).duplicate()
        rank, self._world_size = self._communicator.rank, self._communicator.world_size
        parameters = trainable(model.module)
        self._states = States(compressor, parameters, rank=rank, world_size=self._world_size, seed=seed)
        self._names = {id(p): name for name, p in parameters}
        self._device = next(model.parameters()).device
        self._engine = Engine(self._communicator, ledger, self._device, overlap=True)
        self._is_whole = False  # every bucket of the step is exchanged, and it is not committed yet
        self.error: BaseException | None = None
        """The exception that an exchange met; DDP itself reports it as a failure to cast a future's value."""

    def on_bucket(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """The hook proper: DDP calls it for each bucket, in the same order on every rank."""
        devices: list[int | str | torch.device] | None = [self._device] if self._device.type == "cuda" else None
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        parameters = bucket.parameters()
        layout = Layout(tuple(self._names[id(p)] for p in parameters), tuple(tuple(p.shape) for p in parameters))
        value = Bucket(bucket.buffer(), layout)

        def start() -> Exchange:
            self._commit()
            value.value.mul_(1.0 / self._world_size)
            return self._states.exchange(value)

        def hand_over(result: Exchanged) -> None:
            self._states.stage(layout, result.state)
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
        context: AbstractContextManager[None] = self._model.no_sync()
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

    def close(self) -> None:
        """End the thread, and leave the process group of the exchange."""
        self._engine.close()
        self._communicator.close()

    def _end_step(self) -> None:
        self._is_whole = True

    def _commit(self) -> None:
        """If there is a step to commit; in the engine's thread, or while that one rests."""
        if self._is_whole:
            self._is_whole = False
            self._states.commit()


def attach(model: DistributedDataParallel, compressor: Compressor, ledger: Ledger, *, seed: int = 0) -> DdpSynchronizer:
    """Exchange the gradients of `model` through `compressor` from now on, and scope DDP's other traffic in `ledger`.

    Raises ValueError for a model whose parameters lie on several devices.
    """
    devices = {p.device for p in model.parameters()}
    if len(devices) > 1:
        raise ValueError(f"parameters on several devices ({', '.join(map(str, devices))}): use one device per process")
    synchronizer = DdpSynchronizer(model, compressor, ledger, seed=seed)

    def dtrain_hook(state: DdpSynchronizer, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        return state.on_bucket(bucket)

    # torch reads the annotations and accepts only the classes themselves, not their names
    dtrain_hook.__annotations__ = {"bucket": GradBucket, "return": torch.futures.Future[Tensor]}
    model.register_comm_hook(synchronizer, dtrain_hook)
    _scope_own_traffic(model, ledger)
    return synchronizer


def _scope_own_traffic(model: DistributedDataParallel, ledger: Ledger) -> None:
    """DDP's forward, before that of the module inside, sends control messages of its own and broadcasts buffers."""
    before: list[Purpose | None] = []

    def enter(module: Any, args: Any) -> None:
        before.append(ledger.purpose)
        ledger.purpose = Purpose.CONTROL

    def leave(module: Any, args: Any) -> None:
        if before:  # not where somebody calls the module inside directly
            ledger.purpose = before.pop()

    sync_buffers: Any = model._sync_buffers

    def scoped_sync_buffers() -> None:
        with ledger.scope(purpose=Purpose.BUFFERS):
            sync_buffers()

    model.register_forward_pre_hook(enter)
    model.module.register_forward_pre_hook(leave)
    model._sync_buffers = scoped_sync_buffers  # type: ignore[method-assign]
