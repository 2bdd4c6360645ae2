"""A pipeline: activations go from rank to rank by send and recv, gradients come back by isend and irecv in batches.

It leaves its process group to the interpreter's end.
"""

import hashlib
import sys

import torch
import torch.distributed as dist

num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3
dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(rank)
weight = (torch.randn(256, 256) / 16).requires_grad_()
for step in range(num_steps):
    outputs, inputs = [], []
    for _ in range(4):  # micro-batches of 256 KB
        x = torch.randn(256, 256)
        if rank > 0:
            dist.recv(x, rank - 1)
        inputs.append(x.requires_grad_())
        outputs.append((inputs[-1] @ weight).relu())
        if rank < world_size - 1:
            dist.send(outputs[-1].detach(), rank + 1)
    gradients = [torch.ones_like(output) / output.numel() for output in outputs]
    if rank < world_size - 1:
        if step == 0:
            works = [dist.irecv(gradient, rank + 1) for gradient in gradients]
        else:
            works = dist.batch_isend_irecv([dist.P2POp(dist.irecv, gradient, rank + 1) for gradient in gradients])
        for work in works:
            work.wait()
    torch.autograd.backward(outputs, gradients)
    if rank > 0:
        back = [x.grad for x in inputs]
        if step == 0:
            works = [dist.isend(gradient, rank - 1) for gradient in back]
        else:
            works = dist.batch_isend_irecv([dist.P2POp(dist.isend, gradient, rank - 1) for gradient in back])
        for work in works:
            work.wait()
    with torch.no_grad():
        weight -= 0.1 * weight.grad
        weight.grad = None
print(f"rank {rank} {hashlib.sha256(weight.detach().numpy().tobytes()).hexdigest()}\n", end="", flush=True)
