"""Training the routers of a merge, and nothing else; then proof that nothing else changed.

B sequences, T tokens.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moekit.checkpoint.read_weights import memory_of
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.checkpoint.views import pairs
from moekit.config import never_learns
from moekit.convert.merging.merge_plan import Merge, materialized
from moekit.convert.merging.output_formats import merged_layout
from moekit.core.errors import MoekitError, UsageError
from moekit.data import Document
from moekit.models import Decoder
from moekit.models.folder import allocate, own_tensors
from moekit.nn.meta import on_meta

_ROUTERS = ("router.weight", "branch_gate.weight")


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
    """tensors: by name in the result. key: tells them from others. before, after: nats a token, first and last."""

    tensors: Mapping[str, Tensor]
    key: str
    before: float
    after: float


def train_routers(
    merge: Merge,
    documents: Sequence[Document],
    training: RouterTraining | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> TrainedRouters:
    """Train the routers (and the gates of shared experts) of a merge on text, everything else frozen.

    The whole model is in memory (`training_memory_bytes`), in the types of the result (fp16, whose gradients would
    overflow, in fp32); the optimiser keeps the routers in fp32, where small steps are not lost, and what the model
    routes with is what will be written. The same merge, text and seed give the same routers.

    Raises UsageError where the text has not one row of tokens, MoekitError where the loss is no number or something
    else than a router changed.
    """
    training = training or RouterTraining()
    if reason := never_learns(merge.model_config().feed_forwards):
        raise UsageError(f"--train-router: {reason}.")
    rows = _rows(merge, documents, min(training.tokens, merge.base.config.context))
    model = loaded(merge)
    if any(parameter.dtype is torch.float16 for parameter in model.parameters()):
        model = model.float()
    frozen = _digest(_others(model))
    routers = {name: parameter for name, parameter in model.named_parameters() if name.endswith(_ROUTERS)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in routers)
    losses = list(_steps(model, routers, rows, training, merge.seed, on_step))
    if _digest(_others(model)) != frozen:
        raise MoekitError("Training changed more than the routers; nothing was written.")
    tensors = _stored(merge, model)
    few = max(1, len(losses) // 10)
    before, after = sum(losses[:few]) / few, sum(losses[-few:]) / few
    return TrainedRouters(tensors, _digest(tensors), before, after)


def training_memory_bytes(merge: Merge, training: RouterTraining | None = None) -> int:
    """What `train_routers` holds at its peak, about: all weights, and what a batch leaves for the way back.

    A batch leaves in each layer some 16 vectors of the width a token, five of the experts' width for each of its
    experts, and after the last one three rows of logits in fp32.
    """
    training, config = training or RouterTraining(), merge.model_config()
    sizes = [math.prod(tensor.shape) * _trained_type(tensor.dtype).itemsize for tensor in merge.tensors]
    itemsize = max(_trained_type(tensor.dtype).itemsize for tensor in merge.tensors)
    tokens = training.sequences * min(training.tokens, config.context)
    networks = merge.config.experts_per_token + len(merge.shared)
    layer = (16 * config.width + 5 * networks * merge.base.layer.width) * itemsize
    return sum(sizes) + 2 * max(sizes) + tokens * (len(config.layers) * layer + 12 * config.vocab_size)


def _trained_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype is torch.float16 else dtype


def loaded(merge: Merge) -> Decoder:
    """The merged model in memory, as the folder would be loaded."""
    config = merge.model_config()
    with on_meta():
        model = Decoder(config)
    layout = [entry for entry in merged_layout(merge.output, config) if not entry.optional]
    plain = merge if not merge.fused else merge.unfused()
    types = {part.ours: plain.by_name[entry.name].dtype for entry in layout for part in entry.parts}
    allocate(model, types)
    parameters = own_tensors(model)
    for entry in layout:
        tensor = plain.read(entry.name).contiguous()  # it may be a part of a larger one, as a layer's gate is
        for pair in pairs(entry, parameters):
            offset = tensor.storage_offset() + pair.stored.storage_offset()
            pair.ours.copy_(tensor.as_strided(pair.stored.shape, pair.stored.stride(), offset))
    return model.eval()


def _rows(merge: Merge, documents: Sequence[Document], tokens: int) -> list[list[int]]:
    """All texts as rows of at most `tokens` + 1 tokens, each after the start token."""
    rows = []
    for document in documents:
        ids = merge.encoder.ids(document.text.decode("utf-8"))
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
    on_step: Callable[[int, float], None],
) -> Iterator[float]:
    """Nats per token of each step."""
    generator = torch.Generator().manual_seed(seed)
    masters = {name: router.detach().float().clone() for name, router in routers.items()}
    scale = max(sum(float(master.square().sum()) for master in masters.values()), 1e-12)
    scale = (scale / sum(master.numel() for master in masters.values())) ** 0.5
    optimizer = torch.optim.AdamW(list(masters.values()), lr=training.rate * scale, weight_decay=0.0)
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.rate * scale * (1 - 0.9 * step / training.steps)
        chosen = torch.randint(len(rows), (training.sequences,), generator=generator).tolist()
        nats, count = model.loss(_batch([rows[index] for index in chosen]))
        loss = nats / count
        if not bool(loss.isfinite()):
            raise MoekitError(f"The routers' loss was no number any more at step {step + 1}.")
        loss.backward()  # type: ignore[no-untyped-call]
        _update(optimizer, routers, masters)
        on_step(step + 1, loss.item())
        yield loss.item()


def _update(optimizer: torch.optim.Optimizer, routers: Mapping[str, Tensor], masters: Mapping[str, Tensor]) -> None:
    """One step of the masters along the routers' gradients, which are used up."""
    for name, master in masters.items():
        router = routers[name]
        master.grad = None if router.grad is None else router.grad.float()
        router.grad = None
    optimizer.step()
    with torch.no_grad():
        for name, router in routers.items():
            router.copy_(masters[name])


def _batch(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows padded at their end."""
    length = max(map(len, rows))
    tokens_BT = torch.zeros(len(rows), length, dtype=torch.int64)
    real_BT = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens_BT[index, : len(row)] = torch.tensor(row)
        real_BT[index, : len(row)] = True
    return {"tokens": tokens_BT, "real": real_BT}


def _others(model: Decoder) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in own_tensors(model).items() if not name.endswith(_ROUTERS)}


def _stored(merge: Merge, model: Decoder) -> dict[str, Tensor]:
    """The routers by their names in the result, in its types."""
    names: dict[str, Tensor] = {}
    for layer, module in enumerate(model.moe_layers):
        names[merge.output.of_router(layer, fused=merge.fused)] = module.router.weight
        if module.branch_gate is not None:
            names[f"model.layers.{layer}.{merge.output.shared_gate}"] = module.branch_gate.weight
    return {name: weight.detach().to(merge.by_name[name].dtype).clone() for name, weight in names.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(memory_of(tensors[name].contiguous()))
    return digest.hexdigest()


def check_only_routers(merge: Merge, folder: Path) -> int:
    """Compare every written tensor but routers with what the untrained merge holds; gives how many were equal.

    Raises MoekitError naming the first that is not.
    """
    written = StoredTensors.open(folder)
    others = [tensor for tensor in merge.tensors if tensor.name not in merge.router_names]
    for tensor in others:
        info = written[tensor.name]
        found = torch.empty(info.shape, dtype=info.dtype)
        written.read(tensor.name, 0, memory_of(found))
        expected = materialized(tensor)
        if found.dtype is not expected.dtype or bytes(memory_of(found)) != bytes(memory_of(expected.contiguous())):
            raise MoekitError(f"{info.file}: {tensor.name!r} is not what it was before the routers were trained.")
    return len(others)
