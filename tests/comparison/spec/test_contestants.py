"""Who takes part: the default set's promises, and what a YAML file may say."""

from pathlib import Path

import pytest

from moekit.cli.quantities import parse_count, parse_duration
from moekit.comparison.spec.comparison_plan import measured_steps
from moekit.comparison.spec.contestant_selection import check_set, pick_contestant, read_contestants
from moekit.comparison.spec.contestants import (
    SIZES,
    Contestant,
    caveat_of,
    default_contestants,
    default_set,
    own_contestants,
    router_contestants,
)
from moekit.comparison.spec.model_costs import costs_of
from moekit.config import LSTMConfig, ModelConfig, NGramConfig
from moekit.core.errors import UsageError
from moekit.counting import count_parameters, training_flops_per_token

_UPCYCLED = "contestants: [{name: x, layers: [{kind: dense, width: 16}],"


@pytest.mark.parametrize("size_name", sorted(SIZES))
def test_the_default_set_keeps_its_promises(size_name: str) -> None:
    size = SIZES[size_name]
    models = {name: contestant.config(size) for name, contestant in default_contestants(size).items()}
    flops = {name: training_flops_per_token(model, size.context) for name, model in models.items()}
    counts = {name: count_parameters(model) for name, model in models.items()}
    for name in ("moe", "moe-fine", "moe-many", "hybrid"):
        assert flops[name] == pytest.approx(flops["dense"], rel=0.02)
        assert counts[name].active == pytest.approx(counts["dense"].active, rel=0.02)
    for name in ("moe-fine", "dense-large"):
        assert counts[name].total == pytest.approx(counts["moe"].total, rel=0.02)
    assert [layer.kind for layer in models["hybrid"].feed_forwards[:2]] == ["dense", "moe"]
    assert len({layer.attention for model in models.values() for layer in model.layers}) == 1


@pytest.mark.parametrize("size_name", sorted(SIZES))
def test_the_routers_differ_in_the_router_alone(size_name: str) -> None:
    size = SIZES[size_name]
    contestants = router_contestants(size)
    models = {name: contestant.config(size) for name, contestant in contestants.items()}
    flops = {name: training_flops_per_token(model, size.context) for name, model in models.items()}
    assert check_set(list(contestants.values()), None) == "dense"
    assert flops == pytest.approx(dict.fromkeys(flops, flops["dense"]), rel=0.02)
    routed = [model.feed_forwards[0] for name, model in models.items() if name != "dense"]
    assert {layer.experts for layer in routed} == {8}  # type: ignore[union-attr]
    assert len({layer.router.kind for layer in routed}) == len(routed) == 8  # type: ignore[union-attr]
    assert [name for name, model in models.items() if caveat_of(model)] == ["gshard", "expert-choice"]
    assert "sees later tokens" in contestants["expert-choice"].description


@pytest.mark.parametrize("size_name", sorted(SIZES))
def test_those_of_their_own_shape_compute_as_much(size_name: str) -> None:
    size = SIZES[size_name]
    own = {name: contestant.config(size) for name, contestant in own_contestants(size).items()}
    dense = costs_of(default_contestants(size)["dense"].config(size), size.context).flops_per_token
    flops = {name: costs_of(config, size.context).flops_per_token for name, config in own.items()}
    assert flops["gpt3"] == pytest.approx(dense, rel=0.02)
    assert flops["lstm"] == pytest.approx(dense, rel=0.05)
    assert flops["ngram"] == 0
    gpt3, lstm, ngram = own["gpt3"], own["lstm"], own["ngram"]
    assert isinstance(gpt3, ModelConfig)
    assert gpt3.tie_embeddings
    assert gpt3.learned_positions
    assert [layer.attention.window for layer in gpt3.layers[:2]] == [None, size.context // 2]
    assert isinstance(lstm, LSTMConfig)
    assert lstm.tie_embeddings
    assert not any(getattr(lstm, name) for name in LSTMConfig.model_fields if name.endswith("_dropout"))
    assert ngram == NGramConfig(order=7)


def test_the_default_set_is_all_nine() -> None:
    always, optional = default_set(SIZES["xs"])
    assert [one.name for one in always] == [
        "dense",
        "moe",
        "moe-fine",
        "moe-many",
        "hybrid",
        "dense-large",
        "ngram",
    ]
    assert [one.name for one in optional] == ["gpt3", "lstm"]
    assert [pick_contestant(one.name, SIZES["xs"]) for one in (*always, *optional)] == [*always, *optional]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_yaml_mixes_names_and_plans(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        baseline: tiny
        contestants:
          - moe
          - sinkhorn
          - name: tiny
            layers: [{kind: dense, width: 64}, {kind: moe, experts: 4, expert_width: 32, router: {top_k: 2}}]
        """,
    )
    contestants, baseline = read_contestants(path, SIZES["s"])
    assert baseline == "tiny"
    assert contestants[0] == default_contestants(SIZES["s"])["moe"]
    assert contestants[1] == router_contestants(SIZES["s"])["sinkhorn"]
    model = contestants[2].config(SIZES["s"])
    assert [part.kind for part in model.feed_forwards] == ["dense", "moe", "dense", "moe"]


def test_yaml_takes_whole_models(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        contestants:
          - lstm
          - {name: words, model: {kind: ngram, order: 4}}
          - {name: deep, model: {kind: lstm, embedding_width: 32, widths: [64, 32]}}
          - name: own
            model:
              width: 64
              context: 512
              attention: {heads: 2, kv_heads: 2, head_width: 32}
              layers: [{kind: dense, width: 96}]
        """,
    )
    contestants, baseline = read_contestants(path, SIZES["xs"])
    assert baseline == "lstm"
    configs = [contestant.config(SIZES["xs"]) for contestant in contestants[1:]]
    assert [config.kind for config in configs] == ["ngram", "lstm", "decoder"]
    assert [config.vocab_size for config in configs[1:]] == [256, 256]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("contestants: [dense, lstn]", "no contestant 'lstn': did you mean 'lstm'?"),
        ("contestants: [{name: x}]", "either layers, a plan in the size's shape, or model, a whole one"),
        (
            "contestants: [{name: x, layers: [{kind: dense, width: 8}], model: {kind: ngram}}]",
            "either layers, a plan in the size's shape, or model, a whole one",
        ),
        ("contestants: [{name: x, model: {kind: gru}}]", "contestants[0]: model: "),
        ("contestants: [{name: x, model: {kind: ngram, ordre: 3}}]", "model.ordre: there is no such key; did you"),
        ("contestants: [{name: x, model: {kind: ngram, order: 99}}]", "model.order: "),
        ("contestants: [{name: x, model: {kind: ngram, unit: words}}]", "set model.unit to bytes"),
        (
            "contestants: [{name: x, model: {kind: lstm, vocab_size: 300, embedding_width: 8, widths: [8]}}]",
            "set model.vocab_size to 256",
        ),
        (
            "contestants: [{name: x, model: {kind: lstm, embedding_width: 8, widths: [16]}}]",
            "with tied embeddings the last layer (16) must be as wide as the embedding (8)",
        ),
        (
            "contestants: [{name: x, model: {width: 8, context: 16, attention: {heads: 1, kv_heads: 1, head_width: 8}, "
            "layers: [{kind: dense, width: 8}]}}]",
            "model.context (16) is less than the size's, 128",
        ),
        ("contestants: [dense, mow]", "no contestant 'mow': did you mean 'moe'?"),
        ("contestant: [dense]", "contestant: there is no such key; did you mean 'contestants'?"),
        ("contestants: []", "contestants: "),
        ("contestants: [dense, dense]", "'dense' is there twice"),
        ("{contestants: [dense], baseline: densé}", "baseline 'densé' is not among"),
        ("contestants: [{name: ../x, layers: [{kind: dense, width: 8}]}]", "name: a name is up to 40"),
        ("contestants: [{name: x, layers: [{kind: dens, width: 8}]}]", "layers[0]: "),
        ("contestants: [{name: x, layers: [{kind: dense, widht: 8}]}]", "did you mean 'width'?"),
        ("contestants: [{name: x, layers: []}]", "layers: "),
        ("contestants: [3]", "contestants[0]"),
        (
            "contestants: [{name: x, layers: [{kind: moe, "
            "experts: 4, expert_width: 8, router: {kind: expert_choice}}]}]",
            "sees the tokens that it has to predict; set leaky",
        ),
        (f"{_UPCYCLED} upcycle: {{expertz: 4}}}}]", "upcycle: expertz: there is no such key; did you mean 'experts'?"),
        (f"{_UPCYCLED} upcycle: {{after: 1}}}}]", "contestants[0].upcycle: after: "),
        (f"{_UPCYCLED} upcycle: {{granularity: 3}}}}]", "has 16 channels, which granularity 3 does not divide"),
        (f"{_UPCYCLED} upcycle: {{layers: [4]}}}}]", "There is no layer 4: the dense model has 4"),
        (f"{_UPCYCLED} upcycle: [copy]}}]", "upcycle: "),
        (
            "contestants: [{name: x, model: {kind: ngram}, upcycle: {experts: 4}}]",
            "upcycle is for decoders, and model is of kind ngram",
        ),
        ("- a\n- b", "must be keys and values"),
        ("a: [", "is not valid YAML"),
        ("", "must be keys and values"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_contestants(write(tmp_path, text), SIZES["s"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yaml"):
        read_contestants(tmp_path / "nowhere.yaml", SIZES["s"])


def test_the_first_is_the_baseline() -> None:
    contestants: list[Contestant] = [pick_contestant(name, SIZES["xs"]) for name in ("moe", "dense")]
    assert check_set(contestants, None) == "moe"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("8m", 480), ("1.5h", 5400), ("3", 180), (" 2m ", 120)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-3m", "0", "nan", "inf", "8 minutes", "1e999h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="write it like 90s"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "count"), [("500k", 500_000), ("2M", 2_000_000), ("1500", 1500), ("1.5m", 1_500_000)])
def test_counts(text: str, count: int) -> None:
    assert parse_count(text) == count


def test_the_last_step_is_measured() -> None:
    for steps in (1, 7, 60, 12345):
        assert max(measured_steps(steps)) == steps
        assert min(measured_steps(steps)) >= 1
