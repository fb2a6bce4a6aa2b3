"""The first DeepSeek-MoE, which transformers has not: its Llama with loops for sparse layers is the oracle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.convert.merging.merge_recipes import CASES as MERGES
from tests.convert.merging.merge_recipes import case_recipe, make_models, planned
from tests.convert.merging.merge_recipes import write as write_merged
from tests.families.round_trips import check_logits, stored_tensors
from torch import Tensor, nn

from moekit.config import (
    AttentionConfig,
    DenseConfig,
    FeedForwardConfig,
    Llama3Scaling,
    ModelConfig,
    MoEConfig,
    SoftmaxTopKConfig,
)
from moekit.core.errors import MoekitError
from moekit.families import describe
from moekit.models import LanguageModel, load

transformers = pytest.importorskip("transformers")

VOCAB, LAYERS = 61, 4
PUBLISHED: dict[str, Any] = {
    "architectures": ["DeepseekForCausalLM"],
    "model_type": "deepseek",
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "moe_intermediate_size": 12,
    "moe_layer_freq": 1,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": VOCAB,
}
"""The keys of the published config.json, with small numbers."""

CASES: dict[str, dict[str, Any]] = {
    "published": {},
    "renormalised": {"norm_topk_prob": True, "num_key_value_heads": 2, "rope_theta": 500.0},
    "every-second": {"moe_layer_freq": 2, "attention_bias": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "all-sparse": {"first_k_dense_replace": 0, "n_shared_experts": 1, "tie_word_embeddings": True},
    "none-shared": {"n_shared_experts": None, "num_experts_per_tok": 1},
}


class Network(nn.Module):
    """FFN(u), of any number of experts one after the other."""

    def __init__(self, width: int, hidden: int, parts: int = 1) -> None:
        super().__init__()
        self.parts = parts
        self.gate_proj = nn.Linear(width, parts * hidden, bias=False)
        self.up_proj = nn.Linear(width, parts * hidden, bias=False)
        self.down_proj = nn.Linear(parts * hidden, width, bias=False)

    def of_expert(self, expert: int, u_D: Tensor) -> Tensor:
        gate_FD = self.gate_proj.weight.chunk(self.parts)[expert]
        up_FD = self.up_proj.weight.chunk(self.parts)[expert]
        gate_F = gate_FD @ u_D
        return self.down_proj.weight.chunk(self.parts, 1)[expert] @ (gate_F * gate_F.sigmoid() * (up_FD @ u_D))


class Mixture(nn.Module):
    """h = sum over shared FFN_i(u) + sum over routed g_i FFN_i(u) (arXiv 2401.06066, eq. 9 to 11), token by token."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width, hidden = settings["hidden_size"], settings["moe_intermediate_size"]
        self.k, self.renormalize = settings["num_experts_per_tok"], settings["norm_topk_prob"]
        self.gate = nn.Linear(width, settings["n_routed_experts"], bias=False)
        self.experts = nn.ModuleList(Network(width, hidden) for _ in range(settings["n_routed_experts"]))
        self.shared = settings["n_shared_experts"] or 0
        if self.shared:
            self.shared_experts = Network(width, hidden, self.shared)

    def forward(self, u_BTD: Tensor) -> Tensor:
        return torch.stack([self.of_token(u_D) for u_D in u_BTD.flatten(0, 1)]).view_as(u_BTD)

    def of_token(self, u_D: Tensor) -> Tensor:
        power_E = (self.gate.weight @ u_D).exp()
        score_E = (power_E / power_E.sum()).tolist()
        chosen = sorted(range(len(score_E)), key=lambda i: -score_E[i])[: self.k]
        total = sum(score_E[i] for i in chosen) if self.renormalize else 1.0
        h_D = torch.zeros_like(u_D)
        for i in range(self.shared):
            h_D = h_D + self.shared_experts.of_expert(i, u_D)
        for i in chosen:
            h_D = h_D + score_E[i] / total * self.experts[i].of_expert(0, u_D)
        return h_D


def oracle(settings: dict[str, Any]) -> Any:
    """An independent model, its tensors named as in the folder."""
    scaling = settings.get("rope_scaling") or {"type": "default"}
    rope = {"rope_theta": float(settings["rope_theta"]), "rope_type": scaling["type"]}
    config = transformers.LlamaConfig(
        **{
            key: settings[key]
            for key in PUBLISHED.keys() & transformers.LlamaConfig().to_dict().keys() & settings.keys()
        }
        | {"architectures": None, "model_type": "llama"}
        | {"rope_parameters": rope | ({"factor": scaling["factor"]} if "factor" in scaling else {})}
    )
    model = transformers.LlamaForCausalLM(config)
    for index, layer in enumerate(model.model.layers):
        if index >= settings["first_k_dense_replace"] and index % settings["moe_layer_freq"] == 0:
            layer.mlp = Mixture(settings)
    return model.eval()


def expected_logits(folder: Path, tokens_BT: Tensor) -> Tensor:
    model = oracle(json.loads((folder / "config.json").read_text()))
    tensors = stored_tensors(folder)
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    with torch.no_grad():
        return model(tokens_BT).logits  # type: ignore[no-any-return]


def make_folder(folder: Path, case: str) -> Path:
    settings = PUBLISHED | CASES[case]
    model = oracle(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.5 if parameter.dim() == 1 else 0.0))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if settings["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def loaded(folder: Path) -> LanguageModel:
    model = load(folder)
    assert isinstance(model, LanguageModel)
    return model


def check_parity(folder: Path, model: LanguageModel, vocab: int) -> None:
    tokens_BT = torch.randint(0, vocab, (2, 9))
    with torch.no_grad():
        check_logits(expected_logits(folder, tokens_BT), model(tokens_BT))


@pytest.mark.parametrize("case", CASES)
def test_parity_and_folders(case: str, tmp_path: Path) -> None:
    """And back: the same names and bits, and settings that lead to the same model from the configuration alone."""
    folder = make_folder(tmp_path / "theirs", case)
    ours = loaded(folder)
    check_parity(folder, ours, VOCAB)
    ours.save(tmp_path / "again")
    settings, kept = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "again"))
    assert {key: kept.get(key) for key in settings} == settings | {"torch_dtype": "float32"}
    before, after = stored_tensors(folder), stored_tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    ours.origin = None
    ours.save(tmp_path / "alone")
    assert loaded(tmp_path / "alone").config == ours.config
    if case != "none-shared":
        check_parity(tmp_path / "alone", ours, VOCAB)


@pytest.mark.parametrize("case", ["deepseek", "deepseek-shared"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_what_a_merge_writes(case: str, top_k: int, tmp_path: Path) -> None:
    kind, settings, _ = MERGES[case]
    folder = make_models(tmp_path, kind, **settings)
    merge = planned(folder, case_recipe(folder, case, gate_mode="random", experts_per_token=top_k))
    out = tmp_path / "out"
    write_merged(merge, out)
    model = loaded(out)
    assert model.config == merge.config
    check_parity(out, model, 259)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ({"moe_layer_freq": 0}, "moe_layer_freq is 0"),
        ({"n_routed_experts": None}, "n_routed_experts is missing"),
        ({"num_experts_per_tok": 7}, "7 experts per token are more than the 6 experts"),
    ],
)
def test_settings_that_are_not_supported(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "theirs", "published")
    (folder / "config.json").write_text(json.dumps(PUBLISHED | changes))
    with pytest.raises(MoekitError, match=r"config\.json") as caught:
        load(folder)
    assert named in str(caught.value)


DENSE = DenseConfig(width=40)
SPARSE = MoEConfig(
    experts=6,
    expert_width=12,
    router=SoftmaxTopKConfig(top_k=2, renormalize=False),
    branch="shared",
    branch_width=24,
)
HEADS = AttentionConfig(heads=4, kv_heads=2, head_width=8)


def config(layers: tuple[FeedForwardConfig, ...], attention: AttentionConfig = HEADS) -> ModelConfig:
    return ModelConfig(vocab_size=VOCAB, width=32, context=64, attention=attention, layers=layers)


@pytest.mark.parametrize(
    ("layers", "places"),
    [
        ((SPARSE, SPARSE, SPARSE), (0, 1)),
        ((DENSE, DENSE, SPARSE), (2, 1)),
        ((SPARSE, DENSE, SPARSE), (0, 2)),
        ((DENSE, DENSE, SPARSE, DENSE, SPARSE), (2, 2)),
        ((DENSE, DENSE, DENSE, SPARSE, DENSE, DENSE), (3, 3)),
    ],
)
def test_where_sparse_layers_stand(layers: tuple[FeedForwardConfig, ...], places: tuple[int, int]) -> None:
    family, settings = describe(config(layers))
    assert family.model_type == "deepseek"
    assert (settings["first_k_dense_replace"], settings["moe_layer_freq"]) == places


@pytest.mark.parametrize(
    "unsayable",
    [
        config((DENSE, SPARSE, DENSE, SPARSE)),
        config((SPARSE, DENSE, DENSE, SPARSE, SPARSE)),
        config((DENSE, DenseConfig(width=48), SPARSE)),
        config((DenseConfig(width=40, bias=True), SPARSE)),
        config((SPARSE.model_copy(update={"branch_width": 20}),)),
        config((SPARSE,), HEADS.model_copy(update={"head_width": 12})),
        config((SPARSE,), HEADS.model_copy(update={"qkv_bias": True})),
        config((SPARSE,), HEADS.model_copy(update={"window": 8})),
        config((SPARSE,), HEADS.model_copy(update={"query_key_norm": "head"})),
        config((SPARSE,), HEADS.model_copy(update={"rope_scaling": Llama3Scaling(factor=8.0, context=16)})),
    ],
)
def test_what_it_cannot_say(unsayable: ModelConfig) -> None:
    family, _ = describe(unsayable, "deepseek")
    assert family.model_type != "deepseek"
