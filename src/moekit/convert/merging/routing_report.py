"""Which texts a merged model sends to which expert, layer by layer.

B texts, T tokens, E experts, K experts per token, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from moekit.convert.merging.merge_config import MergeConfig
from moekit.convert.merging.merged_model import MergedModel
from moekit.convert.merging.prompts import PromptEncoder, prompt_batches
from moekit.models.streamed_decoder import StreamedDecoder

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Text:
    """A text to route. group: what results are told apart by. meant: the expert it should go to, None where unknown."""

    group: str
    text: str
    meant: int | None = None


class TextRouting(BaseModel):
    """Where a text's tokens went. top_1: for each layer the share of tokens that each expert comes first for.

    shown: its beginning. tokens: those routed; long texts are cut.
    """

    model_config = ConfigDict(frozen=True)

    group: str
    shown: str
    meant: int | None
    tokens: int
    top_1: list[list[float]]


class RoutingReport(BaseModel):
    """Where texts go. accuracy: for each layer, the share of tokens whose first expert is the one that was meant.

    load: for each layer, the share of all tokens that each expert is among the first K for. None without such tokens.
    """

    model_config = ConfigDict(frozen=True)

    experts: list[str]
    experts_per_token: int
    texts: list[TextRouting]
    accuracy: list[float] | None
    load: list[list[float]]


def prompts_of(recipe: MergeConfig) -> list[Text]:
    """Give the prompts of the recipe, each with the expert it is for."""
    found = []
    for index, expert in enumerate(recipe.experts):
        found += [Text(f"prompts of expert {index}", prompt, index) for prompt in expert.positive_prompts]
        found += [Text(f"prompts against expert {index}", prompt) for prompt in expert.negative_prompts]
    return [text for text in found if text.text.strip()]


def routing_report(merged: MergedModel, encoder: PromptEncoder, texts: Sequence[Text]) -> RoutingReport:
    """Run the merged model on `texts`, one layer's weights in memory at a time, and note what its routers do."""
    rows, groups, batches = prompt_batches(encoder, [text.text for text in texts], merged.config.context)
    dtype = torch.bfloat16 if merged.dtype_of_all in (torch.bfloat16, torch.float16) else torch.float32
    layers, experts = len(merged.config.layers), len(merged.recipe.experts)
    top_1 = torch.zeros(len(texts), layers, experts)
    load = torch.zeros(layers, experts)
    for run in StreamedDecoder(merged.model, dtype).run(batches):
        for group, batch, routing in zip(groups, batches, run.routings, strict=True):
            chosen_TK = routing.probs_TE.topk(merged.recipe.experts_per_token, -1).indices
            chosen_BTK = chosen_TK.view(*batch.real_BT.shape, -1)
            for place, real_T, of_text_TK in zip(group, batch.real_BT, chosen_BTK, strict=True):
                chosen = of_text_TK[real_T]
                top_1[place, run.index] = torch.bincount(chosen[:, 0], minlength=experts) / max(len(chosen), 1)
                load[run.index] += torch.bincount(chosen.flatten(), minlength=experts)
    return _report(merged.recipe, texts, rows, top_1, load)


def _report(
    recipe: MergeConfig, texts: Sequence[Text], rows: Sequence[Sequence[int]], top_1: Tensor, load: Tensor
) -> RoutingReport:
    meant = [index for index, text in enumerate(texts) if text.meant is not None and rows[index]]
    accuracy = None
    if meant:
        tokens = torch.tensor([float(len(rows[index])) for index in meant])
        right = torch.stack([top_1[index, :, texts[index].meant] for index in meant])
        accuracy = ((right * tokens[:, None]).sum(0) / tokens.sum()).tolist()
    return RoutingReport(
        experts=[str(expert.source_model) for expert in recipe.experts],
        experts_per_token=recipe.experts_per_token,
        texts=[
            TextRouting(
                group=text.group,
                shown=" ".join(text.text.split())[:_SHOWN_CHARACTERS],
                meant=text.meant,
                tokens=len(row),
                top_1=[[round(share, 4) for share in layer] for layer in shares.tolist()],
            )
            for text, row, shares in zip(texts, rows, top_1, strict=True)
        ],
        accuracy=None if accuracy is None else [round(value, 4) for value in accuracy],
        load=[[round(value, 4) for value in row] for row in (load / load.sum(-1, keepdim=True).clamp(min=1)).tolist()],
    )
