"""Which texts a merged model sends to which expert, layer by layer, and the model card that says so.

B texts, T tokens, D model width, E experts, K experts per token, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from moekit.config import MoEConfig
from moekit.convert.merging.block_inputs import blocks, network
from moekit.convert.merging.gates import left_padded
from moekit.convert.merging.merge_plan import Merge
from moekit.convert.merging.router_input_gates import MAX_PROMPT_TOKENS, grouped
from moekit.convert.merging.source_models import NETWORK

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


def prompts_of(merge: Merge) -> list[Text]:
    """The prompts of the configuration, each with the expert it is for."""
    found = []
    for index, expert in enumerate(merge.config.experts):
        found += [Text(f"prompts of expert {index}", prompt, index) for prompt in expert.positive_prompts]
        found += [Text(f"prompts against expert {index}", prompt) for prompt in expert.negative_prompts]
    return [text for text in found if text.text.strip()]


def routing_report(merge: Merge, texts: Sequence[Text]) -> RoutingReport:
    """Run the merged model on `texts`, one layer's weights in memory at a time, and note what its routers do."""
    rows = [merge.encoder.ids(text.text)[:MAX_PROMPT_TOKENS] for text in texts]
    order = sorted((index for index, row in enumerate(rows) if row), key=lambda index: len(rows[index]))
    groups = list(grouped(order, rows))
    batches = [left_padded([rows[index] for index in group], merge.encoder.padding) for group in groups]
    dtype = torch.bfloat16 if merge.dtype in (torch.bfloat16, torch.float16) else torch.float32
    routers = _Routers(merge, dtype)
    top_1 = torch.zeros(len(texts), merge.layers, len(merge.experts))
    load = torch.zeros(merge.layers, len(merge.experts))
    with torch.no_grad():
        for block in blocks(merge.base.config, merge, batches, routers.apply, dtype):
            for group, batch, x_BTD in zip(groups, batches, block.normed, strict=True):
                _, chosen_BTK = routers.route(block.index, x_BTD)
                for place, real_T, chosen_TK in zip(group, batch.real_BT, chosen_BTK, strict=True):
                    chosen = chosen_TK[real_T]
                    top_1[place, block.index] = _shares(chosen[:, 0], len(merge.experts))
                    load[block.index] += torch.bincount(chosen.flatten(), minlength=len(merge.experts))
    return _report(merge, texts, rows, top_1, load)


class _Routers:
    """The routers and the experts of a merge, one expert in memory at a time."""

    def __init__(self, merge: Merge, dtype: torch.dtype) -> None:
        self._merge, self._dtype = merge, dtype
        layer = merge.model_config().feed_forwards[0]
        assert isinstance(layer, MoEConfig)
        self._layer = layer

    def route(self, layer: int, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """weight_BTK, which sum to 1, and chosen_BTK, the best first."""
        gate_ED = self._merge.read(self._merge.output.of_router(layer, fused=self._merge.fused)).float()
        probs_BTE = (x_BTD.float() @ gate_ED.t()).softmax(-1)
        weight_BTK, chosen_BTK = probs_BTE.topk(self._merge.config.experts_per_token, -1)
        return weight_BTK / weight_BTK.sum(-1, keepdim=True), chosen_BTK

    def apply(self, layer: int, normed: list[Tensor]) -> list[Tensor]:
        """What the layer's mixture gives for each batch."""
        sizes = [x_BTD.shape for x_BTD in normed]
        x_ND = torch.cat([x_BTD.flatten(0, 1) for x_BTD in normed])
        weight_NK, chosen_NK = self.route(layer, x_ND)
        y_ND = torch.zeros_like(x_ND, dtype=torch.float32)
        for expert in range(len(self._merge.experts)):
            token_S, choice_S = (chosen_NK == expert).nonzero(as_tuple=True)
            if len(token_S):
                out_SD = self._network(layer, expert, x_ND[token_S]).float()
                y_ND.index_add_(0, token_S, out_SD * weight_NK[token_S, choice_S, None])
        y_ND += self._shared(layer, x_ND)
        parts = torch.split(y_ND.to(x_ND.dtype), [shape[0] * shape[1] for shape in sizes])
        return [part.view(shape) for part, shape in zip(parts, sizes, strict=True)]

    def _shared(self, layer: int, x_ND: Tensor) -> Tensor:
        merge = self._merge
        total = torch.zeros(len(x_ND), 1)
        for index in range(len(merge.shared)):
            out_ND = self._network(layer, len(merge.experts) + index, x_ND).float()
            if merge.output.shared_gate:
                gate = merge.read(f"model.layers.{layer}.{merge.output.shared_gate}").float()
                out_ND = out_ND * (x_ND.float() @ gate.t()).sigmoid()
            total = total + out_ND
        return total

    def _network(self, layer: int, expert: int, x_SD: Tensor) -> Tensor:
        matrices = [self._merge.matrix(layer, expert, part).to(self._dtype) for part in NETWORK]
        return network(x_SD, matrices, self._layer.activation)


def _shares(first_T: Tensor, experts: int) -> Tensor:
    return torch.bincount(first_T, minlength=experts) / max(len(first_T), 1)


def _report(
    merge: Merge, texts: Sequence[Text], rows: Sequence[Sequence[int]], top_1: Tensor, load: Tensor
) -> RoutingReport:
    meant = [index for index, text in enumerate(texts) if text.meant is not None and rows[index]]
    accuracy = None
    if meant:
        tokens = torch.tensor([float(len(rows[index])) for index in meant])
        right = torch.stack([top_1[index, :, texts[index].meant] for index in meant])
        accuracy = ((right * tokens[:, None]).sum(0) / tokens.sum()).tolist()
    return RoutingReport(
        experts=[str(expert.source_model) for expert in merge.config.experts],
        experts_per_token=merge.config.experts_per_token,
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
