"""The formats that a merge can have: which models each takes, how it names experts, what its config.json says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moekit.checkpoint.layout import Stored
from moekit.config import ModelConfig, MoEConfig, SoftmaxTopKConfig
from moekit.convert.merging.merge_config import PROMPT_MODES, MergeConfig
from moekit.convert.merging.source_models import NETWORK, Source
from moekit.core.errors import MoekitError, did_you_mean
from moekit.families import FAMILIES, describe
from moekit.families.deepseek import AUTO_MAP

# As older readers have them in each layer; transformers 5 keeps all experts of a layer in two tensors.
FUSED_GATE_UP, FUSED_DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
_PLAIN = {part: part for part in NETWORK}


@dataclass(frozen=True, kw_only=True)
class Output:
    """A format.

    name: mergekit's, whose beginning `architecture` may ask for. takes: model types of the dense models.
    router, shared_gate, experts, shared: where they stand in a layer. parts: an expert's matrices by their dense name.
    fused: whether there is a reader of experts in two tensors, and what the router is called then.
    network_order: in which mergekit reads a layer's matrices, and whether all experts' before the next one.
    """

    name: str
    model_type: str
    architecture: str
    takes: tuple[str, ...]
    shared_experts: tuple[int, int] = (0, 0)
    router: str = "mlp.gate.weight"
    experts: str = "mlp.experts"
    parts: Mapping[str, str]
    shared: str = ""
    shared_gate: str | None = None
    fused: bool = True
    network_order: tuple[str, ...]
    matrix_by_matrix: bool = False

    def expert(self, layer: int, expert: int, part: str) -> str:
        """The name of an expert's matrix."""
        return f"model.layers.{layer}.{self.experts}.{expert}.{self.parts[part]}.weight"

    def of_shared(self, layer: int, part: str) -> str:
        """The name of the shared expert's matrix."""
        return f"model.layers.{layer}.{self.shared}.{part}.weight"

    def of_router(self, layer: int, *, fused: bool = False) -> str:
        """The name of the router's matrix."""
        return f"model.layers.{layer}.{'mlp.gate.weight' if fused else self.router}"


MIXTRAL = Output(
    name="Mixtral",
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    takes=("llama", "mistral"),
    router="block_sparse_moe.gate.weight",
    experts="block_sparse_moe.experts",
    parts={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    network_order=("gate_proj", "down_proj", "up_proj"),
)
DEEPSEEK = Output(
    name="DeepSeek MoE",
    model_type="deepseek",
    architecture="DeepseekForCausalLM",
    takes=("llama", "mistral"),
    shared_experts=(0, 1),
    parts=_PLAIN,
    shared="mlp.shared_experts",
    fused=False,
    network_order=("up_proj", "gate_proj", "down_proj"),
    matrix_by_matrix=True,
)
QWEN2_MOE = Output(
    name="Qwen MoE",
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    takes=("llama", "mistral", "qwen2"),
    shared_experts=(1, 1),
    parts=_PLAIN,
    shared="mlp.shared_expert",
    shared_gate="mlp.shared_expert_gate.weight",
    network_order=("down_proj", "gate_proj", "up_proj"),
    matrix_by_matrix=True,
)
QWEN3_MOE = Output(
    name="Qwen3 MoE",
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    takes=("qwen3",),
    parts=_PLAIN,
    network_order=("gate_proj", "up_proj", "down_proj"),
)
# In mergekit's order: the first that fits is taken where the file names none.
OUTPUTS = (MIXTRAL, DEEPSEEK, QWEN2_MOE, QWEN3_MOE)


def choose_output(config: MergeConfig, base: Source) -> Output:
    """The format that the file asks for, or the first that its models and shared experts fit.

    Raises MoekitError naming key and model where there is none.
    """
    asked = [one for one in OUTPUTS if one.name.lower().startswith((config.architecture or "").lower())]
    if not asked:
        names = [output.name for output in OUTPUTS]
        raise MoekitError(
            f"architecture: {config.architecture!r} begins no output's name; "
            f"{did_you_mean(config.architecture or '', names)}"
        )
    refusals = []
    for output in asked:
        reason = _refusal(output, config, base)
        if reason is None:
            return output
        refusals.append(f"{output.name} {reason}")
    where = "architecture" if config.architecture else "shared_experts" if config.shared_experts else "base_model"
    raise MoekitError(f"{where}: nothing can hold {base.reference} with these experts: {'; '.join(refusals)}.")


def _refusal(output: Output, config: MergeConfig, base: Source) -> str | None:
    """Why a format cannot hold the merge."""
    if base.family.model_type not in output.takes:
        return f"takes {', '.join(output.takes)} and no {base.family.model_type}"
    least, most = output.shared_experts
    count = len(config.shared_experts)
    if not least <= count <= most:
        number = str(least) if least == most else f"{least} to {most}"
        return f"has {number} in shared_experts and not {count}"
    if output is DEEPSEEK and any(any(expert.prompts) for expert in config.shared_experts):
        return "has no gate for a shared expert, so shared_experts must be without prompts"
    if output.shared_gate and config.gate_mode in PROMPT_MODES and not config.shared_experts[0].positive_prompts:
        shared = config.shared_experts[0].source_model
        return f"needs shared_experts[0].positive_prompts of {shared} for the gate before it"
    return None


def merged_config(output: Output, config: MergeConfig, base: Source) -> ModelConfig:
    """Our configuration of the result."""
    width = base.layer.width
    branch: Literal["none", "shared", "gated_shared"] = "none"
    if config.shared_experts:
        branch = "gated_shared" if output.shared_gate else "shared"
    layer = MoEConfig(
        experts=len(config.experts),
        expert_width=width,
        router=SoftmaxTopKConfig(top_k=config.experts_per_token, balance_loss=0.001),
        branch=branch,
        branch_width=width if config.shared_experts else 0,
        activation=base.layer.activation,
    )
    update: dict[str, Any] = {"feed_forward": layer}
    if output is QWEN2_MOE:  # its readers want biases of queries, keys and values
        update["attention"] = base.attention.model_copy(update={"qkv_bias": True})
    layers = tuple(one.model_copy(update=update) for one in base.config.layers)
    return base.config.model_copy(update={"layers": layers})


def merged_settings(output: Output, config: MergeConfig, base: Source, dtype: str | None) -> dict[str, Any]:
    """config.json of the result; raises MoekitError where the format cannot say what the base model does."""
    kept = {key: value for key, value in base.settings.values.items() if key.endswith("_token_id")}
    own = _deepseek(config, base) if output is DEEPSEEK else _described(output, config, base)
    types = {} if dtype is None else {"dtype": dtype, "torch_dtype": dtype}
    return kept | own | {"num_experts_per_tok": config.experts_per_token} | types


def _described(output: Output, config: MergeConfig, base: Source) -> dict[str, Any]:
    _, settings = describe(merged_config(output, config, base), output.model_type)
    if settings["model_type"] != output.model_type:
        what = "biases in its attention" if base.attention.qkv_bias or base.attention.output_bias else "the settings"
        instead = " (architecture: deepseek can)" if base.family.model_type in DEEPSEEK.takes else ""
        raise MoekitError(
            f"base_model: {base.reference} has {what} that {output.name} cannot hold{instead}; they would be lost."
        )
    return settings


def _deepseek(config: MergeConfig, base: Source) -> dict[str, Any]:
    """The first DeepSeek MoE's settings (arXiv 2401.06066): the dense model's, and those of experts."""
    dense = {key: value for key, value in base.settings.values.items() if key not in ("sliding_window", "torch_dtype")}
    return dense | {
        "architectures": [DEEPSEEK.architecture],
        "model_type": DEEPSEEK.model_type,
        "rope_theta": base.attention.rope_base,
        "n_routed_experts": len(config.experts),
        "n_shared_experts": len(config.shared_experts) or None,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": True,
        "moe_intermediate_size": base.layer.width,
        "auto_map": AUTO_MAP,
    }


def merged_layout(output: Output, config: ModelConfig) -> list[Stored]:
    """The stored tensors of a result with separate experts."""
    (family,) = (one for one in FAMILIES[ModelConfig] if one.model_type == output.model_type)
    assert family.layout is not None
    return list(family.layout(config))


def noise_order(
    output: Output, layers: int, experts: Sequence[int], shared: Sequence[int]
) -> Iterator[tuple[int, int, str]]:
    """(layer, expert, part) in the order in which mergekit 0.1.5 reads them, which decides who gets which noise."""
    for layer in range(layers):
        if output.matrix_by_matrix:
            yield from ((layer, expert, part) for part in output.network_order for expert in (*experts, *shared))
        else:
            yield from ((layer, expert, part) for expert in experts for part in output.network_order)
