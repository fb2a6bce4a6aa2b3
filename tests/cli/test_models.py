"""`plan`, `train` and `evaluate` as a user runs them, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TINY = "{kind: lstm, vocab_size: 256, embedding_width: 16, widths: [16]}"
JOBS = {
    "decoder": "{kind: decoder, vocab_size: 256, width: 16, context: 32, attention: {heads: 2, kv_heads: 1, "
    "head_width: 8}, layers: [{kind: moe, experts: 4, expert_width: 16, router: {top_k: 2}}]}",
    "lstm": TINY,
    "encoder": "{kind: encoder, vocab_size: 260, width: 16, context: 32, heads: 2, layers: [{kind: dense, width: 16}], "
    "pad_token: 256, start_token: 257, separator_token: 258, mask_token: 259}",
    "xlnet": "{kind: xlnet, vocab_size: 256, width: 16, heads: 2, layers: [{kind: dense, width: 16}]}",
    "encoder_decoder": "{kind: encoder_decoder, vocab_size: 300, width: 16, heads: 2, head_width: 8, "
    "encoder_layers: [{kind: dense, width: 16}], decoder_layers: [{kind: moe, experts: 2, expert_width: 8, "
    "router: {kind: switch}}]}",
}


def moekit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from moekit.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Two files, so that one can be held out."""
    folder = tmp_path / "text"
    folder.mkdir()
    for name, word in (("a", "sun"), ("b", "moon"), ("c", "star")):
        (folder / f"{name}.txt").write_text("".join(f"The {word} number {n} shines.\n" for n in range(150)))
    return folder


def job(
    tmp_path: Path, model: str, text: Path, training: str = "{steps: 4, sequences: 4, context: 32, measure: 2}"
) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(f"model: {model}\ndata: [{text}]\ntraining: {training}\n")
    return file


def test_plan_of_a_preset() -> None:
    done = moekit("plan", "mixtral-8x7b", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["params_total"] == sum(plan["params_by_part"].values()) == 46_702_792_704
    assert round(plan["params_active"] / 1e9, 1) == 12.9
    assert plan["active_share"] == pytest.approx(0.2758, abs=1e-4)
    assert plan["weight_bytes"]["bfloat16"] == 2 * plan["params_total"]
    assert plan["kv_cache_bytes_per_token"] == 2 * 2 * 8 * 128 * 32


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("plan", "mixtral-8x7"), 2, "did you mean 'mixtral-8x7b'"),
        (("plan",), 2, "Name a model"),
        (("evaluate", "nowhere"), 2, "There is no folder 'nowhere'"),
        (("evaluate", "nothing.arpa"), 2, "There is no file 'nothing.arpa'"),
        (("train", "nothing.yaml"), 2, "Cannot read nothing.yaml"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments: tuple[str, ...], status: int, said: str) -> None:
    done = moekit(*arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", JOBS)
def test_train_then_evaluate(kind: str, tmp_path: Path, text: Path) -> None:
    done = moekit("train", str(job(tmp_path, JOBS[kind], text)), "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)
    assert 0 < trained["held_out_bits"] < 12
    if kind in ("encoder", "encoder_decoder"):
        return  # vocabularies with special ids have no tokenizer file here
    done = moekit("evaluate", trained["model"], "--data", str(text), "--context", "32", "--json")
    assert done.returncode == 0, done.stderr
    evaluation = json.loads(done.stdout)
    assert evaluation["bytes"] == sum(file.stat().st_size for file in text.iterdir())
    assert 0 < evaluation["bits_per_byte"] < 12
    again = moekit("train", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "out"))
    assert again.returncode == 2
    assert "this training has ended" in again.stderr


def test_an_ngram_model_is_counted(tmp_path: Path, text: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"model: {{kind: ngram, order: 4}}\ndata: [{text}]\n")
    done = moekit("train", str(file), "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    done = moekit("evaluate", json.loads(done.stdout)["model"], "--data", str(text), "--json")
    assert json.loads(done.stdout)["bits_per_byte"] < 2


@pytest.mark.parametrize(
    "model",
    [
        "{kind: gru_seq2seq, source_vocab_size: 257, target_vocab_size: 257, embedding_width: 8, width: 8, "
        "alignment_width: 8, maxout_width: 8, end_token: 256}",
        JOBS["encoder_decoder"],
    ],
)
def test_pairs_are_learned(tmp_path: Path, model: str) -> None:
    rows = [{"source": f"number {n}", "target": f"{n} number"} for n in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "job.yaml"
    file.write_text(
        f"model: {model}\npairs: {tmp_path / 'pairs.jsonl'}\ntraining: {{steps: 3, sequences: 4, context: 32}}\n"
    )
    done = moekit("train", str(file), "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["held_out_bits"] < 12
    (tmp_path / "pairs.jsonl").write_text('{"source": "a"}\n')
    done = moekit("train", str(file), "--out", str(tmp_path / "other"))
    assert done.returncode == 2
    assert "pairs.jsonl, line 1" in done.stderr


@pytest.mark.parametrize(
    ("model", "training", "said"),
    [
        ("{kind: lstn}", "{steps: 1}", "model"),
        (TINY.replace("widths", "width"), "{steps: 1}", "did you mean 'widths'"),
        (TINY, "{steps: 1, tokens: 1}", "steps or tokens"),
        (TINY, "{steps: 1, sequences: 4, micro_sequences: 3}", "micro_sequences"),
        (TINY, "{steps: 1, recompute: true}", "recompute"),
        (JOBS["decoder"], "{steps: 1, context: 64}", "more than the model's context"),
        ("{kind: gru_seq2seq, source_vocab_size: 300, target_vocab_size: 300, embedding_width: 4, width: 4, "
         "end_token: 0}", "{steps: 1}", "pairs"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_be(tmp_path: Path, text: Path, model: str, training: str, said: str) -> None:
    done = moekit("train", str(job(tmp_path, model, text, training)), "--out", str(tmp_path / "out"))
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
