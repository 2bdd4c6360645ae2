"""From a stranger's script to a verdict in two commands, and a training that plans for itself."""

from __future__ import annotations

import json
from pathlib import Path

from programs import dtrain_command, on_ranks, read_summary, run, train_command

PROGRAM = """
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)
dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(500, 1000), torch.nn.Linear(1000, 500)))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(8):
    optimizer.zero_grad()
    model(torch.ones(4, 500)).square().mean().backward()
    optimizer.step()
del model, optimizer
dist.destroy_process_group()
"""
NUM_PARAMETERS = 2 * 500 * 1000 + 1500


def test_a_script_is_traced_and_planned_for(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PROGRAM)
    traced = ["-m", "dtrain.meter", "--trace", "run.json", "--steps", "5", "script.py"]
    said = run(on_ranks(2, *traced), tmp_path).expect(0).stderr
    (advice,) = [line for line in said.splitlines() if "Gradients are " in line]
    assert advice.startswith(
        "dtrain: Gradients are 100% of the 4.0 MB that a rank sends a step. On 2 hosts, at 100 Mbit/s "
    )
    assert said.splitlines()[-1] == "dtrain: for other hosts and links: dtrain plan run.json --nodes N --link 1gbit"
    planned = {}
    for link in ("10mbit", "100gbit"):
        plan = ["plan", "run.json", "--nodes", "2", "--link", link, "--threads", "1", "--methods", "int4", "--json"]
        planned[link] = json.loads(run(dtrain_command(*plan), tmp_path).expect(0).stdout)
    slow, fast = planned["10mbit"], planned["100gbit"]
    assert slow["best"] == "int4"
    assert slow["verdict"].startswith("Use int4: ")
    assert fast["verdict"].startswith("Change nothing: ")
    (dense,) = [row for row in slow["rows"] if row["candidate"]["label"] == "none"]
    assert dense["sent_bytes"] == 4 * NUM_PARAMETERS
    assert dense["bound"] == "bandwidth"
    assert slow["job"]["optimizer"] == "adamw"


def test_a_training_chooses_says_why_and_goes_on_with_its_choice(tmp_path: Path) -> None:
    settings = ["compressor=auto", "batch_size=4", "eval_every_epochs=0", "observe.progress=false", "num_steps=4"]
    first = run(train_command(*settings, "save_every=2", "run_dir=first", ranks=2), tmp_path).expect(0)
    chosen = [line for line in first.stdout.splitlines() if line.startswith("auto: ")]
    assert len(chosen) == 1
    label = read_summary(tmp_path / "first")["chosen"]
    assert chosen[0].startswith(f"auto: {label}. ")
    resume = ["resume=first/checkpoints/step-000002", "run_dir=rest"]
    rest = run(train_command(*settings, *resume, ranks=2), tmp_path).expect(0)
    assert "auto: " not in rest.stdout
    assert read_summary(tmp_path / "rest")["chosen"] == label
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "rest")]
    assert weights[0][weights[0].index(b"}") :] == weights[1][weights[1].index(b"}") :]
