"""Configurations refuse what cannot be, and say so in words a user understands."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from moekit.config import AttentionConfig, DenseConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig
from moekit.core.errors import UsageError
from moekit.core.validation import read_yaml, validate


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError):
        DenseConfig(width=8).width = 9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"kind": "moe", "experts": 4, "expert_width": 8, "router": {"top_k": 5}},
            "5 experts per token are more",
        ),
        ({"kind": "moe", "experts": 4, "expert_width": 8, "router": {"top_k": 2}, "branch": "shared"}, "go together"),
        (
            {"kind": "moe", "experts": 4, "expert_width": 8, "router": {"topk": 2}},
            "router.topk: there is no such key; did you mean 'top_k'?",
        ),
        ({"kind": "moe", "expert": 4, "expert_width": 8, "router": {"top_k": 2}}, "did you mean 'experts'?"),
        ({"kind": "moe", "experts": 0, "expert_width": 8, "router": {"top_k": 2}}, "experts: must be more than 0"),
        ([1], "must be keys and values"),
    ],
)
def test_a_bad_layer_is_one_sentence(data: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate(MoEConfig, data, where="mine.yaml")
    text = str(caught.value)
    assert words in text
    assert text.startswith("mine.yaml: ")
    assert "\n" not in text


def test_heads_must_share_evenly() -> None:
    with pytest.raises(ValidationError, match="multiple of kv_heads"):
        AttentionConfig(heads=6, kv_heads=4, head_width=8)
    with pytest.raises(ValidationError, match="must be even"):
        AttentionConfig(heads=2, kv_heads=2, head_width=7)


def test_renormalised_top_1_never_learns() -> None:
    assert "never learns" in (SoftmaxTopKConfig(top_k=1).never_learns or "")
    assert SoftmaxTopKConfig(top_k=1, renormalize=False).never_learns is None


def test_help_and_configuration_need_no_torch() -> None:
    modules = "moekit.cli, moekit.comparison.spec.contestants, moekit.counting"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_kind_is_told_with_the_nearest_one() -> None:
    layer = {"kind": "mow", "experts": 4, "expert_width": 8, "router": {"kind": "softmax_top_k", "top_k": 1}}
    attention = {"heads": 2, "kv_heads": 2, "head_width": 4}
    data = {"vocab_size": 8, "width": 8, "context": 8, "attention": attention, "layers": [layer]}
    with pytest.raises(UsageError, match=r"layers\[0\].*there is no kind 'mow'; did you mean 'moe'\?"):
        validate(ModelConfig, data, where="x.yaml")


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^Cannot read .*/none\.yaml: No such file or directory\.$"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(UsageError, match=r"^Cannot read .*/latin\.yaml: it is not text in UTF-8\.$"):
        read_yaml(tmp_path / "latin.yaml")
