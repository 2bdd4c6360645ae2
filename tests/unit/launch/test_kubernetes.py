"""Manifests for Kubernetes: pods that its own schemas take, of one rank each, and nothing that it would expand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from dtrain.cli import main

Manifest = Callable[..., Any]
AGENT = ["python", "-m", "dtrain.launch.agent"]


@pytest.fixture
def manifest(capsys: pytest.CaptureFixture[str]) -> Manifest:
    def of(*arguments: str) -> Any:
        assert main(["launch", *arguments]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return of


def assert_kubernetes_takes(pod: Any) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install 'dtrain[dev]'").validate
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod}, "1.32", strict=True)


def test_a_trainjob_is_the_default(manifest: Manifest) -> None:
    made = manifest("--kubernetes", "-n", "4", "--id", "digits", "run_dir=/runs/a b", "seed=$(x)")
    assert (made["apiVersion"], made["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert made["metadata"]["name"] == "digits"
    trainer = made["spec"]["trainer"]
    assert made["spec"]["runtimeRef"] == {"name": "torch-distributed"}
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (4, 1, "dtrain:torch")
    assert trainer["command"] == [*AGENT, "-m", "dtrain.train", "run_dir=/runs/a b", "seed=$$(x)"]
    container = {name: trainer[name] for name in ("image", "command")}
    assert_kubernetes_takes({"containers": [{"name": "node", **container}]})


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_pytorchjob_has_a_master_and_workers(manifest: Manifest, ranks: int) -> None:
    made = manifest("--pytorchjob", "-n", str(ranks), "--image", "registry/x:1", "--", "-m", "dtrain.meter", "x.py")
    assert (made["apiVersion"], made["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = made["spec"]["pytorchReplicaSpecs"]
    assert sum(each["replicas"] for each in replicas.values()) == ranks
    assert replicas["Master"]["replicas"] == 1
    for each in replicas.values():
        (container,) = each["template"]["spec"]["containers"]
        assert (container["name"], container["image"]) == ("pytorch", "registry/x:1")
        assert container["command"] == [*AGENT, "-m", "dtrain.meter", "x.py"]
        assert_kubernetes_takes(each["template"]["spec"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--id", "Upper"], "--id Upper is no name for Kubernetes"),
        (["--id", "a" * 51], "50 at most"),
        (["-H", "a"], "-H goes without a manifest"),
        (["--restarts", "1"], "--restarts goes without a manifest"),
        (["backend=mpi"], "leave out backend=mpi"),
    ],
)
def test_a_mistake_names_its_cure(capsys: pytest.CaptureFixture[str], arguments: list[str], part: str) -> None:
    assert main(["launch", "--kubernetes", *arguments]) == 2
    assert part in capsys.readouterr().err
