"""`dtrain ship` in processes of its own: a receiver that is killed at any moment leaves a whole, verified version."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from programs import dtrain_command, environment, run

from dtrain.pack import Model, Tensor, from_bytes, pack, to_bytes

NUM_KILLS, AT_ONCE = 50, 5
START_SECONDS = 120.0


def packed(seed: int) -> bytes:
    rng, more = np.random.default_rng(0), np.random.default_rng(seed)
    weights = rng.normal(0, 0.05, (200, 400)) + more.normal(0, 0.002, (200, 400))
    return to_bytes(pack(Model({"weight": Tensor.of(weights.astype("<f4"))}, {}), "smallest"))


VERSIONS = [packed(seed) for seed in range(3)]
DIGESTS = {hashlib.sha256(data).hexdigest() for data in VERSIONS}


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        dtrain_command("ship", *arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def replace(path: Path, data: bytes) -> None:
    partial = path.with_name("next")
    partial.write_bytes(data)
    partial.replace(path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.dtz"
    path.write_bytes(VERSIONS[0])
    return path


@pytest.fixture
def url(model: Path) -> Iterator[str]:
    """A publisher of a file that is another version all the time."""
    publisher = start("publish", str(model), "--port", "0", "--json")
    assert publisher.stdout is not None
    address: str = json.loads(publisher.stdout.readline())["url"]
    over = threading.Event()

    def change() -> None:
        number = 0
        while not over.wait(0.02):
            number += 1
            replace(model, VERSIONS[number % len(VERSIONS)])

    threads = [threading.Thread(target=change), threading.Thread(target=publisher.stdout.read)]
    for thread in threads:
        thread.start()
    yield address
    over.set()
    publisher.send_signal(signal.SIGTERM)
    assert publisher.wait(60) == 130
    for thread in threads:
        thread.join()
    publisher.stdout.close()


@pytest.mark.timeout(900)
def test_a_receiver_killed_at_any_moment_leaves_a_whole_version(tmp_path: Path, url: str) -> None:
    rng = random.Random(0)
    seen: set[str] = set()
    cut_short = 0
    folder = tmp_path / "received"
    folder.mkdir()
    for _ in range(NUM_KILLS // AT_ONCE):
        targets = [folder / f"r{index}.dtz" for index in range(AT_ONCE)]
        before = [path.stat().st_mtime_ns if path.exists() else 0 for path in targets]
        receivers = [start("receive", url, "-o", str(path), "--every", "0") for path in targets]
        for path, earlier, receiver in zip(targets, before, receivers, strict=True):
            deadline = time.monotonic() + START_SECONDS
            while not path.exists() or path.stat().st_mtime_ns == earlier:
                assert time.monotonic() < deadline and receiver.poll() is None
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.1))
            os.kill(receiver.pid, signal.SIGKILL)
            receiver.wait()
            assert receiver.stdout is not None
            receiver.stdout.close()
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            assert digest in DIGESTS
            from_bytes(data)
            seen.add(digest)
            cut_short += path.with_name(path.name + ".partial").exists()
    assert seen == DIGESTS  # versions did change
    assert cut_short > NUM_KILLS // 4  # and most kills were in the middle of something


def test_a_publisher_killed_mid_way_leaves_the_old_version(tmp_path: Path, model: Path) -> None:
    target = tmp_path / "r.dtz"
    publisher = start("publish", str(model), "--port", "0", "--json")
    assert publisher.stdout is not None
    address: str = json.loads(publisher.stdout.readline())["url"]
    run(dtrain_command("ship", "receive", address, "-o", str(target)), tmp_path).expect(0)
    replace(model, VERSIONS[1])
    publisher.kill()
    publisher.wait()
    publisher.stdout.close()
    ended = run(dtrain_command("ship", "receive", address, "-o", str(target)), tmp_path).expect(2)
    assert ended.stderr.startswith("dtrain: error: no publisher answers at")
    assert ended.stderr.count("\n") == 1
    assert target.read_bytes() == VERSIONS[0]


def test_receiving_takes_no_torch(tmp_path: Path, url: str) -> None:
    """A device that receives models need not have it in memory."""
    program = (
        "import sys; from dtrain.cli import main; "
        f"code = main(['ship', 'receive', {url!r}, '-o', 'r.dtz']); sys.exit(code or 'torch' in sys.modules)"
    )
    run([dtrain_command()[0], "-c", program], tmp_path).expect(0)
