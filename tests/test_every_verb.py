"""Every verb on every family and every guise: it works, or one sentence names the file, the cause and a way on."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import DENSE, MOE

import moekit
from moekit.checkpoint.gguf import GGUFFile, OutputTensor, write_gguf
from moekit.config import (
    Config,
    DenseConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    FeedForwardConfig,
    GRUSeq2SeqConfig,
    LatentAttentionConfig,
    LSTMConfig,
    LSTMSeq2SeqConfig,
    ModelConfig,
    MoEConfig,
    NormConfig,
    SigmoidBiasConfig,
    SoftmaxTopKConfig,
    SwitchConfig,
    XLNetConfig,
)
from moekit.core.errors import MoekitError
from moekit.families import describe
from moekit.kernels.packed.block_types import BLOCK_TYPES
from moekit.models import Decoder, build

TOKENS = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))
LINES, COLUMNS = 2, 110  # of a terminal, that an error may take


def decoder(
    feed_forward: FeedForwardConfig = DENSE, attention: Mapping[str, object] | None = None, **more: Any
) -> ModelConfig:
    """A decoder of bytes, which needs no tokenizer."""
    heads = {"heads": 4, "kv_heads": 2, "head_width": 8} | dict(attention or {})
    settings = {"vocab_size": 256, "width": 32, "context": 48, "init_std": 0.2, "layers": (feed_forward,) * 2}
    return ModelConfig.model_validate(settings | {"attention": heads} | more)


def latent(**more: Any) -> ModelConfig:
    attention = LatentAttentionConfig(heads=4, head_width=8, rotary_width=4, value_width=8, kv_rank=16, query_rank=16)
    settings = {"vocab_size": 256, "width": 32, "context": 48, "init_std": 0.2, "attention": attention}
    return ModelConfig.model_validate(settings | more)


PLAIN = DenseConfig(width=64, activation="gelu_tanh", gated=False, bias=True)
LEARNED = {"norm": "layer", "learned_positions": True, "tie_embeddings": True}
ABSOLUTE = {"kv_heads": 4, "positions": "none", "qkv_bias": True, "output_bias": True}
FALCON = {
    "norm": "layer",
    "tie_embeddings": True,
    "feed_forward": DenseConfig(width=128, activation="gelu", gated=False),
}
SIGMOID = MoEConfig(experts=4, expert_width=24, router=SigmoidBiasConfig(top_k=2), branch="shared", branch_width=24)
SOFT = SoftmaxTopKConfig(top_k=2, renormalize=False)


def mixture(**more: Any) -> MoEConfig:
    return MoEConfig(**{"experts": 4, "expert_width": 32, "router": SOFT} | more)


SMALL_ENCODING = DenseConfig(width=24, activation="relu", gated=False)
T5 = {"vocab_size": 256, "width": 32, "heads": 4, "head_width": 8}
FAMILIES: dict[str, Config] = {
    "llama": decoder(),
    "mistral": decoder(attention={"window": 8}),
    "qwen2": decoder(attention={"qkv_bias": True}),
    "qwen3": decoder(attention={"query_key_norm": "head"}),
    "gemma3_text": decoder(
        DenseConfig(width=48, activation="gelu_tanh"),
        {"query_key_norm": "head"},
        block="sandwich",
        tie_embeddings=True,
        embedding_scale=32**0.5,
        norm=NormConfig(zero_centered=True, eps=1e-6),
    ),
    "gpt2": decoder(PLAIN, ABSOLUTE, **LEARNED),
    "gpt_neo": decoder(PLAIN, ABSOLUTE | {"qkv_bias": False, "scale": 1.0, "windows": (None, 8)}, **LEARNED),
    "falcon": decoder(attention={"kv_heads": 1}, block="parallel_shared", **FALCON),
    "mixtral": decoder(MOE),
    "olmoe": decoder(mixture(), {"query_key_norm": "all"}),
    "qwen2_moe": decoder(mixture(branch="gated_shared", branch_width=32), {"qkv_bias": True}),
    "qwen3_moe": decoder(mixture(router=SoftmaxTopKConfig(top_k=2)), {"query_key_norm": "head"}),
    "deepseek": decoder(
        mixture(branch="shared", branch_width=32),
        {"kv_heads": 4},
        layers=(DENSE, mixture(branch="shared", branch_width=32)),
    ),
    "deepseek_v3": latent(layers=(DENSE, SIGMOID)),
    "moekit_decoder": decoder(MoEConfig(experts=4, expert_width=24, router=SwitchConfig())),
    "bert": EncoderConfig(vocab_size=256, width=32, context=48, heads=4, layers=(PLAIN, PLAIN), mask_token=5),
    "xlnet": XLNetConfig(vocab_size=256, width=32, heads=4, layers=(PLAIN, PLAIN)),
    "t5": EncoderDecoderConfig(**T5, encoder_layers=(SMALL_ENCODING,), decoder_layers=(SMALL_ENCODING,)),
    "moekit_lstm": LSTMConfig(vocab_size=256, embedding_width=16, widths=(16,)),
    "moekit_lstm_seq2seq": LSTMSeq2SeqConfig(
        source_vocab_size=256, target_vocab_size=256, embedding_width=8, width=8, layers=1, end_token=0
    ),
    "moekit_gru_seq2seq": GRUSeq2SeqConfig(
        source_vocab_size=256,
        target_vocab_size=256,
        embedding_width=8,
        width=8,
        alignment_width=4,
        maxout_width=4,
        end_token=0,
    ),
}


def forward(model: object) -> torch.Tensor | None:
    """The logits of a decoder for some tokens; None of other kinds of models."""
    if not isinstance(model, Decoder):
        return None
    with torch.no_grad():
        return model(TOKENS)


@cache
def text_file(folder: Path) -> Path:
    file = folder / "text.txt"
    file.write_text("A model reads this text, byte by byte, and says how likely each of them is.\n" * 3)
    return file


def _load(place: Path, out: Path) -> object:
    return forward(moekit.load(place, dtype=torch.float32))


def _evaluate(place: Path, out: Path) -> object:
    return moekit.evaluate(place, [text_file(out.parent)], context=32).bits_per_byte


def _plan(place: Path, out: Path) -> object:
    return moekit.plan(place).params_total


def _generate(place: Path, out: Path) -> object:
    return moekit.generate(place, "This text", max_tokens=6).completion_tokens


def _quantize(place: Path, out: Path) -> object:
    moekit.quantize(place, out.with_suffix(".gguf"), "f32")
    return forward(moekit.load(out.with_suffix(".gguf")))


def _upcycle(place: Path, out: Path) -> object:
    moekit.upcycle(place, out, experts=2, top_k=2)
    return forward(moekit.load(out, dtype=torch.float32))


def _split(place: Path, out: Path) -> object:
    moekit.split(place, out, experts=2, top_k=2, method="random")
    return forward(moekit.load(out, dtype=torch.float32))


VERBS: dict[str, Callable[[Path, Path], object]] = {
    "load": _load,
    "evaluate": _evaluate,
    "plan": _plan,
    "generate": _generate,
    "quantize": _quantize,
    "upcycle": _upcycle,
    "split": _split,
}


DENSE_ONES = {"llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt2", "gpt_neo", "falcon"}
DECODERS = {name for name, config in FAMILIES.items() if isinstance(config, ModelConfig)}
IN_GGUF = {"llama", "mistral", "qwen2", "qwen3", "gemma3_text", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"}
WORKS = {
    "load": set(FAMILIES),
    "evaluate": {name for name in FAMILIES if not name.endswith("seq2seq")},
    "plan": set(FAMILIES),
    "generate": DECODERS,
    "quantize": IN_GGUF,
    "upcycle": DENSE_ONES,
    "split": DENSE_ONES,
}
"""What each verb can do; all else is a sentence."""


@cache
def saved(folder: Path, name: str) -> Path:
    """A model of that family, with weights that all matter."""
    torch.manual_seed(0)
    model = build(FAMILIES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save(folder / name)
    return folder / name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@cache
def made_of(folder: Path, family: str, verb: str) -> object:
    """What the verb makes of that family's model."""
    return VERBS[verb](saved(folder, family), folder / f"{family}-{verb}")


def check_sentence(error: MoekitError, place: Path) -> None:
    """One sentence of at most two lines that names the file, the cause and a way on."""
    message = str(error)
    assert str(place) in message
    without_folder = message.replace(str(place.parent), "")
    assert "\n" not in message
    assert len(without_folder) <= LINES * COLUMNS, without_folder
    assert message.endswith((".", "?"))
    assert re.search(r"[;(] ?[a-z`]", without_folder), "says no way on"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_verb_on_every_family(family: str, verb: str, models: Path, tmp_path: Path) -> None:
    place = saved(models, family)
    assert describe(FAMILIES[family])[1]["model_type"] in (family, "moekit_encoder")
    if family in WORKS[verb]:
        result = made_of(models, family, verb)
        if verb in ("quantize", "upcycle", "split"):
            torch.testing.assert_close(result, made_of(models, family, "load"), rtol=0, atol=1e-4)
    else:
        with pytest.raises(MoekitError) as caught:
            VERBS[verb](place, tmp_path / "out")
        check_sentence(caught.value, place)


Tensors = dict[str, torch.Tensor]


def copied(place: Path, to: Path) -> Path:
    return Path(shutil.copytree(place, to))


def rewritten(place: Path, tensors: Tensors, **settings: object) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / "model.safetensors")
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return place


def renamed(change: Callable[[str], str], place: Path) -> Path:
    tensors = load_file(place / "model.safetensors")
    return rewritten(place, {change(name): tensor for name, tensor in tensors.items()})


def rootless(name: str) -> str:
    return name.removeprefix("transformer.").removeprefix("model.")


def sharded(place: Path) -> Path:
    """Two files and an index, and a tensor that it does not name."""
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held} | {"stale": torch.zeros(3)}, place / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


def packed_experts(place: Path) -> Path:
    """Experts in two tensors a layer, as transformers 5 has them in memory."""
    tensors = load_file(place / "model.safetensors")
    of = re.compile(r"(model\.layers\.\d+)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight")
    found: dict[str, dict[str, Tensors]] = {}
    for name in list(tensors):
        if match := of.fullmatch(name):
            found.setdefault(match[1], {}).setdefault(match[3], {})[match[2]] = tensors.pop(name)
    for layer, matrices in found.items():
        gate, down, up = (
            torch.stack([matrices[key][str(expert)] for expert in range(4)]) for key in ("w1", "w2", "w3")
        )
        tensors[f"{layer}.mlp.experts.gate_up_proj"] = torch.cat([gate, up], 1)
        tensors[f"{layer}.mlp.experts.down_proj"] = down
    return rewritten(place, {name.replace("block_sparse_moe", "mlp"): tensor for name, tensor in tensors.items()})


def mixed_types(place: Path) -> Path:
    """Half of the weights in float16, which holds their numbers here."""
    tensors = load_file(place / "model.safetensors")
    halves = {name: tensor.half() if index % 2 else tensor for index, (name, tensor) in enumerate(tensors.items())}
    return rewritten(place, halves, dtype="float32")


def head_alone(place: Path) -> Path:
    return renamed(
        lambda name: "lm_head.weight" if name.endswith(("wte.weight", "embed_tokens.weight")) else name, place
    )


def in_gguf(kind: str, place: Path) -> Path:
    moekit.quantize(place, place.with_suffix(".gguf"), kind)
    return place.with_suffix(".gguf")


def in_split_gguf(place: Path) -> Path:
    return split_gguf(in_gguf("f32", place))


def split_gguf(path: Path) -> Path:
    """Three files, of which the second is named."""
    whole, place = GGUFFile(path), path.with_suffix("")
    kinds = {block_type.code: block_type for block_type in BLOCK_TYPES}
    names = list(whole.tensors)
    # Numbers alone are read back as they were written.
    metadata: dict[str, Any] = {key: value for key, value in whole.metadata.items() if key != "general.architecture"}
    metadata.pop("tokenizer.ggml.model", None)
    for index in range(3):
        tensors = [
            OutputTensor(
                name=name,
                type=kinds[whole[name].code],
                shape=whole[name].shape,
                make=lambda name=name: iter([whole.bytes_of(name)]),  # type: ignore[misc]
            )
            for name in names[index::3]
        ]
        own = {"split.no": index, "split.count": 3, "split.tensors.count": len(names)}
        file = place.with_name(f"{place.name}-{index + 1:05}-of-00003.gguf")
        architecture = str(whole.metadata["general.architecture"])
        write_gguf(file, architecture, (metadata if index == 0 else {}) | own, tensors)
    return place.with_name(f"{place.name}-00002-of-00003.gguf")


GUISES: dict[str, tuple[tuple[str, ...], Callable[[Path], Path]]] = {
    "names without their root": (("llama", "gpt2", "falcon", "mixtral"), partial(renamed, rootless)),
    "names of a wrapped model": (("llama", "mixtral"), partial(renamed, lambda name: f"module.{name}")),
    "names of a compiled model": (("llama", "gpt2"), partial(renamed, lambda name: f"_orig_mod.{name}")),
    "names of an adapter's base": (("llama",), partial(renamed, lambda name: f"base_model.model.{name}")),
    "names of a text part": (
        ("llama", "mixtral"),
        partial(renamed, lambda name: f"model.language_model.{rootless(name)}"),
    ),
    "several files, with a stale tensor": (("llama", "mixtral", "gpt2"), sharded),
    "packed experts": (("mixtral",), packed_experts),
    "several number types": (("llama", "mixtral", "gpt2"), mixed_types),
    "the head of a tied pair": (("gpt2", "gemma3_text"), head_alone),
    "a GGUF file": (("llama", "qwen2", "gemma3_text", "mixtral", "qwen2_moe"), partial(in_gguf, "f32")),
    "a GGUF file in bf16": (("qwen3", "olmoe"), partial(in_gguf, "bf16")),
    "a GGUF file in q8_0": (("llama", "mixtral"), partial(in_gguf, "q8_0")),
    "several GGUF files": (("llama", "mixtral"), in_split_gguf),
}
ROUNDED = {"several number types": 0.02, "a GGUF file in bf16": 0.05, "a GGUF file in q8_0": 0.2}
"""How far logits are from those of the model as it was, in standard deviations, where the guise rounds weights."""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("guise", "family"), [(guise, family) for guise, (families, _) in GUISES.items() for family in families]
)
def test_every_verb_on_every_guise(guise: str, family: str, verb: str, models: Path, tmp_path: Path) -> None:
    """What a verb makes of a model in a guise is what it makes of the model."""
    plain = saved(models, family)
    place = GUISES[guise][1](copied(plain, tmp_path / family))
    if family not in WORKS[verb]:
        with pytest.raises(MoekitError) as caught:
            VERBS[verb](place, tmp_path / "out")
        check_sentence(caught.value, place)
        return
    found, expected = VERBS[verb](place, tmp_path / "out"), made_of(models, family, verb)
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert (found - expected).abs().max() <= ROUNDED.get(guise, 1e-5) * expected.std()
    else:
        assert found == pytest.approx(expected, rel=ROUNDED.get(guise, 1e-6))


def test_every_guise_that_is_refused_says_so_to_every_verb(models: Path, tmp_path: Path) -> None:
    """Quantised otherwise, incomplete, of no form: one sentence each, from every verb that reads weights."""
    plain = saved(models, "llama")
    tensors = load_file(plain / "model.safetensors")
    words = torch.zeros(4, 4, dtype=torch.int32)
    gptq = {name: tensor for name, tensor in tensors.items() if "proj" not in name} | {
        f"model.layers.0.mlp.up_proj.{end}": words.clone() for end in ("qweight", "qzeros", "g_idx")
    }
    lacking = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}
    places: dict[str, Callable[[Path], object]] = {
        "quantised": lambda place: rewritten(place, gptq),
        "lacking": lambda place: rewritten(place, lacking),
        "without": lambda place: (place / "model.safetensors").unlink(),
        "lost-shard": lambda place: (sharded(place) / "model-00002-of-00002.safetensors").unlink(),
        "gguf-inside": lambda place: (
            [in_gguf("f32", place).rename(place / "model.gguf")]
            + [(place / name).unlink() for name in ("model.safetensors", "config.json")]
        ),
        "adapter": lambda place: [
            (place / "config.json").rename(place / "adapter_config.json"),
            (place / "model.safetensors").rename(place / "adapter_model.safetensors"),
        ],
    }
    for name, change in places.items():
        place = copied(plain, tmp_path / name)
        change(place)
        for verb, run in VERBS.items():
            if verb == "plan" and (place / "config.json").is_file():
                continue
            with pytest.raises(MoekitError) as caught:
                run(place, tmp_path / f"{name}-{verb}")
            check_sentence(caught.value, place)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["nope.gguf", "no/such/folder", "folder-that-is-not-there"])
def test_what_is_not_there_is_said_by_every_verb(
    name: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MoekitError, match=rf"[Tt]here is no (file|folder|preset) '{name}'"):
        VERBS[verb](Path(name), tmp_path / "out")


@pytest.mark.parametrize("verb", VERBS)
def test_a_split_model_that_lacks_a_file_names_it(verb: str, models: Path, tmp_path: Path) -> None:
    place = in_split_gguf(copied(saved(models, "llama"), tmp_path / "llama"))
    tmp_path.joinpath("llama-00003-of-00003.gguf").unlink()
    with pytest.raises(MoekitError, match=r"llama-00003-of-00003\.gguf") as caught:
        VERBS[verb](place, tmp_path / "out")
    check_sentence(caught.value, place)
