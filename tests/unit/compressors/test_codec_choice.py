from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dtrain.compressors import build
from dtrain.compressors.codecs import compiled
from dtrain.doctor import host
from dtrain.doctor.check import Severity


@pytest.fixture(autouse=True)
def nobody_chose(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiled, "_in_use", None)
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
    monkeypatch.setattr(compiled, "_kernels", lambda: compiled)
    assert compiled.choose("auto") == "numba"
    monkeypatch.setenv(compiled.VARIABLE, "torch")
    assert compiled.choose("auto") == "torch"
    assert host.codec().finding == "torch, as DTRAIN_CODEC says"
    assert compiled.choose("numba") == "numba"


def test_a_codec_that_does_not_exist_is_refused_before_anything_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^codec=nunba does not exist \(did you mean numba\?\)"):
        compiled.choose("nunba")
    monkeypatch.setenv(compiled.VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"^DTRAIN_CODEC=fast does not exist: choose one of auto, torch, numba"):
        build("int8")
    assert host.codec().severity is Severity.ERROR


@pytest.mark.parametrize(
    "why", [torch.zeros(4, dtype=torch.float64), torch.zeros(4, 2)[:, 0], torch.zeros(4, device="meta")]
)
def test_kernels_take_contiguous_float32_on_a_cpu_alone(why: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_not_numba", lambda: None)
    monkeypatch.setattr(compiled, "_kernels", lambda: compiled)
    compiled.choose("numba")
    assert compiled.kernels_for(torch.zeros(4)) is compiled
    assert compiled.kernels_for(torch.zeros(4), why) is None


def test_numba_that_is_broken_is_an_error_where_it_was_asked_for_and_else_torch_encodes_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ValueError("numba is installed but does not work (Numba needs NumPy 1.26 or less): repair it")

    monkeypatch.setattr(compiled, "why_not_numba", lambda: None)
    monkeypatch.setattr(compiled, "_kernels", broken)
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
