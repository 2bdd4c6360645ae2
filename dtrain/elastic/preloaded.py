"""What a process imports that workers are forked from: what a training needs, some of which torch imports at its first
step only (`torch.optim`, by `torch._dynamo`), and no thread of which runs before it is forked.
"""

import hydra.core.global_hydra
import torch._dynamo
import torch.distributed.nn.functional

import dtrain.train.entry

__all__ = ["dtrain", "hydra", "torch"]
