"""Every decoder that transformers has, in the variants that published checkpoints use: logits, folders, decoding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.families.round_trips import check_logits, check_round_trip, save_theirs

from moekit.models import load

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.processor

VOCAB = 61
SHAPE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 8}
DEEPSEEK = {
    "intermediate_size": 40,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "qk_nope_head_dim": 8,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
}
QWEN_MOE = {
    "intermediate_size": 40,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}

GEMMA3 = SHAPE | {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "sliding_window": 5,
    "pad_token_id": None,
}

CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "gpt2-untied": (
        "GPT2",
        {
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 32,
            "n_inner": 48,
            "activation_function": "relu",
            "tie_word_embeddings": False,
        },
    ),
    "gpt-neo": (
        "GPTNeo",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 4,
            "max_position_embeddings": 32,
        },
    ),
    "llama-one-kv-head": ("Llama", SHAPE | {"intermediate_size": 48, "num_key_value_heads": 1}),
    "llama-grouped": ("Llama", SHAPE | {"intermediate_size": 48, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}),
    "llama-all-kv-heads": ("Llama", SHAPE | {"intermediate_size": 48, "num_key_value_heads": 4}),
    "llama-tied-biased": (
        "Llama",
        SHAPE
        | {
            "intermediate_size": 48,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "head_dim": 12,
            "hidden_act": "gelu",
        },
    ),
    "llama-3.1": ("Llama", SHAPE | {"intermediate_size": 48, "num_key_value_heads": 2, "rope_parameters": LLAMA3}),
    "llama-linear": (
        "Llama",
        SHAPE
        | {
            "intermediate_size": 48,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
        },
    ),
    "llama-yarn": ("Llama", SHAPE | {"intermediate_size": 48, "rope_parameters": YARN}),
    "mistral-window": ("Mistral", SHAPE | {"intermediate_size": 48, "num_key_value_heads": 2, "sliding_window": 5}),
    "mistral-no-window": (
        "Mistral",
        SHAPE | {"intermediate_size": 48, "num_key_value_heads": 2, "sliding_window": None},
    ),
    "ministral": (
        "Ministral",
        SHAPE
        | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 5}
        | {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "qwen2": ("Qwen2", SHAPE | {"intermediate_size": 48, "num_key_value_heads": 2}),
    "qwen2-windows": (
        "Qwen2",
        SHAPE
        | {
            "intermediate_size": 48,
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("Qwen3", SHAPE | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 12}),
    "falcon-7b": ("Falcon", SHAPE),
    "falcon-40b": ("Falcon", SHAPE | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        "Falcon",
        SHAPE | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-rw": (
        "Falcon",
        SHAPE | {"multi_query": False, "alibi": True, "parallel_attn": False, "bias": True, "num_attention_heads": 4},
    ),
    "falcon-rw-six-heads": (
        "Falcon",
        SHAPE
        | {"multi_query": False, "alibi": True, "parallel_attn": False, "bias": True}
        | {"hidden_size": 48, "num_attention_heads": 6},
    ),
    "mixtral": (
        "Mixtral",
        SHAPE | {"intermediate_size": 24, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "mixtral-window": (
        "Mixtral",
        SHAPE | {"intermediate_size": 24, "num_key_value_heads": 2, "num_local_experts": 3, "sliding_window": 4},
    ),
    "mixtral-one-expert": (
        "Mixtral",
        SHAPE | {"intermediate_size": 24, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 1},
    ),
    "olmoe": (
        "Olmoe",
        SHAPE | {"intermediate_size": 16, "num_key_value_heads": 4, "num_experts": 8, "num_experts_per_tok": 3},
    ),
    "olmoe-grouped-renormalised": (
        "Olmoe",
        SHAPE
        | {
            "intermediate_size": 16,
            "num_key_value_heads": 2,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
        },
    ),
    "qwen2-moe": ("Qwen2Moe", SHAPE | QWEN_MOE | {"shared_expert_intermediate_size": 24}),
    "qwen2-moe-dense-among": (
        "Qwen2Moe",
        SHAPE
        | QWEN_MOE
        | {"shared_expert_intermediate_size": 24, "num_hidden_layers": 4, "decoder_sparse_step": 2}
        | {"mlp_only_layers": [3], "norm_topk_prob": True},
    ),
    "qwen3-moe": ("Qwen3Moe", SHAPE | QWEN_MOE | {"head_dim": 12, "norm_topk_prob": True}),
    "qwen3-moe-dense-among": ("Qwen3Moe", SHAPE | QWEN_MOE | {"head_dim": 8, "mlp_only_layers": [0]}),
    "deepseek-v3": ("DeepseekV3", SHAPE | DEEPSEEK),
    "deepseek-v3-yarn": (
        "DeepseekV3",
        SHAPE
        | DEEPSEEK
        | {"q_lora_rank": None, "attention_bias": True}
        | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}},
    ),
    # Six layers, of which the last sees everything; its window is shorter than what is read.
    "gemma3": ("Gemma3Text", GEMMA3 | {"num_hidden_layers": 6, "query_pre_attn_scalar": 8}),
    "gemma3-every-second": (
        "Gemma3Text",
        GEMMA3
        | {
            "num_hidden_layers": 5,
            "layer_types": ["full_attention", "sliding_attention", "full_attention", *["sliding_attention"] * 2],
            "query_pre_attn_scalar": 21,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
            },
        },
    ),
}


def build_theirs(case: str) -> Any:
    name, settings = CASES[case]
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**settings)
    # Not "eager": Falcon's eager path adds ALiBi twice, once of its own and once in the mask (transformers 5.23).
    return getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config)


def mean_of_vectors(case: str) -> float:
    return 0.0 if CASES[case][0] == "Gemma3Text" else 0.5


@pytest.mark.parametrize("case", CASES)
def test_parity_and_folders(case: str, tmp_path: Path) -> None:
    theirs = build_theirs(case)
    folder = save_theirs(theirs, tmp_path / "theirs", mean_of_vectors=mean_of_vectors(case))
    tokens_BT = torch.randint(0, VOCAB, (3, 20))
    with torch.no_grad():
        expected = theirs(tokens_BT).logits
    # Without a window a Mistral is a Llama, and is saved as one where no folder says otherwise.
    alone = transformers.LlamaForCausalLM if case == "mistral-no-window" else type(theirs)
    check_round_trip(theirs, folder, lambda model: model(tokens_BT), expected, alone)


@pytest.mark.parametrize("case", CASES)
def test_step_by_step_and_padding(case: str, tmp_path: Path) -> None:
    """Decoding with a cache, and sequences padded at their end, give the logits of each sequence alone."""
    model = load(save_theirs(build_theirs(case), tmp_path / "theirs", mean_of_vectors=mean_of_vectors(case)))
    tokens_BT = torch.randint(0, VOCAB, (2, 12))
    with torch.no_grad():
        whole = model(tokens_BT)
        caches = model.new_caches(2)
        parts = [model(tokens_BT[:, begin:end], caches=caches) for begin, end in ((0, 5), (5, 6), (6, 9), (9, 12))]
        check_logits(whole, torch.cat(parts, 1))
        real_BT = torch.arange(12) < torch.tensor([[12], [7]])
        padded = model(tokens_BT.masked_fill(~real_BT, 0), real_BT=real_BT)
        check_logits(whole[0], padded[0])
        check_logits(model(tokens_BT[1:, :7])[0], padded[1, :7])


@pytest.mark.parametrize("case", ["llama-grouped", "mixtral"])
def test_shards_and_half_precision(case: str, tmp_path: Path) -> None:
    theirs = build_theirs(case).bfloat16()
    folder = save_theirs(theirs, tmp_path / "theirs", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = load(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    tokens_BT = torch.randint(0, VOCAB, (2, 9))
    with torch.no_grad():
        expected, got = theirs(tokens_BT).logits.float(), model(tokens_BT).float()
        assert (expected - got).norm() <= 0.03 * expected.norm()
        exact = type(theirs).from_pretrained(folder, dtype=torch.float32)
        check_logits(exact(tokens_BT).logits, load(folder, dtype=torch.float32)(tokens_BT))
