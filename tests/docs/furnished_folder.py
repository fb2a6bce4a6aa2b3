"""A folder with what the examples of the documentation name: models, text, configurations, all tiny."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from moekit.config import AttentionConfig, DenseConfig, ModelConfig
from moekit.data import embedded
from moekit.models import Decoder

ROOT = Path(__file__).parents[2]
# Of the embedded corpus; examples do with less of it what they do with all.
EVERY_FILE, ARITHMETIC_LINES = 20, 200
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "
JOB = """\
model: {kind: lstm, vocab_size: 256, embedding_width: 16, widths: [16]}
data: [essays]
training: {steps: 4, sequences: 4, context: 32}
"""
MERGE = """\
base_model: ./base
gate_mode: router_input
experts:
  - source_model: ./code
    positive_prompts: ["def f(x):", "import os"]
  - source_model: ./prose
    positive_prompts: ["Once upon a time", "The weather"]
"""
AGENTS = """\
members:
  here: {path: ./my-model, max_tokens: 4}
"""


def thin_out_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a twentieth of the embedded corpus, whose reading is most of what an example takes."""
    files = embedded._files
    monkeypatch.setattr(embedded, "_files", lambda root, suffix: islice(files(root, suffix), 0, None, EVERY_FILE))
    monkeypatch.setattr(embedded, "_ARITHMETIC_LINES", ARITHMETIC_LINES)


def furnish(folder: Path) -> None:
    """Write small dense models that differ, text, results of a comparison, and the YAML files of verbs."""
    attention = AttentionConfig(heads=2, kv_heads=1, head_width=32)
    layers = (DenseConfig(width=64), DenseConfig(width=64))
    dense = Decoder(ModelConfig(vocab_size=256, width=64, context=128, attention=attention, layers=layers)).eval()
    for seed, name in enumerate(("my-model", "llama", "base", "code", "prose")):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in dense.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        dense.save(folder / name)
    (folder / "my-model" / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (folder / "essays").mkdir()
    for page in sorted((ROOT / "docs").glob("*.md")):
        (folder / "essays" / page.name).write_bytes(page.read_bytes())
    (folder / "notes.txt").write_bytes((folder / "essays" / "routers.md").read_bytes())
    results = next((ROOT / "benchmarks" / "results").glob("*-compare-tuned.json"))
    (folder / "results.json").write_bytes(results.read_bytes())
    (folder / "experts.yaml").write_text(MERGE, encoding="utf-8")
    (folder / "mine.yaml").write_text(JOB, encoding="utf-8")
    (folder / "agents.yaml").write_text(AGENTS, encoding="utf-8")
