"""A rank that stops taking part is found in what all ranks wrote down, its own included."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from ranks import Here, on_ranks

from dtrain.meter import c10d, roll_call
from dtrain.meter.culprit import find_culprit, read_dumps
from dtrain.meter.flight import last_of_torch
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.meter.roll_call import RollCall

SECONDS = 3


@on_ranks(3, joined=False)
def test_the_rank_that_stopped_taking_part_is_named_from_the_dumps(here: Here) -> None:
    here.join(timedelta(seconds=SECONDS))
    ledger = Ledger()
    ledger.recent.folder = here.folder

    def say_last() -> str:
        ledger.recent.dump(ledger, here.rank, here.world_size)
        return ledger.recent.say_last()

    roll_call.POLL_SECONDS = 0.1
    calling = RollCall(dist.PrefixStore("roll", here.store), here.rank, here.world_size, c10d.is_idle, say_last)
    with c10d.installed(ledger), ledger.scope(purpose=Purpose.GRADIENT):
        value = torch.ones(1000)
        for _ in range(5):
            dist.all_reduce(value)
        if here.rank == 1:
            deadline = time.monotonic() + 60
            while not (here.folder / "collectives-rank1.json").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
        else:
            with suppress(RuntimeError):
                dist.all_reduce(value)
                raise AssertionError("nobody was missed")
            ledger.recent.error = "all_reduce failed"
            said = calling.call()
            assert not said or "alive but in no collective (it started all_reduce 5 of 4,000 B (gradient) " in said
            ledger.recent.dump(ledger, here.rank, here.world_size)
    (here.folder / f"trace_rank_{here.rank}.json").write_text(json.dumps(last_of_torch(100)))
    here.store.set(f"dumped {here.rank}", "")
    here.store.wait([f"dumped {rank}" for rank in range(3)])
    calling.leave()
    dumps = read_dumps([here.folder])
    found = find_culprit(dumps)
    assert found.ranks == (1,)
    assert "never started all_reduce 6 of 4,000 B (gradient), in which ranks 0, 2 waited" in found.sentence
    assert found.last_finished is not None
    assert found.last_finished.number == 5
    by_torch = find_culprit(read_dumps(here.folder / f"trace_rank_{rank}.json" for rank in range(3)))
    assert by_torch.ranks == (1,)
    assert "never started all_reduce 6 of 4,000 B (unknown), in which ranks 0, 2 waited" in by_torch.sentence
