"""A model through the stages of a preset into a container, and back."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.arguments import check_name
from dtrain.pack import entropy
from dtrain.pack.container import Array, Container, Node, Staged
from dtrain.pack.model_file import Model
from dtrain.pack.presets import STAGES, stages
from dtrain.pack.stage import Stage
from dtrain.pack.tensor import Tensor


def pack(model: Model, preset: str | Sequence[Stage] = "lossless", *, coder: str = "contexts") -> Container:
    """A model's stages, and then its bytes.

    Args:
        preset: a name in `PRESETS`, or stages.
        coder: of small integers, one of `CODERS`: "contexts", or "huffman" as Deep Compression has it.

    Raises ValueError for another name, and for weights that the stages cannot take or `unpack` would refuse.
    """
    check_name("coder ", coder, entropy.CODERS)
    chosen = stages(preset) if isinstance(preset, str) else preset
    label = preset if isinstance(preset, str) else "+".join(stage.name for stage in preset)
    nodes = {name: _encode(name, tensor, chosen, coder) for name, tensor in model.tensors.items()}
    return Container(label, nodes, model.metadata)


def unpack(container: Container) -> Model:
    """The same on every machine. Raises ValueError for a container that `pack` does not make."""
    tensors = {}
    for name, node in container.tensors.items():
        try:
            tensors[name] = _decode(node)
        except ValueError as error:
            raise ValueError(f"tensor {name!r:.80} has {error}") from None
    return Model(tensors, container.metadata)


def _encode(name: str, tensor: Tensor, remaining: Sequence[Stage], coder: str) -> Node:
    for index, stage in enumerate(remaining):
        split = stage.encode(name, tensor)
        if split is not None:
            try:
                stage.decode(tensor.dtype, tensor.shape, split.parameters, split.parts)
            except ValueError as error:
                raise ValueError(f"stage {stage.name} makes of {name} {error}: only lossless packs it") from None
            after = remaining[index + 1 :]
            parts = {part: _encode(name, value, after, coder) for part, value in split.parts.items()}
            return Staged(tensor.dtype, tensor.shape, stage.name, split.parameters, parts)
    codec, data = entropy.encode(tensor, coder)
    return Array(tensor.dtype, tensor.shape, codec, data)


def _decode(node: Node) -> Tensor:
    if isinstance(node, Array):
        return entropy.decode(node.codec, node.dtype, node.shape, node.data)
    parts = {name: _decode(part) for name, part in node.parts.items()}
    return STAGES[node.stage].decode(node.dtype, node.shape, node.parameters, parts)
