"""Training the routers of a merge, and nothing else.

B sequences, T tokens.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moekit.checkpoint.read_weights import memory_of
from moekit.config import never_learns
from moekit.convert.expert_channels import ROUTERS
from moekit.convert.merging.merged_model import MergedModel
from moekit.convert.merging.prompts import prompt_encoder
from moekit.convert.storage.output_tensors import tensor_of
from moekit.core.errors import MoekitError, UsageError
from moekit.core.progress import Progress, Task, no_progress
from moekit.data import Document
from moekit.models import Decoder
from moekit.models.folder import allocate, own_tensors
from moekit.models.stored_model import dense_of, row_count, row_width
from moekit.models.streamed_decoder import TokenBatch
from moekit.nn.meta import on_meta


@dataclass(frozen=True, kw_only=True)
class RouterTraining:
    """How routers are trained: AdamW without decay on `steps` batches of `sequences` rows of up to `tokens` tokens.

    rate: of learning, for routers brought to a common scale; it falls linearly to a tenth.
    """

    steps: int = 200
    sequences: int = 8
    tokens: int = 256
    rate: float = 1e-2


@dataclass(frozen=True)
class TrainedRouters:
    """The merge with what its routers learnt. before, after: nats a token, of the first tenth of steps and the last."""

    merged: MergedModel
    before: float
    after: float


def train_routers(
    merged: MergedModel,
    documents: Sequence[Document],
    training: RouterTraining | None = None,
    progress: Progress = no_progress,
) -> TrainedRouters:
    """Train the routers (and the gates of shared experts) of a merge whose gates are made, everything else frozen.

    The whole model is in memory (`training_memory_bytes`), in the types of the result (fp16, whose gradients would
    overflow, in fp32); the optimiser keeps the routers in fp32, where small steps are not lost, and what the model
    routes with is what will be written. The same merge, text and seed give the same routers.

    Raises UsageError where the text has not one row of tokens, MoekitError where the loss is no number or something
    else than a router changed.
    """
    training = training or RouterTraining()
    if reason := never_learns(merged.config.feed_forwards):
        raise UsageError(f"--train-router: {reason}.")
    rows = _rows(merged, documents, min(training.tokens, merged.config.context))
    model = loaded(merged)
    if any(parameter.dtype is torch.float16 for parameter in model.parameters()):
        model = model.float()
    frozen = _digest(_others(model))
    routers = {name: parameter for name, parameter in model.named_parameters() if name.endswith(ROUTERS)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in routers)
    with Task(progress, "Training the routers", total=training.steps, unit="steps") as task:
        losses = []
        for loss in _steps(model, routers, rows, training, merged.seed):
            losses.append(loss)
            task.set(len(losses), note=f"loss {loss:.3f}")
    if _digest(_others(model)) != frozen:
        raise MoekitError("Training changed more than the routers; nothing was written.")
    found = {name: router.detach().to(merged.model.dtype(name)).clone() for name, router in routers.items()}
    few = max(1, len(losses) // 10)
    before, after = sum(losses[:few]) / few, sum(losses[-few:]) / few
    key = _digest({merged.router_names[name]: router for name, router in found.items()})
    return TrainedRouters(merged.with_routers(found, key), before, after)


def training_memory_bytes(merged: MergedModel, training: RouterTraining | None = None) -> int:
    """Estimate what `train_routers` holds at its peak: all weights, and what a batch leaves for the way back.

    A batch leaves in each layer some 16 vectors of the width a token, five of the experts' width for each of its
    experts, and after the last one three rows of logits in fp32.
    """
    training, config = training or RouterTraining(), merged.config
    sizes = [math.prod(tensor.shape) * _trained_type(tensor.dtype).itemsize for tensor in merged.tensors]
    itemsize = max(_trained_type(tensor.dtype).itemsize for tensor in merged.tensors)
    tokens = training.sequences * min(training.tokens, config.context)
    networks = merged.recipe.experts_per_token + len(merged.recipe.shared_experts)
    layer = (16 * config.width + 5 * networks * dense_of(merged.base.config, 0).width) * itemsize
    return sum(sizes) + 2 * max(sizes) + tokens * (len(config.layers) * layer + 12 * config.vocab_size)


def _trained_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype is torch.float16 else dtype


def loaded(merged: MergedModel) -> Decoder:
    """Make the merged model in memory, as the folder would be loaded, one piece of it at a time."""
    with on_meta():
        model = Decoder(merged.config)
    allocate(model, {name: merged.model.dtype(name) for name in merged.model.shapes})
    for name, parameter in own_tensors(model).items():
        rows, at = parameter.view(-1, row_width(parameter)), 0
        for piece in merged.model.pieces(name, range(row_count(parameter))):
            found = tensor_of(piece).reshape(-1, rows.shape[1])
            rows[at : at + len(found)] = found
            at += len(found)
    return model.eval()


def _rows(merged: MergedModel, documents: Sequence[Document], tokens: int) -> list[list[int]]:
    """Cut all texts into rows of at most `tokens` + 1 tokens, after the start token."""
    encoder, rows = prompt_encoder(merged.base), []
    for document in documents:
        ids = encoder.ids(document.text.decode("utf-8"))
        rows += [ids[begin : begin + tokens + 1] for begin in range(0, len(ids) - 1, tokens)]
    full = [row for row in rows if len(row) > 1]
    if not full:
        raise UsageError("--train-router: the text has less than two tokens.")
    return full


def _steps(
    model: Decoder,
    routers: Mapping[str, Tensor],
    rows: Sequence[Sequence[int]],
    training: RouterTraining,
    seed: int,
) -> Iterator[float]:
    """Take the steps; give the nats per token of each."""
    generator = torch.Generator().manual_seed(seed)
    masters = {name: router.detach().float().clone() for name, router in routers.items()}
    scale = max(sum(float(master.square().sum()) for master in masters.values()), 1e-12)
    scale = (scale / sum(master.numel() for master in masters.values())) ** 0.5
    optimizer = torch.optim.AdamW(list(masters.values()), lr=training.rate * scale, weight_decay=0.0)
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.rate * scale * (1 - 0.9 * step / training.steps)
        chosen = torch.randint(len(rows), (training.sequences,), generator=generator).tolist()
        batch = TokenBatch.of([rows[index] for index in chosen])
        nats, count = model.loss({"tokens": batch.tokens_BT, "real": batch.real_BT})
        loss = nats / count
        if not bool(loss.isfinite()):
            raise MoekitError(f"The routers' loss was no number any more at step {step + 1}.")
        loss.backward()  # type: ignore[no-untyped-call]
        _update(optimizer, routers, masters)
        yield loss.item()


def _update(optimizer: torch.optim.Optimizer, routers: Mapping[str, Tensor], masters: Mapping[str, Tensor]) -> None:
    """Take one step of the masters along the routers' gradients, which are used up."""
    for name, master in masters.items():
        router = routers[name]
        master.grad = None if router.grad is None else router.grad.float()
        router.grad = None
    optimizer.step()
    with torch.no_grad():
        for name, router in routers.items():
            router.copy_(masters[name])


def _others(model: Decoder) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in own_tensors(model).items() if not name.endswith(ROUTERS)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(memory_of(tensors[name].contiguous()))
    return digest.hexdigest()
