"""The README.md that is written with a merged model: plain facts."""

import json
from collections.abc import Sequence

from moekit.convert.merging.merged_model import MergedModel
from moekit.convert.merging.routing_report import RoutingReport, TextRouting
from moekit.core.version import __version__


def model_card(merged: MergedModel, title: str, command: str, report: RoutingReport | None, trained: str | None) -> str:
    """Write the text. command: what wrote the model. trained: what is to be said of the training of its routers."""
    config = merged.recipe
    models = [config.base_model, *(expert.source_model for expert in config.all_experts)]
    names = sorted({reference.model for reference in models})
    lines = [
        "---",
        "library_name: transformers",
        "tags: [moe, merge, moekit]",
        # JSON's texts are YAML's, whatever is in them.
        f"base_model: {json.dumps(names)}",
        "---",
        f"# {title}",
        "",
        f"A {merged.output.name} of {len(config.experts)} experts, {config.experts_per_token} of them for each token, "
        f"merged by moekit {__version__} from dense models. Nothing was evaluated beyond what stands here.",
        "",
        f"- Everything but the experts: {_backbone(merged)}",
        f"- Gates: `{config.gate_mode}`, seed {merged.seed}{f'; {trained}' if trained else ''}",
        f"- Numbers: {_dtype(merged)}",
        f"- Command: `{command}`" if command else "- Written from Python",
        "",
        "| expert | model | prompts | against | noise | residual scale |",
        "|---|---|---|---|---|---|",
    ]
    for index, expert in enumerate(config.all_experts):
        name = str(index) if index < len(config.experts) else "shared"
        counts = f"{len(expert.positive_prompts)} | {len(expert.negative_prompts)}"
        scale = 1 if expert.residual_scale is None else expert.residual_scale
        lines.append(f"| {name} | `{expert.source_model}` | {counts} | {expert.noise_scale or 0} | {scale} |")
    return "\n".join([*lines, "", *_routing(report)]) + "\n"


def _backbone(merged: MergedModel) -> str:
    if merged.recipe.backbone == "average":
        return "the mean of the experts' models"
    return f"`{merged.recipe.base_model}`"


def _dtype(merged: MergedModel) -> str:
    return str(merged.dtype_of_all).removeprefix("torch.") if merged.dtype_of_all else "as the models store them"


def _routing(report: RoutingReport | None) -> list[str]:
    if report is None:
        return ["No text was routed: gates were drawn, there are no prompts, or no report was asked for."]
    lines = [
        "## Where texts go",
        "",
        "The share of tokens that each expert comes first for, mean over layers; all layers are in `report.json`.",
        "",
        f"| text | {' | '.join(f'expert {index}' for index in range(len(report.experts)))} |",
        "|---" * (len(report.experts) + 1) + "|",
    ]
    groups = list(dict.fromkeys(text.group for text in report.texts))
    for group in groups:
        shares = _mean([text for text in report.texts if text.group == group])
        lines.append(f"| {group} | {' | '.join(f'{share:.0%}' for share in shares)} |")
    if report.accuracy is not None:
        layers = ", ".join(f"{value:.0%}" for value in report.accuracy)
        lines += ["", f"Tokens of prompts whose first expert is the one they are for, layer by layer: {layers}."]
    return lines


def _mean(texts: Sequence[TextRouting]) -> list[float]:
    """Give each expert's share of all tokens of these texts, mean over layers."""
    tokens = sum(text.tokens for text in texts) or 1
    experts = len(texts[0].top_1[0])
    return [
        sum(text.tokens * sum(layer[expert] for layer in text.top_1) / len(text.top_1) for text in texts) / tokens
        for expert in range(experts)
    ]
