"""A decoder's weights as the native decoder takes them, which is as they lie in files.

Every matrix is stored as (what it gives, what it takes) and may have a type of its own. A fused matrix is given as
ranges of its rows. D model width, H query heads, G key-value heads, C head width, F hidden width, E experts,
V vocabulary. The vectors (norms, biases, gates) are fp32; those of norms are what normed numbers are multiplied by:
1 + w where a norm is `zero_centered`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from moekit.kernels.packed import Numbers, PackedMatrix


@dataclass(frozen=True, kw_only=True)
class NetworkWeights:
    """Hold an ffn: down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate; or E experts, rows after rows.

    gate, up: (F, D) or (E·F, D). down: (D, F) or (E·D, F).
    """

    gate: PackedMatrix | None
    up: PackedMatrix
    down: PackedMatrix


@dataclass(frozen=True, kw_only=True)
class MoEWeights:
    """Hold a mixture of experts.

    router: (E, D). shared_expert sees every token; where there is a shared_expert_gate_D, the sigmoid of its product
    with x weighs what comes out.
    """

    router: PackedMatrix
    experts: NetworkWeights
    shared_expert: NetworkWeights | None = None
    shared_expert_gate_D: Numbers | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionWeights:
    """Hold grouped attention.

    query: (H·C, D). key, value: (G·C, D). output: (D, H·C). The biases have a number for each row of their matrices.
    query_norm, key_norm: of C numbers, or of H·C and G·C where the norm is over all heads at once.
    """

    query: PackedMatrix
    key: PackedMatrix
    value: PackedMatrix
    output: PackedMatrix
    query_bias: Numbers | None = None
    key_bias: Numbers | None = None
    value_bias: Numbers | None = None
    output_bias: Numbers | None = None
    query_norm: Numbers | None = None
    key_norm: Numbers | None = None


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Hold one layer. attention_after_norm_D, feed_forward_after_norm_D: only in a `sandwich` block."""

    attention_norm_D: Numbers
    attention: AttentionWeights
    feed_forward_norm_D: Numbers
    feed_forward: NetworkWeights | MoEWeights
    attention_after_norm_D: Numbers | None = None
    feed_forward_after_norm_D: Numbers | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderWeights:
    """Hold a whole decoder. embedding, head: (V, D), one and the same matrix where they are tied.

    interleaved: rope rotates the pairs (2i, 2i + 1) of each head's rows and not (i, i + C/2): GGUF files of the llama
    architecture store the rows of queries and keys in that order.
    """

    embedding: PackedMatrix
    layers: tuple[LayerWeights, ...]
    norm_D: Numbers
    head: PackedMatrix
    interleaved: bool = False


def matrices(weights: DecoderWeights) -> list[PackedMatrix]:
    """List the matrices of a decoder, each once: an embedding that is the head, too, is one."""
    return list({id(matrix): matrix for matrix in _matrices(weights)}.values())


def _matrices(part: Any) -> Iterator[PackedMatrix]:
    """Yield the matrices of a part, however deep they lie."""
    if isinstance(part, PackedMatrix):
        yield part
    elif isinstance(part, tuple):
        for entry in part:
            yield from _matrices(entry)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _matrices(getattr(part, field.name))
