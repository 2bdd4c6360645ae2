"""A small character-level GPT trained data-parallel with DDP and AdamW: the program of a user of dtrain, whole.

    torchrun --standalone --nproc-per-node=2 examples/gpt.py
    torchrun --standalone --nproc-per-node=2 examples/gpt.py --compress int4
    torchrun --standalone --nproc-per-node=2 -- examples/gpt.py --local ternary
    torchrun --standalone --nproc-per-node=2 -- examples/gpt.py --local ternary --every 4

The text is the source of Python's own library. At the end rank 0 prints one line of JSON: the validation loss, and what
all ranks sent while they trained. --save FOLDER stores the run after its last step, --save-every 50 also after each
50, and --resume FOLDER/step50 goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sysconfig
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

import dtrain
import dtrain.meter

CONTEXT, WIDTH, LAYERS, HEADS = 32, 128, 4, 4
BATCH_SIZE, NUM_FILES = 8, 120


class Block(nn.Module):
    """Attention and a perceptron, each after a normalisation and added to what came in: (batch, time, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries_keys_values, self.attended = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        heads = self.queries_keys_values(self.attention_norm(x)).view(batch, time, 3, HEADS, WIDTH // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attended(seen.transpose(1, 2).reshape(batch, time, WIDTH))
        return x + self.narrow(gelu(self.widen(self.norm(x))))


class Gpt(nn.Module):
    """Predicts each next character: token numbers (batch, time) to logits (batch, time, vocabulary)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(LAYERS))), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class Text:
    """Characters as numbers: the first 95% for training, the rest for validation."""

    def __init__(self) -> None:
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:NUM_FILES]
        text = "".join(path.read_text(encoding="latin-1") for path in files)
        characters = sorted(set(text))
        number = {character: i for i, character in enumerate(characters)}
        self.vocabulary = len(characters)
        self.training, self.validation = torch.tensor([number[c] for c in text]).tensor_split([int(0.95 * len(text))])

    @staticmethod
    def batch(source: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random pieces, and the same pieces one character on."""
        starts = torch.randint(0, len(source) - CONTEXT - 1, (size,), generator=generator)
        pieces = source[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)]
        return pieces[:, :-1], pieces[:, 1:]


def validate(model: nn.Module, text: Text) -> float:
    """The mean loss over the same pieces every time."""
    generator = torch.Generator().manual_seed(99)
    losses = []
    with torch.no_grad():
        for _ in range(12):
            inputs, targets = text.batch(text.validation, 64, generator)
            losses.append(cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item())
    return sum(losses) / len(losses)


def option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, with a value as JSON has it, or text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    method = parser.add_mutually_exclusive_group()
    method.add_argument("--compress", metavar="NAME", help="exchange gradients through this compressor")
    method.add_argument("--local", metavar="NAME", help="exchange the optimizer's updates through this compressor")
    parser.add_argument("--every", type=int, default=1, help="with --local: steps from one exchange to the next")
    parser.add_argument(
        "--round", type=option, action="append", default=[], metavar="NAME=VALUE", help="of local rounds, with --local"
    )
    parser.add_argument(
        "--option", type=option, action="append", default=[], metavar="NAME=VALUE", help="of the method"
    )
    parser.add_argument(
        "--guard", choices=("refuse", "warn", "off"), default="refuse", help="against methods that fail"
    )
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw", help="sgd has momentum 0.9")
    parser.add_argument("--learning-rate", type=float, help="0.001 for adamw and 0.1 for sgd unless given")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    parser.add_argument("--save-every", type=int, default=0, metavar="STEPS")
    parser.add_argument("--resume", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    ledger = dtrain.meter.install()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    text = Text()
    torch.manual_seed(arguments.seed)
    model = Gpt(text.vocabulary)
    if arguments.optimizer == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), arguments.learning_rate or 1e-3)
    else:
        optimizer = torch.optim.SGD(model.parameters(), arguments.learning_rate or 0.1, momentum=0.9)

    trained: nn.Module = model
    synchronizer: Any = None
    options = dict(arguments.option)
    if arguments.local:
        synchronizer = dtrain.local(
            model,
            optimizer,
            every=arguments.every,
            **dict(arguments.round),
            compressor=arguments.local,
            guard=arguments.guard,
            seed=arguments.seed,
            **options,
        )
    else:
        trained = DistributedDataParallel(model)
        if arguments.compress:
            synchronizer = dtrain.compress(
                trained,
                arguments.compress,
                optimizer=optimizer,
                guard=arguments.guard,
                seed=arguments.seed,
                **options,
            )

    first_step = 0
    generator = torch.Generator().manual_seed(1000 + 77 * arguments.seed + rank)
    if arguments.resume:
        saved = torch.load(arguments.resume / f"rank{rank}.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        first_step = saved["step"]
        if synchronizer is not None:
            synchronizer.load_state_dict(saved["synchronizer"])

    def save(step: int) -> None:
        """Each rank its own file, whole or not at all."""
        folder = arguments.save / f"step{step}"
        folder.mkdir(parents=True, exist_ok=True)
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
        saved |= {"step": step, "synchronizer": synchronizer.state_dict() if synchronizer is not None else None}
        torch.save(saved, folder / f"rank{rank}.part")
        (folder / f"rank{rank}.part").replace(folder / f"rank{rank}.pt")

    sent_before = ledger.total().wire_bytes
    for step in range(first_step, arguments.steps):
        inputs, targets = text.batch(text.training, BATCH_SIZE, generator)
        loss = cross_entropy(trained(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise SystemExit(f"step {step}: the loss is {loss.item()}")
        if arguments.save and arguments.save_every and (step + 1) % arguments.save_every == 0:
            save(step + 1)
    if arguments.save:
        save(arguments.steps)
    if arguments.local:
        synchronizer.align()

    sent = torch.tensor([ledger.total().wire_bytes - sent_before], dtype=torch.float64)
    dist.all_reduce(sent)
    dense = 8.0 * (dist.get_world_size() - 1) * sum(p.numel() for p in model.parameters()) * arguments.steps
    if rank == 0:
        result = {
            "validation_loss": round(validate(model, text), 4),
            "wire_bytes_all_ranks": sent.item(),
            "saving_vs_fp32": round(dense / sent.item(), 2) if sent.item() else None,
            "ranks": dist.get_world_size(),
        }
        print(json.dumps(result), flush=True)
    if synchronizer is not None:
        synchronizer.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
