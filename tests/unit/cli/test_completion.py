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


def test_bash_leaves_a_space_behind_all_but_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for words, offered in (("ship pub", "publish "), ("train batch", "batch_size=")):
        line = f"COMP_WORDS=(dtrain {words}); COMP_CWORD=2; _dtrain; printf '%s|' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "-c", script(capsys, "bash") + line], capture_output=True, text=True, check=True)
        assert done.stdout == f"{offered}|"


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed: apt install zsh")
def test_zsh_loads_its_own_and_finds_the_words_of_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    load = "autoload -U compinit && compinit -u -D\n" + script(capsys, "zsh")
    as_bashcompinit = "emulate -R sh; setopt kshglob noshglob braceexpand nokshautoload\n"
    ask = "COMP_WORDS=(dtrain {}); COMP_CWORD=2; _dtrain; printf '%s|' \"${{COMPREPLY[@]}}\"; echo\n"
    program = load + as_bashcompinit + ask.format("ship pub") + ask.format("train batch")
    done = subprocess.run(["zsh", "-f", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    ship, train = (line.split("|") for line in done.stdout.splitlines())
    assert ship[:3] == ["keygen ", "publish ", "receive "]  # zsh itself keeps those that begin as the word does
    assert "batch_size=" in train


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed: apt install fish")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dtrain pla", ["plan"]),
        ("dtrain ship ", ["keygen", "publish", "receive", "--help"]),  # and no files
        ("dtrain ship publish --cert", ["--certificate"]),
        ("dtrain train batch", ["batch_size="]),
    ],
)
def test_fish_completes_verbs_options_and_settings(
    capsys: pytest.CaptureFixture[str], line: str, offered: list[str]
) -> None:
    program = f"{script(capsys, 'fish')}complete -C'{line}'\n"
    done = subprocess.run(["fish", "--no-config"], input=program, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_alone_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: dtrain" in capsys.readouterr().out
    assert main(["ship"]) == 0
    assert "publish" in capsys.readouterr().out
