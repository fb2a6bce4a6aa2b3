"""Tensors that folders hold and models have no place for, as published files have them."""

import re
from collections.abc import Collection

from moekit.checkpoint.stored_names import roots_of, spellings
from moekit.config import Config, ModelConfig
from moekit.families.family import Family

_BUFFER = re.compile(
    r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$"
    r"|(^|\.)attn\.(attention\.)?(bias|masked_bias)$"
    r"|(^|\.)embeddings\.(position_ids|token_type_ids)$"
)
"""Frequencies, masks and positions, which follow from the settings; old versions of transformers wrote them down."""

_FURTHER_TOKEN = re.compile(r"^(.*\blayers\.(\d+)\.)eh_proj\.weight$")
"""What only a module for further tokens has: the matrix of both its inputs (arXiv 2412.19437, section 2.2)."""


def is_buffer(name: str) -> bool:
    """Tell whether a tensor that the layout lacks carries nothing that the settings do not say."""
    return _BUFFER.search(name) is not None


def left_out(family: Family, config: Config, names: Collection[str]) -> list[str]:
    """List the tensors, buffers aside, that no part of the model is made of, though files of the family hold them.

    They are those that the family knows, and all of a module that predicts tokens further on: a layer behind the last
    one of the model, or what is named `mtp`.
    """
    roots = roots_of(entry.name for entry in family.layout(config)) if family.layout and names else []
    modules: tuple[str, ...] = ()
    if isinstance(config, ModelConfig):
        further = [found for name in names if (found := _FURTHER_TOKEN.match(name)) is not None]
        modules = ("mtp.", *(found[1] for found in further if int(found[2]) >= len(config.layers)))
    return [name for name in names if name.startswith(modules) or any(map(family.leftover, spellings(name, roots)))]
