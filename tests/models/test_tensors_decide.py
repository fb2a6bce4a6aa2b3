"""What a folder's tensors say that config.json does not, or says otherwise, in every verb that reads folders."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import DENSE, MOE, model_config
from torch import Tensor

import moekit
from moekit.config.encoder import EncoderConfig
from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.core.errors import MoekitError
from moekit.families.bert import FAMILY as BERT
from moekit.families.catalogue import FAMILIES
from moekit.models import Decoder, Encoder, build, load
from moekit.models.folder import read_config
from moekit.models.stored_model import StoredModel


def change(folder: Path, tensors: dict[str, Tensor] | None = None, **settings: Any) -> Path:
    """Add tensors and settings to a folder."""
    file = folder / "model.safetensors"
    save_file(load_file(file) | (tensors or {}), file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | settings))
    return folder


def saved(model: Any, folder: Path) -> Path:
    model.save(folder)
    return folder


def logits(folder: Path) -> Tensor:
    model = load(folder)
    with torch.no_grad():
        return model(torch.arange(12)[None])  # type: ignore[no-any-return, operator]


def settings_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("layer", [DENSE, MOE], ids=["dense", "experts"])
def test_a_head_in_the_file_is_the_head(layer: Any, tmp_path: Path) -> None:
    model = Decoder(model_config((layer, layer)))
    said_untied = saved(model, tmp_path / "untied")
    said_tied = change(saved(model, tmp_path / "tied"), tie_word_embeddings=True)
    assert torch.equal(logits(said_tied), logits(said_untied))
    assert not StoredModel(said_tied).config.tie_embeddings

    load(said_tied).save(tmp_path / "again")  # type: ignore[union-attr]
    assert settings_in(tmp_path / "again")["tie_word_embeddings"] is False
    assert torch.equal(logits(tmp_path / "again"), logits(said_untied))


def test_a_copy_of_the_embedding_is_no_head(tmp_path: Path) -> None:
    model = Decoder(model_config((DENSE,)).model_copy(update={"tie_embeddings": True}))
    folder = saved(model, tmp_path / "tied")
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change(folder, {"lm_head.weight": embedding.clone()})
    assert read_config(folder)[1] == model.config
    change(folder, {"lm_head.weight": embedding.bfloat16()})
    assert read_config(folder)[1].tie_embeddings is False  # type: ignore[attr-defined]


def test_every_verb_takes_the_head_of_the_file(tmp_path: Path) -> None:
    model = Decoder(model_config((DENSE, DENSE)))
    folder = change(saved(model, tmp_path / "model"), tie_word_embeddings=True)
    expected = logits(saved(model, tmp_path / "untied"))
    moekit.upcycle(folder, tmp_path / "upcycled", experts=2, top_k=2)
    assert (logits(tmp_path / "upcycled") - expected).abs().max() < 1e-4 * expected.std()
    assert settings_in(tmp_path / "upcycled")["tie_word_embeddings"] is False
    file = tmp_path / "model.gguf"
    moekit.quantize(folder, file, "f32")
    from moekit.models.gguf import load_gguf

    with torch.no_grad():
        got = load_gguf(file)(torch.arange(12)[None])
    assert (got - expected).abs().max() < 1e-4 * expected.std()
    assert moekit.plan(folder).params_total == moekit.plan(tmp_path / "untied").params_total


def test_copies_that_differ_where_the_family_has_one_are_refused(tmp_path: Path) -> None:
    dense = DENSE.model_copy(update={"activation": "gelu", "gated": False, "bias": True})
    config = EncoderConfig(vocab_size=41, width=16, context=12, heads=2, layers=(dense,))
    folder = saved(Encoder(config), tmp_path / "model")
    names = {entry.name for entry in BERT.layout(config) if entry.optional}  # type: ignore[misc]
    assert names == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    embedding = load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert read_config(change(folder, {"cls.predictions.decoder.weight": embedding.clone()}))[1] == config
    change(folder, {"cls.predictions.decoder.weight": embedding + 1})
    with pytest.raises(MoekitError, match=r"model\.safetensors.*decoder\.weight.*word_embeddings"):
        load(folder)


def test_a_t5_with_a_head_of_its_own(tmp_path: Path) -> None:
    layer = DENSE.model_copy(update={"gated": False, "activation": "relu"})
    shape = {"vocab_size": 41, "width": 16, "heads": 2, "head_width": 8}
    layers = {"encoder_layers": (layer,), "decoder_layers": (layer,)}
    config = EncoderDecoderConfig(**shape, **layers, scaled_logits=True)  # type: ignore[arg-type]
    folder = saved(build(config), tmp_path / "model")
    change(folder, {"lm_head.weight": torch.randn(41, 16)})
    assert read_config(folder)[1] == config.model_copy(update={"tie_embeddings": False})


BUFFERS = (
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.cos_cached",
    "model.rotary_emb.sin_cached",
    "transformer.h.0.attn.bias",
    "h.0.attn.masked_bias",
    "transformer.h.0.attn.attention.bias",
    "transformer.h.0.attn.attention.masked_bias",
    "bert.embeddings.position_ids",
    "bert.embeddings.token_type_ids",
)


def test_buffers_are_known_and_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(Decoder(model_config((DENSE,))), tmp_path / "model")
    expected = logits(folder)
    change(folder, {name: torch.zeros(1, 1, 4, 4) for name in BUFFERS})
    with caplog.at_level(logging.INFO):
        assert torch.equal(logits(folder), expected)
        StoredModel(folder)
    assert not caplog.records
    change(folder, {"model.layers.0.self_attn.bias": torch.zeros(4)})
    with pytest.raises(MoekitError, match=r"self_attn\.bias"):
        load(folder)


MODULE = ("eh_proj.weight", "enorm.weight", "shared_head.head.weight", "mlp.experts.0.up_proj.weight")


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("modules", [1, 2])
def test_modules_for_further_tokens_are_left_out_and_named(
    layers: int, modules: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever they stand: behind the last layer, however many that are."""
    folder = saved(Decoder(model_config((MOE,) * layers)), tmp_path / "model")
    expected = logits(folder)
    names = [f"model.layers.{layers + module}.{name}" for module in range(modules) for name in MODULE]
    change(folder, {name: torch.ones(3) for name in names} | {"mtp.norm.weight": torch.ones(3)})
    with caplog.at_level(logging.INFO):
        assert torch.equal(logits(folder), expected)
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"layers.{layers}." in message
    assert f"{len(names)} more" in message
    caplog.clear()
    with caplog.at_level(logging.INFO):
        StoredModel(folder)
    assert len(caplog.records) == 1


def test_a_layer_that_config_does_not_count_is_no_such_module(tmp_path: Path) -> None:
    folder = saved(Decoder(model_config((DENSE,))), tmp_path / "model")
    change(folder, {"model.layers.1.input_layernorm.weight": torch.ones(3)})
    with pytest.raises(MoekitError, match=r"layers\.1\.input_layernorm"):
        load(folder)


def test_shapes_that_do_not_fit_name_what_config_lacks(tmp_path: Path) -> None:
    folder = saved(Decoder(model_config((DENSE,))), tmp_path / "model")
    settings = settings_in(folder)
    for key in ("num_hidden_layers", "intermediate_size"):
        del settings[key]
    (folder / "config.json").write_text(json.dumps(settings))
    for read in (load, StoredModel):
        with pytest.raises(MoekitError, match=r"config\.json lacks intermediate_size, num_hidden_layers;"):
            read(folder)


@pytest.mark.parametrize("name", ["gpt_oss", "glm4_moe", "mamba", "lama", "moekit"])
def test_a_model_type_that_is_not_read_is_not_taken_for_a_misspelling(name: str, tmp_path: Path) -> None:
    folder = saved(Decoder(model_config((DENSE,))), tmp_path / "model")
    change(folder, model_type=name)
    with pytest.raises(MoekitError, match=f"'{name}', a family that moekit does not read") as caught:
        load(folder)
    assert "did you mean" not in str(caught.value)
    assert all(family.model_type in str(caught.value) for families in FAMILIES.values() for family in families)


def test_layers_with_settings_of_their_own_are_refused(tmp_path: Path) -> None:
    folder = saved(Decoder(model_config((DENSE,))), tmp_path / "model")
    change(folder, per_layer_config={"0": {"intermediate_size": 8}})
    with pytest.raises(MoekitError, match="per_layer_config"):
        load(folder)
