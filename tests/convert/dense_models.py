"""Dense models of every kind that conversion meets, small, with logits of unit scale."""

import json
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from moekit.config import AttentionConfig, DenseConfig, LatentAttentionConfig, ModelConfig
from moekit.models import Decoder, load

VOCAB = 61
TOKENS = torch.randint(0, VOCAB, (3, 14), generator=torch.Generator().manual_seed(3))
REAL = torch.arange(14) < torch.tensor([[14], [9], [5]])
GROUPED = {"heads": 4, "kv_heads": 2, "head_width": 8}
ALL_HEADS = {"heads": 4, "kv_heads": 4, "head_width": 8}


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
    "mistral": config(attention=AttentionConfig(**GROUPED, window=5)),
    "qwen2": config(attention=AttentionConfig(**GROUPED, qkv_bias=True), tie_embeddings=True),
    "qwen3": config(attention=AttentionConfig(**GROUPED, query_key_norm="head")),
    "falcon": config(dense=GELU, block="parallel", norm="layer", tie_embeddings=True),
    "gpt2": config(
        attention=AttentionConfig(**ALL_HEADS, positions="none", qkv_bias=True, output_bias=True),
        dense=DenseConfig(width=48, activation="gelu_tanh", gated=False, bias=True),
        norm="layer",
        learned_positions=True,
        tie_embeddings=True,
    ),
    "gpt_neo": config(
        attention=ALL_HEADS | {"positions": "none", "scale": 1.0, "output_bias": True, "windows": (None, 5)},
        dense=DenseConfig(width=48, activation="gelu_tanh", gated=False, bias=True),
        norm="layer",
        learned_positions=True,
        tie_embeddings=True,
    ),
    "falcon-rw": config(
        attention=AttentionConfig(**ALL_HEADS, positions="alibi", qkv_bias=True, output_bias=True),
        dense=GELU.model_copy(update={"bias": True}),
        norm="layer",
        tie_embeddings=True,
    ),
    "llama-with-biases": config(dense=DenseConfig(width=48, bias=True)),
    "scaled": config(
        block="sandwich", embedding_scale=3.0, logit_scale=0.5, dense=DenseConfig(width=48, activation="gelu")
    ),
    "latent": config(
        attention=LatentAttentionConfig(heads=4, head_width=8, rotary_width=4, value_width=6, kv_rank=8, query_rank=12)
    ),
}


def save(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """The model of that name in a folder; norms and biases are drawn, too, so that none is all ones or zeros.

    Those of feed-forward networks are as large as what they are added to.
    """
    torch.manual_seed(1)
    model = Decoder(MODELS[name])
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter += torch.randn_like(parameter) * (1.0 if ".feed_forward." in place else 0.2)
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


def check_same(source: Path, out: Path, other_routers: int = 0) -> None:
    """In fp32, whole and padded batches; other_routers: how often whole ones again, with routers drawn anew."""
    expected, model = expected_logits(source), load(out, dtype=torch.float32)
    assert isinstance(model, Decoder)
    with torch.no_grad():
        assert difference(expected, model(TOKENS)) <= 1e-5
        assert difference(expected[REAL], model(TOKENS, real_BT=REAL)[REAL]) <= 1e-5
        for _ in range(other_routers):
            for layer in model.moe_layers:
                weight = layer.router.weight
                parts = int((weight == weight[:1]).all(1).sum())  # rows of one copy's parts are the same
                weight.copy_(torch.randn(len(weight) // parts, weight.shape[1]).mul(0.3).repeat_interleave(parts, 0))
            assert difference(expected, model(TOKENS)) <= 1e-5


@lru_cache
def expected_logits(source: Path) -> Tensor:
    return logits(source, TOKENS)[0]


def model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["model_type"])
