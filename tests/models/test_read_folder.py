"""One model in many guises: other names, packed otherwise, several number types, quantised by other programs."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import DENSE, MOE, model_config
from tests.convert.dense_models import MODELS
from torch import Tensor

from moekit.config import DenseConfig, EncoderConfig, ModelConfig, MoEConfig, SigmoidBiasConfig
from moekit.core.errors import MoekitError
from moekit.models import Decoder, Encoder, LanguageModel, load
from moekit.models.folder import own_tensors
from moekit.models.stored_model import StoredModel

Tensors = dict[str, Tensor]
TOKENS = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))
DECODERS = {
    "llama": MODELS["llama"],
    "qwen2, tied": MODELS["qwen2"],
    "gpt2": MODELS["gpt2"],
    "gpt_neo": MODELS["gpt_neo"],
    "falcon": MODELS["falcon"],
    "mixtral": model_config((MOE, MOE)),
    "of our own": MODELS["scaled"],
}


def save(folder: Path, config: ModelConfig = MODELS["llama"], dtype: torch.dtype = torch.float32) -> Tensors:
    """A folder with a model of that configuration; gives its tensors."""
    Decoder(config).to(dtype).save(folder)
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, tensors: Mapping[str, Tensor], **settings: object) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def logits(folder: Path, dtype: torch.dtype | None = None) -> Tensor:
    model = load(folder, dtype=dtype)
    assert isinstance(model, Decoder)
    with torch.no_grad():
        return model(TOKENS).float()


def refusal(folder: Path) -> str:
    with pytest.raises(MoekitError) as caught:
        load(folder)
    message = str(caught.value)
    with pytest.raises(MoekitError) as caught:
        StoredModel(folder)
    assert str(caught.value) == message
    assert "\n" not in message
    return message


def without_root(name: str) -> str:
    """A name as the model without its head has it."""
    return name.split(".", 1)[1] if name.startswith(("model.", "transformer.")) else name


GUISES: dict[str, Callable[[str], str]] = {
    "the root is lost": without_root,
    "of several cards": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled layer by layer": lambda name: name.replace("layers.1.", "layers.1._orig_mod.").replace(
        "h.1.", "h.1._orig_mod."
    ),
    "sharded": lambda name: f"_fsdp_wrapped_module.{name}".replace(
        "layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."
    ),
    "of an adapter's program": lambda name: f"base_model.model.{name}",
    "wrapped twice": lambda name: f"module._orig_mod.{name}",
    "the text part of another": lambda name: f"model.language_model.{without_root(name)}",
    "the text part of another, before transformers 4.52": lambda name: f"language_model.{name}",
    "inside a trainer's module": lambda name: f"model.{name}",
}


@pytest.mark.parametrize("guise", GUISES)
@pytest.mark.parametrize("kind", DECODERS)
def test_names_with_a_prefix_more_or_less(kind: str, guise: str, tmp_path: Path) -> None:
    tensors = save(tmp_path / "model", DECODERS[kind])
    expected = logits(tmp_path / "model")
    rewrite(tmp_path / "model", {GUISES[guise](name): tensor for name, tensor in tensors.items()})
    assert torch.equal(logits(tmp_path / "model"), expected)
    stored = StoredModel(tmp_path / "model")
    assert torch.equal(stored.parameter("norm.weight"), own_tensors(load_any(tmp_path / "model"))["norm.weight"])


def load_any(folder: Path, dtype: torch.dtype | None = None) -> LanguageModel:
    model = load(folder, dtype=dtype)
    assert isinstance(model, LanguageModel)
    return model


def test_encoders_without_their_root(tmp_path: Path) -> None:
    dense = DenseConfig(width=48, activation="gelu", gated=False, bias=True)
    config = EncoderConfig(vocab_size=61, width=32, context=24, heads=4, layers=(dense, dense))
    Encoder(config).save(tmp_path / "model")
    expected = own_tensors(load_any(tmp_path / "model"))
    tensors = load_file(tmp_path / "model/model.safetensors")
    rewrite(tmp_path / "model", {name.removeprefix("bert."): tensor for name, tensor in tensors.items()})
    found = own_tensors(load_any(tmp_path / "model"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_leftovers_are_left_out_under_any_name(tmp_path: Path) -> None:
    """Published GPT-2 holds masks, and no root."""
    tensors = save(tmp_path / "model", MODELS["gpt2"])
    expected = logits(tmp_path / "model")
    masks = {f"h.{index}.attn.bias": torch.ones(1, 1, 24, 24).tril() for index in range(2)}
    rewrite(tmp_path / "model", masks | {without_root(name): tensor for name, tensor in tensors.items()})
    assert torch.equal(logits(tmp_path / "model"), expected)
    rewrite(tmp_path / "model", tensors | {"h.0.attn.other": torch.ones(1)})
    assert "unexpected tensor 'h.0.attn.other'" in refusal(tmp_path / "model")


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    tensors = save(tmp_path / "model")
    rewrite(tmp_path / "model", tensors | {"module.model.norm.weight": torch.ones(32)})
    assert "which are one tensor" in refusal(tmp_path / "model")


@pytest.mark.parametrize("kind", ["gpt2", "qwen2, tied"])
def test_the_head_alone_of_a_tied_pair(kind: str, tmp_path: Path) -> None:
    tensors = save(tmp_path / "model", DECODERS[kind])
    expected = logits(tmp_path / "model")
    embedding = next(name for name in tensors if name.endswith(("wte.weight", "embed_tokens.weight")))
    rewrite(tmp_path / "model", {"lm_head.weight" if name == embedding else name: t for name, t in tensors.items()})
    assert torch.equal(logits(tmp_path / "model"), expected)
    assert torch.equal(StoredModel(tmp_path / "model").parameter("embedding.weight"), tensors[embedding])


def test_what_the_index_does_not_name_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = save(tmp_path / "model")
    expected = logits(tmp_path / "model")
    (tmp_path / "model/model.safetensors").rename(tmp_path / "model/model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    save_file(tensors | {"stale": torch.ones(3)}, tmp_path / "model/model-00001-of-00001.safetensors")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(logits(tmp_path / "model"), expected)
    assert "'stale'" in caplog.text


def test_a_whole_file_stands_before_a_stale_index(tmp_path: Path) -> None:
    save(tmp_path / "model")
    expected = logits(tmp_path / "model")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(logits(tmp_path / "model"), expected)


def test_an_incomplete_folder_is_still_called_so(tmp_path: Path) -> None:
    tensors = save(tmp_path / "model")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    rewrite(tmp_path / "model", tensors)
    assert "lacks the tensor 'model.layers.1.mlp.up_proj.weight'" in refusal(tmp_path / "model")


@pytest.mark.parametrize(
    ("named", "computed"), [("bfloat16", torch.bfloat16), ("float32", torch.float32), (None, torch.bfloat16)]
)
@pytest.mark.parametrize("odd", ["lm_head", "norm", "layers.1.mlp", "q_proj.weight"])
def test_several_number_types_become_one(odd: str, named: str | None, computed: torch.dtype, tmp_path: Path) -> None:
    """The type that config.json names, else the one that most weights have."""
    tensors = save(tmp_path / "model", dtype=torch.bfloat16)
    mixed = {name: tensor.float() if odd in name else tensor for name, tensor in tensors.items()}
    rewrite(tmp_path / "model", mixed, dtype=named, torch_dtype=named)
    model = load_any(tmp_path / "model")
    assert {one.dtype for one in model.parameters()} == {computed}
    assert logits(tmp_path / "model").isfinite().all()
    assert {one.dtype for one in load_any(tmp_path / "model", torch.float32).parameters()} == {torch.float32}


def test_a_router_s_balancing_bias_keeps_its_type(tmp_path: Path) -> None:
    """It decides between close scores, and is moved by steps smaller than bfloat16's."""
    sparse = MoEConfig(experts=4, expert_width=24, router=SigmoidBiasConfig(top_k=2))
    model = Decoder(model_config((DENSE, sparse))).bfloat16()
    layer = model.moe_layers[0]
    layer.router.bias_E.data = torch.linspace(0, 1, 4)  # type: ignore[union-attr]
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert isinstance(again, Decoder)
    assert torch.equal(again.moe_layers[0].router.bias_E, torch.linspace(0, 1, 4))  # type: ignore[arg-type]
    assert logits(tmp_path / "model").isfinite().all()


def test_eight_bit_floats_without_scales_are_numbers(tmp_path: Path) -> None:
    tensors = save(tmp_path / "model", dtype=torch.bfloat16)
    rounded = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items() if tensor.dim() > 1}
    rewrite(tmp_path / "model", tensors | {name: tensor.bfloat16() for name, tensor in rounded.items()})
    expected = logits(tmp_path / "model")
    rewrite(tmp_path / "model", tensors | rounded)
    assert torch.equal(logits(tmp_path / "model"), expected)
    # Where config.json speaks of scales, they are missing.
    rewrite(tmp_path / "model", tensors | rounded, quantization_config={"quant_method": "fp8"})
    assert "is quantised" in refusal(tmp_path / "model")


UINT, HALF = torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(4, dtype=torch.float16)
WORDS, LEVELS = torch.zeros(4, 4, dtype=torch.int32), torch.zeros(4, 4, dtype=torch.int8)
FORMS: dict[str, dict[str, Tensor]] = {
    "GPTQ": {"qweight": WORDS, "qzeros": WORDS, "scales": HALF, "g_idx": WORDS},
    "AWQ": {"qweight": WORDS, "qzeros": WORDS, "scales": HALF},
    "bitsandbytes, 4 bits": {
        "weight": UINT, "weight.absmax": HALF, "weight.quant_map": HALF,
        "weight.quant_state.bitsandbytes__nf4": UINT,
    },
    "bitsandbytes, 8 bits": {"weight": LEVELS, "SCB": HALF, "weight_format": UINT},
    "NVFP4": {"weight": UINT, "weight_scale": UINT, "weight_scale_2": HALF, "input_scale": HALF},
    "compressed-tensors": {"weight_packed": WORDS, "weight_scale": HALF, "weight_shape": WORDS},
    "HQQ": {"W_q": UINT, "scale": HALF, "zero": HALF},
    "EETQ": {"weight": LEVELS, "weight_scales": HALF},
    "AQLM": {"codes": WORDS, "codebooks": HALF, "scales": HALF},
    "VPTQ": {"centroids.weight": HALF, "centroids": HALF, "indices": WORDS},
    "HIGGS": {"weight": WORDS, "scales": HALF, "tables": HALF, "tables2": HALF},
    "SpQR": {"dense_weights": WORDS},
    "quanto": {"weight._data": LEVELS, "weight._scale": HALF, "input_scale": HALF, "output_scale": HALF},
    "torchao": {"weight_qdata": LEVELS, "weight_scale": HALF},
    "EXL2": {"q_weight": WORDS, "q_scale": WORDS, "q_invperm": WORDS},
    "EXL3": {"trellis": WORDS, "suh": HALF, "svh": HALF},
    "QuIP#": {"Qidxs": WORDS},
    "Metal": {"weight": WORDS.view(torch.uint32), "scales": HALF, "qbiases": HALF},
    "MLX": {"weight": WORDS.view(torch.uint32), "scales": HALF, "biases": HALF},
    "fp8, int8 or BitNet": {"weight": UINT.view(torch.float8_e4m3fn), "weight_scale": HALF},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_folder_that_is_quantised_otherwise_is_refused_as_quantised(form: str, prefix: str, tmp_path: Path) -> None:
    tensors = save(tmp_path / "model", dtype=torch.float16)
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        stem = name.removesuffix("weight")
        tensors.pop(name)
        tensors |= {f"{prefix}{stem}{end}": tensor.clone() for end, tensor in FORMS[form].items()}
    rewrite(tmp_path / "model", tensors)
    message = refusal(tmp_path / "model")
    assert f"{tmp_path / 'model'} is quantised" in message
    assert form in message
    assert "GGUF" in message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantization_config": {"quant_method": "quark"}}, "quark"),
        ({"quantization_config": {"bits": 4}}, "does not name"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "MLX"),
        ({"compression_config": {"quant_method": "sparseml"}}, "sparseml"),
    ],
)
def test_a_form_that_only_config_json_names(settings: dict[str, object], said: str, tmp_path: Path) -> None:
    tensors = save(tmp_path / "model")
    expected = logits(tmp_path / "model")
    # Left over in a folder that was unpacked since: its tensors are whole.
    rewrite(tmp_path / "model", tensors, **settings)
    assert torch.equal(logits(tmp_path / "model"), expected)
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(tmp_path / "model", tensors | {name: tensors[name].to(torch.int8)})
    message = refusal(tmp_path / "model")
    assert "is quantised" in message
    assert said in message


def test_a_type_of_numbers_that_is_not_known_is_of_a_quantised_folder(tmp_path: Path) -> None:
    save(tmp_path / "model")
    header = json.dumps({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12")
    assert "'F4'" in refusal(tmp_path / "model")
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "nvfp4"}}))
    assert "is quantised (nvfp4)" in refusal(tmp_path / "model")


WIDE = model_config((DenseConfig(width=80),) * 2)


@pytest.mark.parametrize("scale_type", [torch.float32, torch.bfloat16, torch.uint8, torch.float8_e8m0fnu])
@pytest.mark.parametrize("block", [(16, 16), (8, 32), (32, 128), None])
def test_fp8_blocks_are_unpacked_as_transformers_does(
    block: tuple[int, int] | None, scale_type: torch.dtype, tmp_path: Path
) -> None:
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    rule = fp8.Fp8Dequantize(None)
    tensors = save(tmp_path / "model", WIDE)
    expected, quantized = dict(tensors), dict(tensors)
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        rows, columns = tensors[name].shape
        # With a block of all the other tensors' size, the last one is cut short; transformers then wants whole ones.
        size = (rows, columns) if block is None else (min(block[0], rows), min(block[1], columns))
        grid = (1,) if block is None else (-(-rows // size[0]), -(-columns // size[1]))
        scales = torch.rand(grid).add(0.5)
        if scale_type is torch.uint8:
            scales = torch.randint(120, 131, grid, dtype=torch.uint8)
        quantized[name] = tensors[name].to(torch.float8_e4m3fn)
        quantized[f"{name}_scale_inv"] = scales.to(scale_type)
        quantized[f"{name.removesuffix('weight')}activation_scale"] = torch.ones(())
        if rows % size[0] == 0 and columns % size[1] == 0:
            whole = quantized[f"{name}_scale_inv"]
            whole = whole.view(1, 1) if block is None else whole
            expected[name] = rule._dequantize_one(quantized[name], whole, torch.float32)
        else:
            numbers = scales.to(scale_type)
            numbers = (numbers.float() - 127).exp2() if scale_type is torch.uint8 else numbers.float()
            spread = numbers.repeat_interleave(size[0], 0)[:rows].repeat_interleave(size[1], 1)[:, :columns]
            expected[name] = quantized[name].float() * spread
    rewrite(tmp_path / "model", expected)
    wanted = own_tensors(load_any(tmp_path / "model"))
    given = {"quant_method": "fp8", "weight_block_size": None if block is None else list(block)}
    rewrite(tmp_path / "model", quantized, quantization_config=given, dtype="bfloat16")
    found = own_tensors(load_any(tmp_path / "model", torch.float32))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    stored = StoredModel(tmp_path / "model")
    name = "layers.1.feed_forward.down.weight"
    assert torch.equal(stored.rows(name, 3, 7), wanted[name][3:7].bfloat16())
    assert {one.dtype for one in load_any(tmp_path / "model").parameters()} == {torch.bfloat16}


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tensors = save(tmp_path / "model", WIDE)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors |= {name: tensors[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(7, 3)}
    rewrite(tmp_path / "model", tensors)
    assert f"{name}_scale_inv" in refusal(tmp_path / "model")


def test_mxfp4_is_unpacked_as_transformers_does(tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    sparse = MoEConfig(experts=4, expert_width=32, router=MOE.router)
    save(tmp_path / "model", model_config((sparse, sparse)).model_copy(update={"width": 32}))
    model = load_any(tmp_path / "model")
    packed: Tensors = {}
    wanted: Tensors = {}
    for layer in range(2):
        for theirs, ours, rows in (("gate_up_proj", "gate_up_EGD", 64), ("down_proj", "down_EDF", 32)):
            blocks = torch.randint(0, 256, (4, rows, 1, 16), dtype=torch.uint8)
            scales = torch.randint(120, 130, (4, rows, 1), dtype=torch.uint8)
            packed[f"model.layers.{layer}.mlp.experts.{theirs}_blocks"] = blocks
            packed[f"model.layers.{layer}.mlp.experts.{theirs}_scales"] = scales
            # gpt-oss holds its experts the other way round.
            theirs_EDG = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            wanted[f"layers.{layer}.feed_forward.experts.{ours}"] = theirs_EDG.transpose(1, 2)
    others = {
        name.replace("block_sparse_moe", "mlp"): tensor
        for name, tensor in load_file(tmp_path / "model/model.safetensors").items()
        if ".experts." not in name
    }
    rewrite(tmp_path / "model", packed | others)
    found = own_tensors(load_any(tmp_path / "model"))
    assert found.keys() == own_tensors(model).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
