"""A model in fewer bytes: pack, unpack, inspect."""

from __future__ import annotations

import argparse
from pathlib import Path

from dtrain.cli.output import Verbs, console, json_option, print_json


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    pack = verbs.add_parser("pack", help="a model in fewer bytes on disk")
    pack.add_argument("model", type=Path, help=".safetensors, .npz, or Deep Compression's .net")
    pack.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.dtz")
    pack.add_argument("--preset", default="lossless", help="what is done to weights (default: lossless, nothing)")
    pack.add_argument(
        "--coder", default="contexts", help="of small integers: contexts (default), or huffman as in Deep Compression"
    )
    pack.add_argument(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="of images such as the network is for, without labels; --preset smallest then harms outputs less "
        "(dead-leaves: made ones, if there are none)",
    )
    json_option(pack)
    pack.set_defaults(run=_pack)

    unpack = verbs.add_parser("unpack", help="a packed model as safetensors")
    unpack.add_argument("packed", type=Path, metavar="FILE.dtz")
    unpack.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.safetensors")
    json_option(unpack)
    unpack.set_defaults(run=_unpack)

    inspect = verbs.add_parser("inspect", help="where the bytes of a packed model are")
    inspect.add_argument("packed", type=Path, metavar="FILE.dtz")
    json_option(inspect)
    inspect.set_defaults(run=_inspect)


def _pack(parsed: argparse.Namespace) -> int:
    from dtrain.slim.files import pack_file

    result = pack_file(parsed.model, parsed.output, preset=parsed.preset, coder=parsed.coder, images=parsed.calibrate)
    if parsed.json:
        print_json(result)
    else:
        print(
            f"{parsed.output}: {result['packed_bytes']:,} bytes, {result['compression_ratio']:.2f}x fewer than the "
            f"{result['tensor_bytes']:,} of its {result['num_tensors']} tensors ({result['preset']})"
        )
    return 0


def _unpack(parsed: argparse.Namespace) -> int:
    from dtrain.slim.files import unpack_file

    result = unpack_file(parsed.packed, parsed.output)
    if parsed.json:
        print_json(result)
    else:
        print(f"{parsed.output}: {result['num_tensors']} tensors, {result['tensor_bytes']:,} bytes")
    return 0


def _inspect(parsed: argparse.Namespace) -> int:
    from dtrain.slim.files import inspect_file, inspect_table

    inspected = inspect_file(parsed.packed)
    if parsed.json:
        print_json(inspected)
    else:
        console().print(inspect_table(inspected))
    return 0
