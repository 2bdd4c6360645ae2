"""A manifest of the job for Kubernetes: for Kubeflow's Trainer (TrainJob) or its older training operator (PyTorchJob).

Both start torchrun's agent in each pod, with PET_* variables that say how the pods meet. A pod is one rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

DEFAULT_IMAGE, DEFAULT_NAME = "dtrain:torch", "dtrain"
_RUNTIME = "torch-distributed"
"""The runtime for torch that Kubeflow's Trainer comes with."""
_CONTAINER = "pytorch"
"""The name by which the training operator finds its container."""
_MAX_NAME = 50  # the operator appends -worker-<number>, and a label holds 63

_HEAD = """\
# {kind} of {ranks} pods, one rank each: kubectl apply --filename FILE
# What a run writes is lost with its pod, unless a volume that all pods share is mounted at its run_dir. With that and
# resume=latest, a pod that was ended goes on where the run was saved.
"""


def trainjob(name: str, image: str, ranks: int, program: Sequence[str]) -> dict[str, Any]:
    """For Kubeflow's Trainer 2, trainer.kubeflow.org/v1alpha1. Raises ValueError for a name that Kubernetes refuses."""
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": _checked(name)},
        "spec": {
            "runtimeRef": {"name": _RUNTIME},
            "trainer": {"image": image, "command": _command(program), "numNodes": ranks, "numProcPerNode": 1},
        },
    }


def pytorchjob(name: str, image: str, ranks: int, program: Sequence[str]) -> dict[str, Any]:
    """For the training operator, kubeflow.org/v1. Raises ValueError for a name that Kubernetes refuses."""

    def replicas(number: int) -> dict[str, Any]:
        container = {"name": _CONTAINER, "image": image, "command": _command(program)}
        template = {"spec": {"containers": [container]}}
        return {"replicas": number, "restartPolicy": "OnFailure", "template": template}

    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": _checked(name)},
        "spec": {
            "nprocPerNode": "1",
            "pytorchReplicaSpecs": {
                "Master": replicas(1),
                **({"Worker": replicas(ranks - 1)} if ranks > 1 else {}),
            },
        },
    }


def as_text(manifest: Mapping[str, Any], ranks: int) -> str:
    """As YAML, with what its reader has to know."""
    text: str = yaml.safe_dump(dict(manifest), sort_keys=False, width=120)
    return _HEAD.format(kind=manifest["kind"], ranks=ranks) + text


def _command(program: Sequence[str]) -> list[str]:
    # Kubernetes puts a variable's value in the place of $(NAME), and takes $$ for one $
    return ["python", "-m", "dtrain.launch.agent", *(word.replace("$(", "$$(") for word in program)]


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z](?:[-a-z0-9]*[a-z0-9])?", name) or len(name) > _MAX_NAME:
        raise ValueError(
            f"--id {name} is no name for Kubernetes: small letters, digits and - inside, {_MAX_NAME} at most"
        )
    return name
