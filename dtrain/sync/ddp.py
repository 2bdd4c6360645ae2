"""A DDP communication hook, for other people's models: any compressor under stock DistributedDataParallel.

DDP rebuilds its buckets after the first step, so states are kept by parameter name and put together anew for a layout
not seen before. Exchanges run on one thread per rank, on a process group of their own: DDP's own group stays free for
what torch sends on it during backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.exchange import (
    Bucket,
    Compressor,
    Context,
    Exchange,
    Exchanged,
    Layout,
    Scratch,
    State,
    put_together,
    take_apart,
)
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.sync.engine import Engine


class DdpSynchronizer:
    """Exchanges the gradient buckets of a DDP model through a compressor. Made by `attach`."""

    def __init__(
        self, model: DistributedDataParallel, compressor: Compressor, ledger: Ledger, *, seed: int = 0
    ) -> None:
        group: dist.ProcessGroup = model.process_group
        self._communicator = TorchCommunicator(group).duplicate()
        self._compressor, self._ledger, self._seed = compressor, ledger, seed
        self._names = {id(p): name for name, p in model.module.named_parameters()}
        self._device = next(model.parameters()).device
        self._engine = Engine(self._communicator, ledger, self._device, overlap=True)
        self._states: dict[Layout, State] = {}
        self._scratch: dict[Layout, Scratch] = {}
        self._staged: dict[Layout, State] = {}
        self._step = 0
        self.error: BaseException | None = None
        """The exception that an exchange met; DDP itself reports it as a failure to cast a future's value."""

    def on_bucket(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """The hook proper: DDP calls it for each bucket, in the same order on every rank."""
        devices: list[int | str | torch.device] | None = [self._device] if self._device.type == "cuda" else None
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        parameters = bucket.parameters()
        layout = Layout(tuple(self._names[id(p)] for p in parameters), tuple(tuple(p.shape) for p in parameters))
        value, step, last = Bucket(bucket.buffer(), layout), self._step, bucket.is_last()

        def start() -> Exchange:
            value.value.mul_(1.0 / self._communicator.world_size)
            context = Context(
                self._communicator.rank,
                self._communicator.world_size,
                step,
                seed=self._seed,
                scratch=self._scratch.setdefault(layout, Scratch()),
            )
            return self._compressor.exchange(value, self._state(value), context)

        def hand_over(result: Exchanged) -> None:
            self._staged[layout] = result.state
            # DDP addresses the result from the start of its storage, so a part of a larger tensor will not do
            whole = result.mean.is_contiguous() and result.mean.storage_offset() == 0
            future.set_result(result.mean if whole else result.mean.clone(memory_format=torch.contiguous_format))

        def fail(error: BaseException) -> None:
            self.error = self.error or error
            future.set_exception(error)  # type: ignore[arg-type]

        self._engine.submit(start, hand_over, fail)
        if last:
            self._engine.flush(self._commit)
            self._step += 1
        return future

    def state_dict(self) -> dict[str, Any]:
        """{"step": int, "parameters": {name: {path: tensor}}} after the last backward, by parameter name, copied."""
        self._engine.wait()  # the last step's states are kept by the engine's thread
        return {
            "step": self._step,
            "parameters": {
                name: {path: part.clone() for path, part in parts.items()} for name, parts in self._parts().items()
            },
        }

    def close(self) -> None:
        """End the thread, and leave the process group of the exchange."""
        self._engine.close()
        self._communicator.close()

    def _state(self, bucket: Bucket) -> State:
        state = self._states.get(bucket.layout)
        if state is None:
            state = put_together(self._compressor.init(bucket), self._parts())
        return state

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        return {name: parts for state in self._states.values() for name, parts in take_apart(state).items()}

    def _commit(self) -> None:
        """The step is whole: its states replace those of any earlier bucketing."""
        self._states, self._staged = self._staged, {}
        for layout in set(self._scratch) - set(self._states):
            del self._scratch[layout]


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
