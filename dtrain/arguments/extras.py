"""What dtrain needs beyond what meters and compresses, by the extra that brings it: `pip install 'dtrain[report]'`.

Whatever needs a package of an extra imports it as any other; that it is missing is said here, once for all commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

EXTRAS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "hydra": ("hydra-core", "train"),
        "omegaconf": ("omegaconf", "train"),
        "PIL": ("pillow", "train"),
        "prometheus_client": ("prometheus-client", "train"),
        "yaml": ("pyyaml", "train"),
        "matplotlib": ("matplotlib", "report"),
        "jinja2": ("jinja2", "report"),
        "constriction": ("constriction", "pack"),
        "cryptography": ("cryptography", "pack"),
        "pyroute2": ("pyroute2", "cluster"),
    }
)
"""Module -> the package that has it, and the extra of dtrain that requires it."""


def require(module: str) -> None:
    """Fail now where a package will be needed later. Raises ModuleNotFoundError, as its import would."""
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def missing_extra(command: str, error: ModuleNotFoundError) -> str | None:
    """What to say where `command` ended so: the package, and how to get it; None where no extra has the module."""
    package, extra = EXTRAS.get((error.name or "").partition(".")[0], ("", ""))
    return f"{command} needs {package}: pip install 'dtrain[{extra}]'" if package else None
