"""What a collective is for, as far as one can tell where it is issued. What cannot be known is called unknown.

In backward a sum of real numbers is one of gradients. Beyond that an operation does not tell: FSDP gathers parameters
again in backward, a compressor of gradients gathers what it kept, tensor parallelism gathers activations. But who
issues it tells: a function of FSDP or DeepSpeed that is known, or a communication hook of DDP, which is given a bucket.
"""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch import Tensor
from torch._C._distributed_c10d import GradBucket

from dtrain.exchange import Op
from dtrain.meter.ledger import Purpose

_SUMS = (Op.ALL_REDUCE, Op.REDUCE_SCATTER, Op.REDUCE)

_FSDP, _DEEPSPEED = "torch.distributed.fsdp.", "deepspeed.runtime."
_ISSUERS = {
    "foreach_all_gather": (_FSDP, Purpose.PARAMETERS),  # FSDP2, forward and backward
    "_all_gather_flat_param": (_FSDP, Purpose.PARAMETERS),  # FSDP1
    # of DeepSpeed 0.19, seen with ZeRO 0 to 3: it reduces after backward, too
    "allreduce_bucket": (_DEEPSPEED, Purpose.GRADIENT),
    "gradient_reduction_w_predivide": (_DEEPSPEED, Purpose.GRADIENT),
    "__avg_scatter_grads": (_DEEPSPEED, Purpose.GRADIENT),
    "__avg_scatter_contiguous_grads": (_DEEPSPEED, Purpose.GRADIENT),
    "all_gather_dp_groups": (_DEEPSPEED, Purpose.PARAMETERS),
    "all_gather_into_tensor_dp_groups": (_DEEPSPEED, Purpose.PARAMETERS),
    "_all_gather_coalesced": (_DEEPSPEED, Purpose.PARAMETERS),
    "_all_gather_dtype": (_DEEPSPEED, Purpose.PARAMETERS),
    "_allgather_param": (_DEEPSPEED, Purpose.PARAMETERS),
    "_allgather_params_coalesced": (_DEEPSPEED, Purpose.PARAMETERS),
    "_allgather_params_sequential": (_DEEPSPEED, Purpose.PARAMETERS),
}
"""Functions that send one kind of thing only, and where they are defined."""
_MAX_FRAMES = 20
"""How far up an issuer is looked for: there are up to ten frames of torch and DeepSpeed in between."""


def purpose_of(op: Op, tensor: Tensor) -> Purpose:
    """What the collective that this thread is about to issue is for; `tensor` is one of those that it sends."""
    in_backward = torch._C._current_graph_task_id() != -1
    if in_backward and op in _SUMS and (tensor.is_floating_point() or tensor.is_complex()):
        return Purpose.GRADIENT  # not of integers: DDP adds up a map of unused parameters
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_MAX_FRAMES):
        if frame is None:
            break
        package, purpose = _ISSUERS.get(frame.f_code.co_name, ("", Purpose.UNKNOWN))
        if package and str(frame.f_globals.get("__name__")).startswith(package):
            return purpose
        if in_backward and _is_hook_of_ddp(frame):
            return Purpose.GRADIENT
        frame = frame.f_back
    return Purpose.UNKNOWN


def _is_hook_of_ddp(frame: FrameType) -> bool:
    """DDP insists on the argument's name."""
    code = frame.f_code
    return "bucket" in code.co_varnames[: code.co_argcount] and isinstance(frame.f_locals.get("bucket"), GradBucket)
