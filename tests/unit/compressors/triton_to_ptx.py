"""Compile every kernel for an NVIDIA GPU, which need not be here, and print {name: PTX} as JSON."""

from __future__ import annotations

import json
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dtrain.compressors.codecs import triton_kernels

POINTERS = {"codes": "*i8", "packed": "*i8", "signs": "*i8"}
SCALARS = {"numel": "i32", "length": "i32", "share": "fp32", "smallest": "fp32", "number": "fp32"}
TILE = {"TILE": 1024}
KERNELS: dict[str, dict[str, Any]] = {
    "_quantise_by_largest": TILE | {"TILE": 2048, "BLOCK": 2048, "CORRECT": True, "SUBTRACT": True, "FUSED": True},
    "_take_magnitudes": TILE | {"CORRECT": True, "SIGNS": True},
    "_multiply_blocks": TILE | {"BLOCK": 640},
    "_round_to_ternary": TILE | {"BLOCK": 640, "FUSED": True},
    "_pack_digits": TILE | {"BASE": 3, "PER_BYTE": 5},
    "_unpack_digits": TILE | {"BASE": 3, "PER_BYTE": 5, "BLOCK": 640, "ADD": True, "FUSED": True},
    "_pack_signs": TILE,
    "_subtract_difference": TILE,
    "_unpack_signs": TILE | {"BLOCK": 256, "ADD": True, "FUSED": True},
}


def ptx(name: str, constants: dict[str, Any]) -> str:
    kernel = getattr(triton_kernels, name)
    types = {
        arg: "constexpr" if arg in constants else SCALARS.get(arg, POINTERS.get(arg, "*fp32"))
        for arg in kernel.arg_names
    }
    if name.endswith("signs"):
        types["packed"] = "*u8"
    source = ASTSource(kernel, types, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=triton_kernels.OPTIONS)
    text: str = compiled.asm["ptx"]
    return text


def main() -> None:
    found = {}
    for name, constants in KERNELS.items():
        if "FUSED" not in constants:
            found[name] = ptx(name, constants)
            continue
        found[f"{name} once"] = ptx(name, constants)
        if name != "_round_to_ternary":  # the same function of the others
            found[f"{name} twice"] = ptx(name, constants | {"FUSED": False})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
