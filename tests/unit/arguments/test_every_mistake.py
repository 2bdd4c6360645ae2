"""Wrong inputs made out of every setting, option and verb: each is one line with the cure, and exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dtrain.cli import command_line
from dtrain.cli import main as dtrain
from dtrain.train.compose import read_request
from dtrain.train.entry import main as train

Said = Callable[..., str]

ANY_NUMBER = ("data.data_seed",)
"""Settings that -1 is as good for as any."""


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """What is said of the mistake in a command line: of the trainer where it is settings."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, trains: bool = False) -> str:
        code = train(arguments) if trains else dtrain(arguments)
        out, err = capsys.readouterr()
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, code, out, err)
        assert err.startswith("dtrain: error: ")
        assert "Traceback" not in err
        assert list(tmp_path.iterdir()) == []  # nothing was begun
        return err

    return run


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def settings(*chosen: str) -> dict[str, Any]:
    composed = read_request(chosen).composed
    assert composed is not None
    plain = OmegaConf.to_container(composed)
    assert isinstance(plain, dict)
    return dict(leaves(plain))


SETTINGS = settings("sync=streaming", "compressor=dgc", "data=synthetic")


def chosen_for(name: str) -> list[str]:
    """What a run is told so that it has this setting."""
    groups = ("compressor=dgc", "data=synthetic") if not name.startswith("sync.") else ("sync=streaming",)
    return [*groups, "num_steps=1"]


def without_a_letter(name: str) -> str:
    place = len(name) - 2
    return name[:place] + name[place + 1 :]


@pytest.mark.parametrize("name", list(SETTINGS)[::9])
def test_a_setting_without_a_letter(said: Said, name: str) -> None:
    line = said(*chosen_for(name), f"{without_a_letter(name)}=1", trains=True)
    assert "is not a setting" in line
    assert "did you mean" in line or len(name.rpartition(".")[2]) < 4
    assert name.rpartition(".")[2] in line


@pytest.mark.parametrize("name", list(SETTINGS)[1::8])
def test_a_setting_of_another_type(said: Said, name: str) -> None:
    wrong = "5" if isinstance(SETTINGS[name], dict | list) else "[1]"
    assert name.rpartition(".")[2] in said(*chosen_for(name), f"{name}={wrong}", trains=True)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, value in SETTINGS.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in ANY_NUMBER
    ][::5],
)
def test_a_setting_out_of_range(said: Said, name: str) -> None:
    assert name.rpartition(".")[2] in said(*chosen_for(name), f"{name}=-1", trains=True)


@pytest.mark.parametrize(
    "setting",
    ["init_weights=nowhere", "resume=nowhere", "teacher=nowhere", "data=image_folder data.root=nowhere"],
)
def test_a_setting_that_names_a_missing_file(said: Said, setting: str) -> None:
    assert "nowhere" in said(*setting.split(), "num_steps=1", trains=True)


@pytest.mark.parametrize("group", ["model", "data", "compressor", "backend", "optimizer", "sync", "experiment"])
def test_a_choice_without_a_letter(said: Said, group: str) -> None:
    some = {"model": "alexne", "data": "digts", "compressor": "topk", "backend": "glo", "optimizer": "sg"}
    name = {**some, "sync": "evry_step", "experiment": "digit"}[group]
    line = said(f"{group}={name}", "num_steps=1", trains=True)
    assert f"{group}={name} does not exist (did you mean " in line


VERBS: dict[str, argparse.ArgumentParser] = {}


def _walk(parser: argparse.ArgumentParser, path: str) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                VERBS[f"{path} {verb}".strip()] = below
                _walk(below, f"{path} {verb}".strip())


_walk(command_line(), "")
del VERBS["train"], VERBS["resume"]
OPTIONS = [
    (verb, option.option_strings[-1], option)
    for verb, parser in VERBS.items()
    for option in parser._actions
    if option.option_strings and option.option_strings[-1].startswith("--") and option.option_strings[-1] != "--help"
]


def positionals(verb: str) -> list[str]:
    """Something in each place that must be taken."""
    taken: list[str] = []
    for action in VERBS[verb]._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        if action.option_strings and action.required:
            taken += [action.option_strings[-1], "1"]
        elif not action.option_strings and action.nargs not in ("*", "?", argparse.REMAINDER):
            taken.append(str(next(iter(action.choices))) if action.choices else "nowhere")
    return [*verb.split(), *taken]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_without_a_letter(said: Said, verb: str) -> None:
    *group, last = verb.split()
    assert f"(did you mean {last}?)" in said(*group, without_a_letter(last))


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb, option, _ in OPTIONS[::3]])
def test_an_option_without_a_letter(said: Said, verb: str, option: str) -> None:
    assert f"(did you mean {option}?)" in said(*positionals(verb), f"{option[:3]}{option[4:]}x")


@pytest.mark.parametrize(("verb", "option"), [(v, o) for v, o, action in OPTIONS if action.type in (int, float)])
def test_an_option_of_another_type(said: Said, verb: str, option: str) -> None:
    assert f"{option} many must be a" in said(*positionals(verb), option, "many")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("explain topk", "did you mean top_k?"),
        ("explain top_k densty=1", "did you mean density?"),
        ("explain top_k density=abc", "density='abc' must be a number"),
        ("explain top_k density=0", "density=0 must be above 0"),
        ("explain top_k density=.nan", "must be a finite number"),
        ("explain top_k density", "OPTION=VALUE"),
        ("explain top_k density=[", "density=["),
        ("explain int8 rounding=neerest", "did you mean nearest?"),
        ("explain int8 rounding=3", "rounding=3"),
        ("explain top_k start_after=-1", "start_after=-1"),
        ("explain top_k start_after=abc", "start_after='abc'"),
        ("explain top_k step=3", "step"),
        ("explain top_k model=alexnet", "model"),
        ("explain top_k --model alexne", "did you mean alexnet?"),
        ("explain top_k --world-size 0", "--world-size 0"),
        ("explain top_k --num-classes 0", "num_classes"),
        ("explain top_k --step -1", "--step -1"),
        ("plan --nodes 2 --link 1gbit modle=alexnet", "did you mean model?"),
        ("plan --nodes 2 --link 1gb --params 1M --compute 1ms", "1gb"),
        ("plan --nodes 0 --link 1gbit --params 1M --compute 1ms", "--nodes 0"),
        ("plan --nodes 2 --link 1gbit --params 1M --compute 1ms --backend glo", "did you mean gloo?"),
        ("plan --nodes 2 --link 1gbit --params 1M --compute 1ms --methods int5", "did you mean int"),
        ("plan --nodes 2 --link 1gbit --params 1M --compute 1ms --methods", "--methods"),
        ("plan --nodes 2 --link 1gbit --module nowhere.py:make", "nowhere.py"),
        ("plan --nodes 2 --link nowhere.json --params 1M --compute 1ms", "nowhere.json"),
        ("plan --nodes 2 --link 1gbit nowhere.json", "nowhere.json"),
        ("plan --link 1gbit", "--nodes"),
        ("plan --nodes 2 --link 1gbit --params 1M --compute 1ms --threads 0", "--threads 0"),
        ("plan --nodes 2 --link 1gbit --params 1M --compute 1ms --price -1", "--price"),
        ("plan --nodes 2 --link 1gbit --params 1M --compute 1ms --num-steps 0", "--num-steps"),
        ("plan --nodes 2 --link 1gbit --params 1M --compute 1ms --cores nan", "--cores"),
        ("plan --nodes 2 --link 1gbit --params 1M --compute 1ms --ranks-per-node 0", "--ranks-per-node 0"),
        ("simulate --link 1gbit --params 1M --compute 1ms --spread -1", "--spread"),
        ("simulate --link 1gbit --params 1M --compute 1ms --hours-between-faults -1", "--hours-between-faults"),
        ("pack nowhere.safetensors -o x.dtz", "nowhere.safetensors"),
        ("unpack nowhere.dtz -o x.safetensors", "nowhere.dtz"),
        ("inspect nowhere.dtz", "nowhere.dtz"),
        ("evaluate nowhere.safetensors", "nowhere.safetensors"),
        ("evaluate nowhere.safetensors --batch-size 0", "--batch-size 0"),
        ("evaluate nowhere.safetensors --split tets", "did you mean test?"),
        ("compare nowhere", "nowhere"),
        ("claims nowhere", "nowhere"),
        ("report nowhere", "nowhere"),
        ("top nowhere --once", "nowhere"),
        ("trace nowhere", "nowhere"),
        ("ship publish nowhere.dtz", "nowhere.dtz"),
        ("ship publish nowhere.dtz --port 99999", "--port 99999"),
        ("ship receive htp://x -o y", "htp://x"),
        ("ship receive http://127.0.0.1:1 -o y --every -1", "--every -1"),
        ("cluster run --nodes 0 -- true", "--nodes 0"),
        ("cluster run --rate 5 -- true", "--rate 5"),
        ("completion bsh", "did you mean bash?"),
    ],
)
def test_what_verbs_are_given(said: Said, line: str, part: str) -> None:
    assert part in said(*line.split())
