"""mergekit 0.1.5's gate modes, to the bit: routers made of prompts, or drawn.

L layers, E experts, D model width, B prompts, T tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moekit.convert.merging.block_inputs import Batch, blocks, dense_network
from moekit.convert.merging.merge_config import ExpertConfig
from moekit.convert.merging.source_models import Source
from moekit.data.tokenizers import Tokenizer, tokenizer_of
from moekit.models.special_tokens import read_object

_EMBEDDING = "model.embed_tokens.weight"
# Below it a norm counts as this, so that a prompt without a direction gives zeros and not NaN.
_LEAST_NORM = 1e-8


@dataclass(frozen=True)
class PromptEncoder:
    """From prompts to tokens: each after the start token, padded on the left.

    start_text: what stands for the start token in a text, as mergekit writes it before each prompt. Where there is none
    (bytes), its id is put there. padding: any token; padding is masked.
    """

    tokenizer: Tokenizer
    start_text: str
    start: int | None
    padding: int

    def ids(self, prompt: str) -> list[int]:
        """The tokens of one prompt."""
        ids = self.tokenizer.encode(self.start_text + prompt)
        return ids if self.start is None else [self.start, *ids]

    def batch(self, prompts: Sequence[str]) -> Batch:
        """The tokens of several, (B, T)."""
        return left_padded([self.ids(prompt) for prompt in prompts], self.padding)


def left_padded(rows: Sequence[Sequence[int]], padding: int = 0) -> Batch:
    """A batch of rows of tokens."""
    length = max(map(len, rows))
    token_BT = torch.full((len(rows), length), padding)
    real_BT = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        if row:
            token_BT[index, -len(row) :] = torch.tensor(row)
            real_BT[index, -len(row) :] = True
    return Batch(token_BT, real_BT)


def prompt_encoder(base: Source) -> PromptEncoder:
    """That of the base model's folder; raises UsageError where there is no tokenizer."""
    tokenizer = tokenizer_of(base.folder, base.config.vocab_size)
    text = special_text(base.folder, "bos_token")
    end = special_text(base.folder, "eos_token")
    from_bytes = not (base.folder / "tokenizer.json").is_file()
    padding = [token for name in (text, end) if name for token in tokenizer.encode(name)[:1]]
    start = tokenizer.start if from_bytes else None
    return PromptEncoder(tokenizer, "" if from_bytes else text or "", start, padding[0] if padding else 0)


def special_text(folder: Path, key: str) -> str | None:
    """The text of a special token, from tokenizer_config.json or special_tokens_map.json, if either says it."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        value = read_object(folder / name).get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            return value
    return None


def drawn_gates(mode: str, layers: int, experts: int, width: int, generator: torch.Generator) -> Tensor:
    """gate_LED in fp32: `random` from N(0, 1), `uniform_random` from U(-1/sqrt(D), 1/sqrt(D)), from the generator."""
    if mode == "random":
        return torch.randn((layers, experts, width), generator=generator)
    bound = math.sqrt(1.0 / width)
    return torch.rand((layers, experts, width), generator=generator) * 2 * bound - bound


def prompted_gates(mode: str, base: Source, encoder: PromptEncoder, experts: Sequence[ExpertConfig]) -> Tensor:
    """gate_LED of `hidden`, `hidden_last`, `hidden_avg` (in bf16) or `cheap_embed` (in fp32)."""
    prompts = [list(expert.positive_prompts) for expert in experts]
    against = [list(expert.negative_prompts) for expert in experts]
    batches = [encoder.batch(texts) for texts in (*prompts, *filter(None, against))]
    if mode == "cheap_embed":
        vectors = [_embedded(base, batch).repeat(len(base.config.layers), 1) for batch in batches]
    else:
        vectors = _hidden(base, batches, average=mode == "hidden_avg")
    negatives = iter(vectors[len(prompts) :])
    gates = []
    for vector_LD, texts in zip(vectors, against, strict=False):
        if texts:
            vector_LD = vector_LD - next(negatives)
        gates.append(vector_LD / vector_LD.norm(p=2, dim=-1, keepdim=True).clamp(min=_LEAST_NORM))
    return torch.stack(gates).permute(1, 0, 2)


def _embedded(base: Source, batch: Batch) -> Tensor:
    """The sum of the embeddings of all tokens of all prompts, at length 1, (1, D)."""
    token_N = torch.unique(batch.token_BT)
    table = base.rows(_EMBEDDING, token_N.tolist()).float()
    h_BTD = table[torch.searchsorted(token_N, batch.token_BT)]
    sum_1D: Tensor = (h_BTD * batch.real_BT.unsqueeze(-1)).sum(dim=1).sum(dim=0, keepdim=True)
    return sum_1D.div(sum_1D.norm(dim=-1, keepdim=True).clamp(min=_LEAST_NORM))


def _hidden(base: Source, batches: Sequence[Batch], *, average: bool) -> list[Tensor]:
    """For each batch, the mean over prompts of the inputs of all blocks, (L, D) in bf16.

    Of each prompt its last token; with `average` the mean over all positions, padding included, as mergekit takes it.
    """
    dtype = torch.bfloat16
    layers: list[list[Tensor]] = [[] for _ in batches]
    with torch.no_grad():
        network = dense_network(base.config, base, dtype)
        for block in blocks(base.config, base, batches, network, dtype):
            for h_BTD, found in zip(block.inputs, layers, strict=True):
                of_prompts = h_BTD.sum(dim=1) / h_BTD.shape[1] if average else h_BTD[:, -1]
                found.append(of_prompts.sum(dim=0) / of_prompts.shape[0])
    return [torch.stack(found) for found in layers]
