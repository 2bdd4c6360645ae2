"""`Local` in anybody's program: hooked to the optimizer's step, on a model that nothing else keeps together."""

from __future__ import annotations

import atexit
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.exchange import Compressor
from dtrain.meter.ledger import Ledger
from dtrain.sync.ahead import compile_ahead
from dtrain.sync.local import Local, Method
from dtrain.sync.models import (
    PLAIN,
    check_all_ranks,
    check_apart,
    check_hook,
    check_parameters,
    check_trained,
    kind_of,
    unwrapped,
)
from dtrain.sync.parameters import share_parameters


def local_bucket(state: object, bucket: Any) -> Any:
    """DDP's communication hook: gradients stay each worker's own."""
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


local_bucket.__annotations__ = {"bucket": GradBucket, "return": torch.futures.Future[Tensor]}


class LocalProgram(Local):
    """A `Local` that takes part whenever the optimizer steps. Made by `attach`.

    A program that leaves a step out (a loss that is not finite) calls `discard` in its place, so that the other ranks,
    who may not leave it out, do not wait; for a GradScaler that is done where it was given to `attach`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        compressor: Compressor,
        communicator: TorchCommunicator,
        ledger: Ledger,
        *,
        method: Method,
        seed: int,
        ddp: DistributedDataParallel | None = None,
    ) -> None:
        super().__init__(model, optimizer, compressor, communicator, ledger, method=method, seed=seed)
        self._model, self._communicator, self._ddp = model, communicator, ddp
        self._scaler: GradScaler | None = None
        self._stepped = 0
        self._hooks = [
            optimizer.register_step_pre_hook(self._on_step),
            optimizer.register_step_post_hook(self._on_stepped),
        ]
        atexit.register(self.close)

    def follow(self, scaler: GradScaler) -> None:
        """Take part also in steps that `scaler` leaves out, since this rank's gradients were not finite."""
        step, self._scaler = scaler.step, scaler

        def step_or_discard(optimizer: Optimizer, *arguments: Any, **keywords: Any) -> Any:
            before = self._stepped
            result = step(optimizer, *arguments, **keywords)
            if unwrapped(optimizer) is self._optimizer and self._stepped == before:
                self.discard()
            return result

        scaler.step = step_or_discard  # type: ignore[method-assign]

    def discard(self) -> None:
        """See `Local`. In the place of a step, of which the program says nothing else."""
        self._pending = True
        super().discard()

    def close(self) -> None:
        """Let go of the model and the optimizer; a DDP model stays without any exchange. The program's end does so."""
        atexit.unregister(self.close)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._scaler is not None:
            self._scaler.__dict__.pop("step", None)
        super().close()
        self._communicator.close()

    def _on_step(self, optimizer: Optimizer, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        known = {id(p) for _, p in self._parameters}
        new = [name for name, p in self._model.named_parameters() if p.requires_grad and id(p) not in known]
        if new:
            raise ValueError(
                f"{new[0]} was replaced or unfrozen after dtrain.local: close() it and call dtrain.local again"
            )
        if self._ddp is not None and self._ddp._join_config.enable:
            raise ValueError(
                "inside Join a rank whose inputs have ended makes no step, and the others would wait for its updates: "
                "without Join, call discard() there for each step that others still make"
            )
        if getattr(optimizer, "found_inf", None) is not None:  # a fused one, which heeds its GradScaler by itself
            self._pending = True
            return None
        closure = keywords.get("closure", arguments[1] if len(arguments) > 1 else None)
        if closure is None:
            self.before_step()
            return None

        def closure_and_check() -> Any:  # gradients are there once it has run: Lightning's steps are all of this kind
            loss = closure()
            self.before_step()
            return loss

        if "closure" in keywords:
            return arguments, {**keywords, "closure": closure_and_check}
        return (arguments[0], closure_and_check, *arguments[2:]), keywords

    def _on_stepped(self, optimizer: Optimizer, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._stepped += 1
        self.after_step()


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    compressor: Compressor,
    ledger: Ledger,
    *,
    method: Method | None = None,
    group: dist.ProcessGroup | None = None,
    seed: int = 0,
    scaler: GradScaler | None = None,
) -> LocalProgram:
    """Exchange what steps of `optimizer` change in `model` from now on, which begins as the first rank's.

    Raises ValueError, naming the cure, for a model that something else keeps together, for parameters that the
    optimizer does not have, and before torch.distributed is initialised.
    """
    if not dist.is_initialized():
        raise ValueError("torch.distributed is not initialised: call torch.distributed.init_process_group first")
    given = getattr(model, "_orig_mod", model)
    kind = kind_of(given)
    ddp = given if isinstance(given, DistributedDataParallel) else None
    inner: nn.Module = given if ddp is None else ddp.module
    if group is not None:
        check_apart(given, group)
        ddp = None  # goes on to average gradients, among others
    elif ddp is None and kind is not PLAIN:
        raise ValueError(f"dtrain.local takes a plain module or a DDP model, and this is {kind.name}: {kind.instead}")
    if ddp is not None:
        check_hook(ddp)
        check_all_ranks(ddp)
    check_parameters(inner, sparse=True)
    check_trained(inner, optimizer)
    if (first := next(inner.parameters(), None)) is not None:
        compile_ahead(compressor, first.device)  # before ranks meet, so that no step waits for it
    workers: Any = group or dist.group.WORLD
    communicator = TorchCommunicator(workers).duplicate()
    share_parameters(inner, communicator, ledger)
    method = method or Method()
    program = LocalProgram(inner, optimizer, compressor, communicator, ledger, method=method, seed=seed, ddp=ddp)
    if ddp is not None:  # last: torch never lets go of a hook
        ddp.register_comm_hook(None, local_bucket)
    if scaler is not None:
        program.follow(scaler)
    return program
