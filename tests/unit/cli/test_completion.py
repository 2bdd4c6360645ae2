from __future__ import annotations

import shutil
import subprocess

import pytest

from dtrain.cli import main


def script(capsys: pytest.CaptureFixture[str], shell: str) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pla", ["plan"]),
        ("plan --lat", ["--latency"]),
        ("plan optimizer.learn", ["optimizer.learning_rate="]),
        ("train batch", ["batch_size="]),
        ("ship pub", ["publish"]),
        ("ship publish --cert", ["--certificate"]),
        ("completion z", ["zsh"]),
        ("ship", ["ship"]),
    ],
)
def test_bash_completes_verbs_options_and_settings(
    capsys: pytest.CaptureFixture[str], words: str, offered: list[str]
) -> None:
    line = f"COMP_WORDS=(dtrain {words}); COMP_CWORD={len(words.split())}; _dtrain; echo ${{COMPREPLY[@]}}"
    bash = ["bash", "-c", script(capsys, "bash") + line]
    assert subprocess.run(bash, capture_output=True, text=True, check=True).stdout.split() == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_can_read_theirs(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    text = script(capsys, shell)
    assert "ship" in text
    assert "batch_size=" in text
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_alone_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: dtrain" in capsys.readouterr().out
    assert main(["ship"]) == 0
    assert "publish" in capsys.readouterr().out
