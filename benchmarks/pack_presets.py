"""What each preset makes of SqueezeNet 1.0: bytes by context models and by Huffman codes, and seconds of the processor.

Two models: Deep Compression's published one, which `lossless` must give back bit for bit, and the uncompressed one.

    python benchmarks/pack_presets.py --data ../shared/data --hardware cpu2
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from harness import write_result

from dtrain.pack import CODERS, PRESETS, Model, from_bytes, pack, read_safetensors, to_bytes, unpack
from dtrain.slim.files import pack_file, unpack_file

FILES = {
    "Deep Compression's": "han_squeezenet_v1.0_compressed.net",
    "uncompressed": "squeezenet_v1.0_fp32.npz",
}


def read(path: Path) -> Model:
    """The model in any file that `dtrain pack` takes."""
    with tempfile.TemporaryDirectory() as folder:
        pack_file(path, Path(folder, "model.dtz"), preset="lossless")
        unpack_file(Path(folder, "model.dtz"), Path(folder, "model.safetensors"))
        return read_safetensors(Path(folder, "model.safetensors"))


def row(name: str, model: Model, preset: str) -> str:
    """Bytes and seconds by each coder, and whether all bits come back."""
    cells = []
    for coder in CODERS:
        start = time.process_time()
        data = to_bytes(pack(model, preset, coder=coder))
        packed = time.process_time()
        unpacked = unpack(from_bytes(data))
        done = time.process_time()
        cells += [f"{len(data):,}", f"{packed - start:.1f}", f"{done - packed:.2f}"]
    same = all(tensor.data.tobytes() == model.tensors[key].data.tobytes() for key, tensor in unpacked.tensors.items())
    return f"| {name} | {preset} | {' | '.join(cells)} | {'yes' if same else 'no'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the published weights")
    parser.add_argument("--hardware", help="name of the result file's hardware; without it, none is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {name: read(options.data / file) for name, file in FILES.items()}
    rows = [row(name, model, preset) for name, model in models.items() for preset in PRESETS]
    header = (
        "| model | preset | bytes, contexts | pack, s | unpack, s | bytes, Huffman | pack, s | unpack, s | same |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    sizes = ", ".join(f"{file} has {(options.data / file).stat().st_size:,} bytes" for file in FILES.values())
    body = f"{sizes}. Seconds are of the processor, one thread.\n\n{header}" + "\n".join(rows)
    print(body)
    if options.hardware:
        print(write_result("pack_presets", options.hardware, "SqueezeNet 1.0 by every preset: bytes and seconds", body))


if __name__ == "__main__":
    main()
