"""Commands in files that people hand on have no passwords, tokens or keys in them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dtrain.meter.command_line import url_without_secrets, without_secrets
from dtrain.meter.job_traffic import JobTraffic
from dtrain.observe.run_directory import write_environment

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "command",
    [
        ["--token", SECRET],
        ["--api-key", SECRET],
        ["-password", SECRET],
        [f"--hub_token={SECRET}"],
        [f"HF_TOKEN={SECRET}"],
        [f"OPENAI_API_KEY={SECRET}"],
        [f"+wandb.apiKey={SECRET}"],
        [f"db.password='{SECRET} and more {SECRET}'"],
        [f"http://user:{SECRET}@host/x"],
        [f"data.root=s3://AKIA:{SECRET}/x@bucket/y".replace("/x@", "@")],
        [f"https://host/x?a=1&access_token={SECRET}&b=2"],
        ["--header", f"X-Api-Key: {SECRET}"],
        ["--header", f"Authorization: Bearer {SECRET}"],
        [f'--config={{"lr": 1, "secret": "{SECRET}"}}'],
        [f"store=postgres,user=a,passwd={SECRET},x=1"],
        [f"ghp_{SECRET}"],
        [f"x=hf_{SECRET}"],
        [f"eyJ{SECRET}.{SECRET}.{SECRET}"],
    ],
)
def test_what_looks_like_a_secret_is_masked(command: list[str]) -> None:
    shown = without_secrets(["train.py", *command, "lr=0.1"])
    assert SECRET not in " ".join(shown)
    assert "***" in " ".join(shown)
    assert (len(shown), shown[0], shown[-1]) == (len(command) + 2, "train.py", "lr=0.1")


def test_everything_else_stays_as_it_is() -> None:
    command = [
        *("dtrain train", "model=alexnet", "max_tokens=100", "tokenizer=gpt2", "author=me", "run_dir=runs/a:b"),
        *("https://host:80/x?y=z", "a@b", "--verbose", "--keys", "3", "monkey=1", "optimizer.lr=0.1", "resume=x@y", ""),
    ]
    assert without_secrets(command) == command


def test_no_file_that_keeps_the_command_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dtrain train", f"token={SECRET}"])
    write_environment(tmp_path, {})
    assert json.loads((tmp_path / "environment.json").read_text())["command"] == ["dtrain train", "token=***"]
    assert JobTraffic(["x.py", "--token", SECRET], 1, [], None).as_json()["command"] == ["x.py", "--token", "***"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:pw@node0:9400", "http://***@node0:9400"),
        ("https://me:p/w@x@node0/metrics", "https://***@node0/metrics"),
        ("http://node0:9400/metrics?token=abc", "http://node0:9400/metrics?token=***"),
        ("http://node0:9400/metrics", "http://node0:9400/metrics"),
    ],
)
def test_an_address_is_shown_without_user_and_password(url: str, shown: str) -> None:
    assert url_without_secrets(url) == shown
