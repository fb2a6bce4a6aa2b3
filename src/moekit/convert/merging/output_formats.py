"""The formats that a merge can have: which models each takes, and what config.json says of the result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moekit.config import ModelConfig, MoEConfig, SoftmaxTopKConfig
from moekit.convert.merging.merge_config import PROMPT_MODES, MergeConfig
from moekit.core.errors import MoekitError, did_you_mean
from moekit.families import FAMILIES, Family, describe
from moekit.families.deepseek import AUTO_MAP
from moekit.models.stored_model import StoredModel, dense_of


@dataclass(frozen=True, kw_only=True)
class OutputFormat:
    """A format.

    name: mergekit's, whose beginning `architecture` may ask for. takes: model types of the dense models; None: every
    one, as the first family that can say the result. branch: what a shared expert is there.
    network_order: in which mergekit reads a layer's matrices, which decides who gets which noise; matrix_by_matrix:
    whether it reads all experts' before the next one.
    """

    name: str
    model_type: str
    takes: tuple[str, ...] | None
    shared_experts: tuple[int, int] = (0, 0)
    branch: Literal["shared", "gated_shared"] = "shared"
    network_order: tuple[Literal["gate", "up", "down"], ...] = ("gate", "up", "down")
    matrix_by_matrix: bool = False


MIXTRAL = OutputFormat(
    name="Mixtral",
    model_type="mixtral",
    takes=("llama", "mistral"),
    network_order=("gate", "down", "up"),
)
DEEPSEEK = OutputFormat(
    name="DeepSeek MoE",
    model_type="deepseek",
    takes=("llama", "mistral"),
    shared_experts=(0, 1),
    network_order=("up", "gate", "down"),
    matrix_by_matrix=True,
)
QWEN2_MOE = OutputFormat(
    name="Qwen MoE",
    model_type="qwen2_moe",
    takes=("llama", "mistral", "qwen2"),
    shared_experts=(1, 1),
    branch="gated_shared",
    network_order=("down", "gate", "up"),
    matrix_by_matrix=True,
)
QWEN3_MOE = OutputFormat(name="Qwen3 MoE", model_type="qwen3_moe", takes=("qwen3",))
# Not mergekit's: for models that none of its formats takes, and for whoever asks for it.
ANY = OutputFormat(name="moekit", model_type="moekit_decoder", takes=None, shared_experts=(0, 1))
# In mergekit's order: the first that fits is taken where the file names none.
FORMATS = (MIXTRAL, DEEPSEEK, QWEN2_MOE, QWEN3_MOE, ANY)


@dataclass(frozen=True)
class Output:
    """A format that fits. config: of the result. settings: what config.json says of it. dtype: its numbers, if one."""

    format: OutputFormat
    family: Family
    config: ModelConfig
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the result is called."""
        return self.format.name if self.format is not ANY else f"moekit ({self.family.model_type})"


def choose_output(recipe: MergeConfig, base: StoredModel, dtype: str | None) -> Output:
    """Find the format that the file asks for, or the first that its models and shared experts fit.

    Raises MoekitError naming key and model where there is none, or where it cannot say what the base model does.
    """
    begin = (recipe.architecture or "").lower()
    asked = [one for one in FORMATS if one.name.lower().startswith(begin)]
    if not asked:
        names = [one.name for one in FORMATS]
        raise MoekitError(
            f"architecture: {recipe.architecture!r} begins no output's name; "
            f"{did_you_mean(recipe.architecture or '', names)}"
        )
    if not begin:
        taking = [one for one in asked if one.takes and base.family.model_type in one.takes]
        asked = taking or [ANY]
    refusals = []
    for output in asked:
        reason = _refusal(output, recipe, base)
        if reason is None:
            return _output(output, recipe, base, dtype)
        refusals.append(f"{output.name} {reason}")
    other = "" if _refusal(ANY, recipe, base) else " (architecture: moekit can)"
    where = "architecture" if recipe.architecture else "shared_experts" if recipe.shared_experts else "base_model"
    raise MoekitError(
        f"{where}: nothing can hold {recipe.base_model} with these experts: {'; '.join(refusals)}{other}."
    )


def _refusal(output: OutputFormat, recipe: MergeConfig, base: StoredModel) -> str | None:
    """Say why a format cannot hold the merge."""
    if output.takes and base.family.model_type not in output.takes:
        return f"takes {', '.join(output.takes)} and no {base.family.model_type}"
    least, most = output.shared_experts
    count = len(recipe.shared_experts)
    if not least <= count <= most:
        number = str(least) if least == most else f"{least} to {most}"
        return f"has {number} in shared_experts and not {count}"
    gated = output.branch == "gated_shared"
    if not gated and any(any(expert.prompts) for expert in recipe.shared_experts):
        return "has no gate for a shared expert, so shared_experts must be without prompts"
    if gated and recipe.gate_mode in PROMPT_MODES and not recipe.shared_experts[0].positive_prompts:
        shared = recipe.shared_experts[0].source_model
        return f"needs shared_experts[0].positive_prompts of {shared} for the gate before it"
    return None


def _output(output: OutputFormat, recipe: MergeConfig, base: StoredModel, dtype: str | None) -> Output:
    config = _merged_config(output, recipe, base)
    if output is DEEPSEEK:  # its family's own words are for models with a shared expert alone
        _check_feed_forward_bias(output, recipe, base)
        (family,) = (one for one in FAMILIES[ModelConfig] if one.model_type == output.model_type)
        own = _deepseek(family, recipe, base)
    else:
        family, own = describe(config, None if output is ANY else output.model_type)
        if output is not ANY and family.model_type != output.model_type:
            _check_feed_forward_bias(output, recipe, base)
            biased = any("attention" in name and name.endswith(".bias") for name in base.shapes)
            other = "deepseek" if base.family.model_type in (DEEPSEEK.takes or ()) else "moekit"
            raise MoekitError(
                f"base_model: {recipe.base_model} has {'biases in its attention' if biased else 'settings'} that "
                f"{output.name} cannot hold (architecture: {other} can); they would be lost."
            )
    kept = {key: value for key, value in base.settings.items() if key.endswith("_token_id")}
    types = {} if dtype is None else {"dtype": dtype, "torch_dtype": dtype}
    chosen = {} if output is ANY else {"num_experts_per_tok": recipe.experts_per_token}
    return Output(output, family, config, kept | own | chosen | types)


def _check_feed_forward_bias(output: OutputFormat, recipe: MergeConfig, base: StoredModel) -> None:
    if dense_of(base.config, 0).bias:
        raise MoekitError(
            f"base_model: {recipe.base_model} has biases in its feed-forward networks (mlp_bias), and {output.name} "
            "has none in experts (architecture: moekit has)."
        )


def _merged_config(output: OutputFormat, recipe: MergeConfig, base: StoredModel) -> ModelConfig:
    """Give our configuration of the result."""
    parts = []
    top_k = min(recipe.experts_per_token, len(recipe.experts))  # more is a problem that is told by itself
    for index in range(len(base.config.layers)):
        dense = dense_of(base.config, index)
        parts.append(
            MoEConfig(
                experts=len(recipe.experts),
                expert_width=dense.width,
                router=SoftmaxTopKConfig(top_k=top_k, balance_loss=0.001),
                branch=output.branch if recipe.shared_experts else "none",
                branch_width=dense.width if recipe.shared_experts else 0,
                activation=dense.activation,
                gated=dense.gated,
                bias=dense.bias,
            )
        )
    config = base.config.with_feed_forwards(parts)
    if output is not QWEN2_MOE:
        return config
    # Its readers want biases of queries, keys and values.
    attentions = [layer.attention.model_copy(update={"qkv_bias": True}) for layer in config.layers]
    layers = [
        layer.model_copy(update={"attention": attention})
        for layer, attention in zip(config.layers, attentions, strict=True)
    ]
    return config.model_copy(update={"layers": tuple(layers)})


def _deepseek(family: Family, recipe: MergeConfig, base: StoredModel) -> dict[str, Any]:
    """Give the first DeepSeek MoE's settings (arXiv 2401.06066): the dense model's, and those of experts."""
    attention = base.config.layers[0].attention
    dense = {key: value for key, value in base.settings.items() if key not in ("sliding_window", "torch_dtype")}
    return dense | {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "rope_theta": attention.rope_base,
        "tie_word_embeddings": base.config.tie_embeddings,
        "n_routed_experts": len(recipe.experts),
        "n_shared_experts": len(recipe.shared_experts) or None,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": True,
        "moe_intermediate_size": dense_of(base.config, 0).width,
        "auto_map": AUTO_MAP,
    }
