from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import pytest
import torch

from dtrain.compressors import build
from dtrain.compressors.codecs import compiled
from dtrain.doctor import host
from dtrain.doctor.check import Severity


@pytest.fixture(autouse=True)
def nobody_chose(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiled, "_choice", None)
    monkeypatch.setattr(compiled, "_in_use", {})
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    yield


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    monkeypatch.setattr(compiled, "why_not_numba", compiled.why_not_numba.__wrapped__)


@pytest.mark.usefixtures("without_numba")
def test_numba_that_is_not_there_is_an_error_with_the_cure_and_auto_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^codec=numba cannot be used: numba is not installed: pip install"):
        compiled.choose("numba")
    assert compiled.in_use() == "torch"
    assert compiled.kernels_for(torch.zeros(3)) is None
    monkeypatch.setenv(compiled.VARIABLE, "numba")
    with pytest.raises(ValueError, match=r"^DTRAIN_CODEC=numba cannot be used"):
        compiled.choose("auto")


@pytest.mark.usefixtures("without_numba")
def test_doctor_says_what_keeps_numba_away() -> None:
    check = host.codec()
    assert (check.severity, check.finding) == (Severity.NOTE, "torch, since numba is not installed")
    assert check.cure.startswith("pip install")


def test_auto_is_what_the_environment_says_and_a_setting_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_not_numba", lambda: None)
    monkeypatch.setattr(compiled, "_numba_kernels", lambda: compiled)
    assert compiled.choose("auto") == "numba"
    monkeypatch.setenv(compiled.VARIABLE, "torch")
    assert compiled.choose("auto") == "torch"
    assert host.codec().finding == "torch, as DTRAIN_CODEC says"
    assert compiled.choose("numba") == "numba"


def test_a_codec_that_does_not_exist_is_refused_before_anything_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^codec=nunba does not exist \(did you mean numba\?\)"):
        compiled.choose("nunba")
    monkeypatch.setenv(compiled.VARIABLE, "fast")
    with pytest.raises(
        ValueError, match=r"^DTRAIN_CODEC=fast does not exist: choose one of auto, torch, numba, triton"
    ):
        build("int8")
    assert host.codec().severity is Severity.ERROR


@pytest.mark.parametrize(
    "why", [torch.zeros(4, dtype=torch.float64), torch.zeros(4, 2)[:, 0], torch.zeros(4, device="meta")]
)
def test_kernels_take_contiguous_float32_on_a_cpu_alone(why: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_not_numba", lambda: None)
    monkeypatch.setattr(compiled, "_numba_kernels", lambda: compiled)
    compiled.choose("numba")
    assert compiled.kernels_for(torch.zeros(4)) is compiled
    assert compiled.kernels_for(torch.zeros(4), why) is None


def test_numba_that_is_broken_is_an_error_where_it_was_asked_for_and_else_torch_encodes_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ValueError("numba is installed but does not work (Numba needs NumPy 1.26 or less): repair it")

    monkeypatch.setattr(compiled, "why_not_numba", lambda: None)
    monkeypatch.setattr(compiled, "_numba_kernels", broken)
    with pytest.raises(ValueError, match="does not work"):
        compiled.choose("numba")
    assert compiled.choose("auto") == "numba"
    assert compiled.kernels_for(torch.zeros(4)) is None
    assert capsys.readouterr().err.count("Numba needs NumPy 1.26 or less): repair it; torch encodes\n") == 1
    assert compiled.in_use() == "torch"


def test_numba_needs_a_folder_for_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "find_spec", lambda name: object())
    monkeypatch.setattr(compiled, "_keeps_machine_code", lambda: False)
    assert "set NUMBA_CACHE_DIR" in (compiled.why_not_numba.__wrapped__() or "")


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_not_numba", lambda: None)
    monkeypatch.setattr(compiled, "why_not_triton", lambda: None)
    monkeypatch.setattr(compiled, "_numba_kernels", lambda: compiled)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.usefixtures("with_cuda")
def test_auto_is_what_compiles_for_the_device_and_a_compiler_for_another_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (compiled.choose("auto", "cpu"), compiled.in_use("cuda")) == ("numba", "triton")
    assert (compiled.choose("auto", "cuda"), compiled.in_use()) == ("triton", "triton")
    assert compiled.choose("torch", "cuda") == "torch"
    with pytest.raises(
        ValueError, match=r"^codec=triton cannot be used: values are on cpu, where it does not run: use c"
    ):
        compiled.choose("triton", "cpu")
    with pytest.raises(
        ValueError, match=r"^codec=numba cannot be used: values are on cuda, where it does not run: use c"
    ):
        compiled.choose("numba", "cuda")
    monkeypatch.setenv(compiled.VARIABLE, "triton")
    monkeypatch.setattr(compiled, "_choice", None)
    build("int8")  # where its buckets will be is not known yet
    with pytest.raises(ValueError, match=r"^DTRAIN_CODEC=triton cannot be used: values are on cpu"):
        compiled.kernels_for(torch.zeros(3))


def test_triton_that_cannot_run_is_an_error_with_the_cure_and_auto_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(compiled, "why_not_triton", compiled.why_not_triton.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compiled, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"^codec=triton cannot be used: torch sees no CUDA device: leave codec=auto"):
        compiled.choose("triton", "cuda")
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"^codec=triton cannot be used: triton is not installed: take a build of torch"
    ):
        compiled.choose("triton", "cuda")
    assert compiled.choose("auto", "cuda") == "torch"
    monkeypatch.setenv(compiled.VARIABLE, "triton")
    with pytest.raises(ValueError, match=r"^DTRAIN_CODEC=triton cannot be used: triton is not installed"):
        build("int8")


@pytest.mark.usefixtures("with_cuda")
def test_doctor_says_what_encodes_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(host, "version", lambda name: "1.0")
    assert [(c.name, c.finding) for c in host.codecs()] == [("codec", "numba 1.0"), ("codec on cuda", "triton 1.0")]
    monkeypatch.setenv(compiled.VARIABLE, "triton")
    assert [(c.name, c.finding) for c in host.codecs()] == [("codec on cuda", "triton 1.0")]


def test_kernels_that_do_not_say_what_torch_says_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("dtrain.compressors.codecs.triton_kernels")
    vars(module).update(TritonKernels=lambda device: compiled, differ_from_torch=lambda kernels, device: ["pack_signs"])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ValueError, match=r"^triton's pack_signs does not say what torch says on cpu: use codec=torch"):
        compiled._triton_kernels.__wrapped__(torch.device("cpu"))
