"""Dense models of every kind that conversion meets, small, with logits of unit scale."""

from pathlib import Path

import torch
from torch import Tensor

from moekit.config import AttentionConfig, DenseConfig, LatentAttentionConfig, ModelConfig
from moekit.models import Decoder, load

VOCAB = 61
GROUPED = {"heads": 4, "kv_heads": 2, "head_width": 8}


def config(
    *, attention: object = None, dense: DenseConfig | None = None, layers: int = 2, **more: object
) -> ModelConfig:
    settings = {
        "vocab_size": VOCAB,
        "width": 32,
        "context": 24,
        "attention": attention or AttentionConfig(**GROUPED),
        "layers": (dense or DenseConfig(width=48),) * 2,
        "init_std": 0.2,
    }
    return ModelConfig.model_validate(settings | more)


GELU = DenseConfig(width=48, activation="gelu", gated=False)
MODELS = {
    "llama": config(),
    "mistral": config(attention=AttentionConfig(**GROUPED, windows=(5,))),
    "qwen2": config(attention=AttentionConfig(**GROUPED, qkv_bias=True), tie_embeddings=True),
    "qwen3": config(attention=AttentionConfig(**GROUPED, query_key_norm="head")),
    "falcon": config(dense=GELU, block="parallel", norm="layer", tie_embeddings=True),
    "gpt-without-biases": config(
        attention=AttentionConfig(heads=4, kv_heads=4, head_width=8, positions="none", qkv_bias=True, output_bias=True),
        dense=DenseConfig(width=48, activation="gelu_tanh", gated=False),
        norm="layer",
        learned_positions=True,
    ),
    "scaled": config(
        block="sandwich", embedding_scale=3.0, logit_scale=0.5, dense=DenseConfig(width=48, activation="gelu")
    ),
    "latent": config(
        attention=LatentAttentionConfig(heads=4, head_width=8, rotary_width=4, value_width=6, kv_rank=8, query_rank=12)
    ),
}


def save(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """The model of that name in a folder; norms and biases are drawn, too, so that none is all ones or zeros."""
    torch.manual_seed(1)
    model = Decoder(MODELS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.randn_like(parameter) * 0.2
    model.to(dtype).save(folder / name)
    return folder / name


def logits(folder: Path, *batches_BT: Tensor, real_BT: Tensor | None = None) -> list[Tensor]:
    """In fp32, as a user gets them; real_BT is the last batch's."""
    model = load(folder, dtype=torch.float32)
    with torch.no_grad():
        found = [model(tokens_BT) for tokens_BT in batches_BT[:-1]]
        return [*found, model(batches_BT[-1], real_BT=real_BT)]


def difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| in standard deviations of a."""
    assert a.std() > 0.1
    return float((a - b).abs().max() / a.std())
