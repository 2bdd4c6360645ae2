"""The command line of training: Hydra's overrides, composed by its API, so that mistakes are errors and no prints."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_module
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dtrain.arguments import Parser, check_name, nearest, nearest_name
from dtrain.observe.run_directory import CONFIG
from dtrain.train.checkpoint_folder import find
from dtrain.train.config import LATEST

HELP = """\
Every setting with its value: dtrain train --cfg job. conf/ says what each means.
GROUP=NAME chooses one of these, GROUP.SETTING=VALUE changes what it says:
"""

_OPTIONAL = "experiment"
"""The group of which nothing is chosen unless it is asked for."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for: to train with `composed`, or only to print `text`."""

    composed: DictConfig | None
    text: str = ""


class _Parser(Parser):
    def __init__(self, arguments: Sequence[str], **options: Any) -> None:
        super().__init__(add_help=False, allow_abbrev=False, **options)
        self._arguments = list(arguments)

    def refuse_option(self, argument: str) -> NoReturn:
        """An option that is a setting is written without its dashes."""
        option, has_value, value = argument.partition("=")
        setting = nearest_name(option.lstrip("-").replace("-", "_"), setting_names())
        if not option.startswith("--") or setting is None or nearest_name(option, self._option_string_actions):
            super().refuse_option(argument)
        if not has_value:
            following = self._arguments[self._arguments.index(argument) + 1 :][:1]
            value = following[0] if following and not following[0].startswith("-") else "VALUE"
        raise ValueError(f"there is no option {option}: settings are KEY=VALUE, so write {setting}={value}")


def read_request(arguments: Sequence[str]) -> Request:
    """Compose the configuration that the arguments describe. Raises ValueError, naming the cure, for a mistake."""
    parser = _Parser(
        arguments,
        prog="dtrain train",
        description="Train a model; settings as KEY=VALUE (https://hydra.cc).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="a setting; +KEY=VALUE adds one, ~KEY drops it"
    )
    parser.add_argument("-h", "--help", action="store_true", help="print this")
    parser.add_argument("--cfg", "-c", choices=("job",), help="print the configuration as YAML, and do not train")
    parser.add_argument("--resolve", action="store_true", help="of --cfg: with references replaced by their values")
    parser.add_argument("--config-dir", "-cd", type=Path, metavar="DIR", help="a folder of yours beside conf/")
    parser.add_argument("--config-name", "-cn", default="train", metavar="NAME", help="default: train")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.config_dir is not None and not parsed.config_dir.is_dir():
        raise ValueError(f"--config-dir {parsed.config_dir} is no folder: give one with groups such as model/")
    with _hydra():
        groups = _Groups(GlobalHydra.instance().config_loader(), parsed.config_dir)
        if parsed.config_name != "train":
            own = [] if parsed.config_dir is None else [path.stem for path in parsed.config_dir.glob("*.yaml")]
            check_name("--config-name ", parsed.config_name, sorted({"train", *own}))
        if parsed.help:
            return Request(None, f"{parser.format_help()}\n{HELP}{groups}")
        composed = _compose(parsed.config_name, parsed.settings, groups)
    if parsed.cfg is not None:
        return Request(None, OmegaConf.to_yaml(composed, resolve=parsed.resolve))
    return Request(composed)


@dataclass(frozen=True)
class Combination:
    """Settings of one run of a sweep; `varied` are those that others have with another value."""

    settings: tuple[str, ...]
    varied: tuple[tuple[str, str], ...]


def combinations(settings: Sequence[str]) -> tuple[Combination, ...]:
    """Every combination of the values that settings name, in Hydra's grammar: model=a,b seed=range(0,3) data=glob(*).

    The last setting varies fastest. Raises ValueError, naming the cure, for what is no setting or no list of values.
    """
    each: list[list[tuple[str, tuple[tuple[str, str], ...]]]] = []
    with _hydra():
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        for setting in settings:
            override = _parsed(parser, setting)
            if not override.is_sweep_override():
                each.append([(setting, ())])
                continue
            if not override.is_discrete_sweep():
                raise ValueError(f"{setting} is no list of values: write them out, as KEY=VALUE,VALUE")
            key, values = override.get_key_element(), list(override.sweep_string_iterator())
            if not values:
                raise ValueError(f"{setting} names nothing that there is: correct it")
            if len(set(values)) < len(values):
                raise ValueError(f"{setting} names a value more than once: name each once")
            each.append([(f"{key}={value}", ((key.lstrip("+"), value),)) for value in values])
    return tuple(
        Combination(tuple(text for text, _ in chosen), tuple(chain.from_iterable(varied for _, varied in chosen)))
        for chosen in product(*each)
    )


def setting_names() -> list[str]:
    """Every setting, and group of settings, by its dotted name, as it is where nothing else is chosen."""
    with _hydra():
        return list(_names(compose("train"), ""))


def _hydra() -> AbstractContextManager[None]:
    return initialize_config_module(version_base="1.3", config_module="dtrain.conf")


def read_resumed(arguments: Sequence[str]) -> Request:
    """The configuration of a run that is to go on in its own directory, with what the arguments change.

    Raises ValueError, naming the cure, for a mistake.
    """
    parser = _Parser(
        arguments,
        prog="dtrain resume",
        description="Go on with a run in its own directory, from the newest checkpoint that verifies.",
        epilog="On several ranks: torchrun --nproc-per-node=N -m dtrain.cli resume RUN",
    )
    parser.add_argument("run_dir", nargs="?", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="a setting that is to be another")
    parser.add_argument("-h", "--help", action="store_true", help="print this")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.help:
        return Request(None, parser.format_help())
    if parsed.run_dir is None:
        raise ValueError("resume needs a run's directory: see `dtrain resume --help`")
    return Request(_change(_load(parsed.run_dir), parsed.settings))


def _load(run_dir: Path) -> DictConfig:
    """What a run was started with, so that it goes on in its directory."""
    path = run_dir / CONFIG
    if not path.is_file():
        raise ValueError(f"{run_dir} holds no run ({CONFIG} is missing): give a run's directory")
    try:
        saved = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: not a run's configuration ({_first_line(error)}): mend it") from None
    if not isinstance(saved, DictConfig):
        raise ValueError(f"{path}: not a run's configuration: mend it")
    begun = saved.get("resume")
    if begun not in (None, LATEST) and not any(found.checkpoint for found in find(run_dir)):
        raise ValueError(f"{run_dir} has no checkpoint of its own yet: start it again from {begun}, as it was begun")
    saved.update({"run_dir": str(run_dir), "overwrite": False, "resume": LATEST, "resume_changes": []})
    return saved


def _change(saved: DictConfig, settings: Sequence[str]) -> DictConfig:
    known = list(_names(saved, ""))
    with _hydra():
        groups = _Groups(GlobalHydra.instance().config_loader(), None)
        for setting in settings:
            override = _parse(setting)
            key = override.key_or_group
            if override.is_add() or override.is_delete() or key not in known or key == "experiment":
                like = nearest(key, known)
                raise ValueError(f"{setting} changes no setting of this run{like}; all are in its {CONFIG}")
            value = override.value()
            if key in groups.options:
                value = _compose("train", [setting], groups)[key]
            OmegaConf.update(saved, key, value, merge=False)
    return saved


class _Groups:
    """The groups of conf/, and of a folder of the user's where one is given, with the names in each."""

    def __init__(self, loader: ConfigLoader, folder: Path | None) -> None:
        self.search = [] if folder is None else [f"hydra.searchpath=[file://{folder.resolve()}]"]
        self.options = {}
        for group in (group for group in loader.list_groups("") if group != "hydra"):
            own = [] if folder is None else [path.stem for path in (folder / group).glob("*.yaml")]
            self.options[group] = sorted({*loader.get_group_options(group, ObjectType.CONFIG), *own})

    def __str__(self) -> str:
        return "".join(f"  {group}: {', '.join(options)}\n" for group, options in self.options.items())


def _compose(name: str, settings: Sequence[str], groups: _Groups) -> DictConfig:
    overrides = [_parse(setting) for setting in settings]
    for override in overrides:
        group, chosen = override.key_or_group, override.value()
        if group.partition(".")[0] == "hydra":
            raise ValueError(f"{group} is a setting of Hydra's, which composes settings here and no more: leave it out")
        options = groups.options.get(group)
        if options is not None and not override.is_delete():
            for one in chosen if isinstance(chosen, list) else [chosen]:
                check_name(f"{group}=", "null" if one is None else str(one), options)
            if override.is_add() and group != _OPTIONAL:
                raise ValueError(f"{group} is chosen already, so nothing is to be added: write {group}={chosen}")
    try:
        return compose(name, overrides=[*groups.search, *settings])
    except HydraException as error:
        choices = [setting for setting, o in zip(settings, overrides, strict=True) if o.key_or_group in groups.options]
        for override in overrides:
            if override.key_or_group not in groups.options:
                _check_known(override, name, choices, groups)
        raise ValueError(_first_line(error)) from error


def _parse(setting: str) -> Override:
    override = _parsed(OverridesParser.create(), setting)
    if override.is_sweep_override():
        raise ValueError(
            f"{setting} names several values: `dtrain sweep` trains with each, or put quotes around a text"
        )
    return override


def _parsed(parser: OverridesParser, setting: str) -> Override:
    try:
        (override,) = parser.parse_overrides([setting])
    except OverrideParseException:
        raise ValueError(f"{setting!r} is not of the form KEY=VALUE, or its value needs quotes") from None
    return override


def _check_known(override: Override, name: str, choices: list[str], groups: _Groups) -> None:
    """Raise ValueError where a setting is to be changed, or dropped, that is not there."""
    key = override.key_or_group
    if override.is_add():
        return
    try:
        known = list(_names(compose(name, overrides=[*groups.search, *choices]), ""))
    except HydraException:
        return  # what is wrong is with a choice, then
    if key in known:
        return
    group = key.rpartition(".")[0]
    if group in known:
        siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == group]
        like = nearest(key.rpartition(".")[2], siblings)
        raise ValueError(f"{key} is not a setting{like}: {group} has {', '.join(siblings)}")
    like = nearest(key, [*known, *groups.options])
    raise ValueError(f"{key} is not a setting{like}; all are listed by `dtrain train --cfg job`")


def _names(config: Any, prefix: str) -> Iterator[str]:
    """Every setting and group of settings by its dotted name."""
    for key in config:
        yield f"{prefix}{key}"
        value = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none():
            yield from _names(value, f"{prefix}{key}.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def plain(composed: DictConfig) -> dict[str, Any]:
    """The configuration as plain data. Raises ValueError for a reference that leads nowhere."""
    try:
        found = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        if "recipe.learning_rate." in str(error):
            raise ValueError(
                f"this recipe was not tried with optimizer={composed.optimizer.name}, so it has no learning rate for "
                "it: add optimizer.learning_rate=RATE"
            ) from error
        raise ValueError(_first_line(error)) from error
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
