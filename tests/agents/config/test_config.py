"""The YAML file: what it means, and one sentence about whatever is wrong with it, before any call."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from moekit.agents.config.agents_config import AgentsConfig, EndpointMemberConfig, LocalMemberConfig, read_agents
from moekit.agents.config.strategy_configs import MoaConfig, RankConfig, RouteConfig
from moekit.core.errors import UsageError

GOOD: dict[str, Any] = {
    "endpoints": {"openai": {"url": "https://api.example.com/v1/", "key_variable": "TEST_KEY"}},
    "members": {
        "gpt": {"endpoint": "openai", "model": "gpt-x", "price": {"input": 2.0, "output": 8.0}},
        "mine": {"path": "./runs/model", "max_tokens": 256},
        "yours": {"path": "./runs/other"},
    },
    "strategies": {
        "cheap": {"kind": "route", "by": "examples", "members": ["gpt", "mine"], "examples": {"mine": ["hi"]}},
        "best": {"kind": "rank", "members": ["gpt", "cheap"], "judge": "gpt"},
        "answer": {"kind": "moa", "layers": [["gpt", "mine"], ["best"]], "aggregator": "gpt"},
        "mixed": {"kind": "ensemble", "members": ["mine", "yours"]},
    },
    "default": "answer",
    "budget": {"tokens": 1000, "money": 0.5},
    "cache": {"folder": "cache"},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good file with another value at `path`; None takes it out."""
    data = yaml.safe_load(yaml.safe_dump(GOOD))
    *parents, last = path.split(".")
    place = data
    for parent in parents:
        place = place.setdefault(parent, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return data


def read(data: Any, folder: Path, *, replay: bool = False) -> AgentsConfig:
    file = folder / "agents.yaml"
    file.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return read_agents(file, replay=replay)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-secret-1234")
    monkeypatch.setenv("STRANGE_KEY", "sk-sécret-1234")


def test_a_file_says_what_it_says(tmp_path: Path) -> None:
    config = read(GOOD, tmp_path)
    assert config.endpoints["openai"].url == "https://api.example.com/v1"
    gpt, mine = config.members["gpt"], config.members["mine"]
    assert isinstance(gpt, EndpointMemberConfig)
    assert isinstance(mine, LocalMemberConfig)
    assert (gpt.model, gpt.max_tokens, gpt.temperature) == ("gpt-x", None, 0.7)
    assert (mine.path, mine.max_tokens) == ("./runs/model", 256)
    assert [type(config.strategies[name]) for name in ("cheap", "best", "answer")] == [
        RouteConfig,
        RankConfig,
        MoaConfig,
    ]
    assert (config.deadlines.call, config.deadlines.layer, config.deadlines.answer) == (60, 300, 600)
    assert (config.retries, config.hedge_after, config.default_name) == (2, None, "answer")
    assert config.names == ("cheap", "best", "answer", "mixed", "gpt", "mine", "yours")
    assert config.members_of("answer") == {"gpt", "mine"}
    assert config.members_of("mine") == {"mine"}


def test_without_a_default_the_last_strategy_answers_or_the_only_member(tmp_path: Path) -> None:
    assert read(changed("default", None), tmp_path).default_name == "mixed"
    assert read({"members": {"mine": {"path": "x"}}}, tmp_path).default_name == "mine"


BAD: dict[str, tuple[str, Any, str]] = {
    "unknown strategy": (
        "default",
        "anser",
        "default: there is no member or strategy 'anser' (did you mean 'answer'?)",
    ),
    "unknown kind": ("strategies.answer.kind", "moe", "strategies.answer"),
    "unknown key": ("members.gpt.modell", "x", "members.gpt.modell: there is no such key; did you mean 'model'?"),
    "unknown key of a local member": ("members.mine.pat", "x", "members.mine.pat: there is no such key"),
    "unknown proposer": (
        "strategies.answer.layers",
        [["gpt"], ["mne"]],
        "strategies.answer: there is no member or strategy 'mne' (did you mean 'mine'?)",
    ),
    "unknown endpoint": (
        "members.gpt.endpoint",
        "opena",
        "members.gpt.endpoint: there is no endpoint 'opena' (did you mean 'openai'?)",
    ),
    "circle": (
        "strategies.best.members",
        ["answer", "gpt"],
        "strategies.answer: it asks itself (answer → best → answer)",
    ),
    "circle of one": ("strategies.best.judge", "best", "strategies.best: it asks itself (best → best)"),
    "same name twice": ("members.best", {"path": "x"}, "strategies.best: a member has this name too"),
    "no scheme": (
        "endpoints.openai.url",
        "api.example.com/v1",
        "endpoints.openai.url: 'api.example.com/v1' is no URL of a server; write https://api.example.com/v1.",
    ),
    "no scheme, here": (
        "endpoints.openai.url",
        "localhost:11434/v1",
        "endpoints.openai.url: 'localhost:11434/v1' is no URL of a server; write http://localhost:11434/v1.",
    ),
    "no scheme, an address": (
        "endpoints.openai.url",
        "//10.0.0.7:8000",
        "endpoints.openai.url: '//10.0.0.7:8000' is no URL of a server; write http://10.0.0.7:8000.",
    ),
    "another scheme": ("endpoints.openai.url", "ftp://host/v1", "endpoints.openai.url: 'ftp://host/v1' is no URL"),
    "no host": ("endpoints.openai.url", "https:///v1", "endpoints.openai.url: 'https:///v1' is no URL of a server"),
    "a space in the host": ("endpoints.openai.url", "http://my host/v1", "endpoints.openai.url: 'http://my host/v1'"),
    "a blank in the path": ("endpoints.openai.url", "http://host/a b", "endpoints.openai.url: 'http://host/a b' is no"),
    "half a bracket": ("endpoints.openai.url", "http://[::1/v1", "endpoints.openai.url: is no URL"),
    "bad port": ("endpoints.openai.url", "http://host:99999/v1", "endpoints.openai.url: is no URL"),
    "key in the URL": ("endpoints.openai.url", "https://me:pw@host/v1", "endpoints.openai.url: a URL holds no name"),
    "key in the query": ("endpoints.openai.url", "https://host/v1?key=1", "endpoints.openai.url: a URL holds no name"),
    "missing key variable": (
        "endpoints.openai.key_variable",
        "NO_SUCH_VARIABLE",
        "endpoints.openai.key_variable: the environment variable NO_SUCH_VARIABLE is not set.",
    ),
    "key in place of its variable": (
        "endpoints.openai.key_variable",
        "sk-proj-1234",
        "endpoints.openai.key_variable: is no name of an environment variable",
    ),
    "key that no header holds": (
        "endpoints.openai.key_variable",
        "STRANGE_KEY",
        "endpoints.openai.key_variable: the environment variable STRANGE_KEY holds characters",
    ),
    "unused aggregator": ("strategies.best.aggregator", "gpt", "strategies.best: aggregator: then: best fuses nothing"),
    "unused top": ("strategies.best.top", 2, "strategies.best: top: then: best fuses nothing"),
    "unused window": (
        "strategies.cheap",
        {"kind": "self-moa", "member": "gpt", "window": 6},
        "strategies.cheap: window: form: parallel puts all samples together",
    ),
    "no time": ("deadlines.call", 0, "deadlines.call: must be more than 0"),
    "endless": ("deadlines.answer", float("inf"), "deadlines.answer: must be 86400 or less"),
    "priceless": ("members.gpt.price.input", float("inf"), "members.gpt.price.input: must be a finite number"),
    "many retries": ("retries", 1000, "retries: must be 20 or less"),
    "negative budget": ("budget.tokens", -1, "budget.tokens: must be more than 0"),
    "no price": ("members.gpt.price", None, "members.gpt.price: a budget of money needs the price"),
    "quorum": ("strategies.answer.quorum", 2, "strategies.answer: quorum: 2 are more than the 1 proposers of a layer"),
    "no layer": ("strategies.answer.layers", [], "strategies.answer.layers: "),
    "no room": ("members.mine.context", 256, "members.mine: max_tokens: 256 leave no room"),
    "temperature": ("members.gpt.temperature", 3, "members.gpt.temperature: must be 2 or less"),
    "ensemble of endpoints": (
        "strategies.mixed.members",
        ["mine", "gpt"],
        "strategies.mixed: gpt is not a local model",
    ),
    "weights": ("strategies.mixed.weights", [1.0], "strategies.mixed: weights: 1 of them for 2 members"),
    "likelihood of an endpoint": ("strategies.best.by", "likelihood", "strategies.best: gpt is not a local model"),
    "examples of strangers": (
        "strategies.cheap.examples",
        {"yours": ["hi"]},
        "strategies.cheap: examples: 'yours' is none of its members (gpt, mine)",
    ),
    "no examples": ("strategies.cheap.examples", None, "strategies.cheap: by examples needs examples or data"),
    "no members": ("members", {}, "members: "),
    "a name that is none": ("members. ", {"path": "x"}, "' ' is no name"),
    "a cache without a folder": ("cache", {"mode": "use"}, "cache.folder: this key is missing"),
}


@pytest.mark.parametrize(("path", "value", "problem"), BAD.values(), ids=BAD)
def test_bad_files_are_told_in_a_sentence(path: str, value: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        read(changed(path, value), tmp_path)
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/agents.yaml: {problem}")
    assert "\n" not in text
    assert "1234" not in text  # of a key
    assert error.value.exit_status == 2


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "members: [", "members: {a: {path: x}}\nmembers2: 1"])
def test_files_that_are_no_configuration(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^\S*agents\.yaml\b[^\n]*$"):
        read(text, tmp_path)


def test_settings_that_count_may_be_given(tmp_path: Path) -> None:
    fused = {"kind": "rank", "members": ["gpt", "mine"], "judge": "gpt", "then": "fuse", "aggregator": "gpt", "top": 2}
    slid = {"kind": "self-moa", "member": "gpt", "form": "sequential", "window": 3}
    empty = {"kind": "rank", "members": ["gpt", "mine"], "judge": "gpt", "aggregator": None}
    for strategy in (fused, slid, empty):
        assert read(changed("strategies.more", strategy), tmp_path).names[4] == "more"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v1",
        "https://api.example.com/v1/",
        " https://api.example.com/v1//\n",
        "https://api.example.com/v1/chat/completions",
        "https://api.example.com/v1/chat/completions/",
        "https://api.example.com/v1/models",
    ],
)
def test_a_url_that_was_copied_with_more_is_the_same(url: str, tmp_path: Path) -> None:
    config = read(changed("endpoints.openai.url", url), tmp_path)
    assert config.endpoints["openai"].url == "https://api.example.com/v1"


@pytest.mark.parametrize("url", ["http://[::1]:8000/v1", "http://server_1:8000", "https://xn--bcher-kva.example/v1"])
def test_other_urls_are_as_they_are(url: str, tmp_path: Path) -> None:
    assert read(changed("endpoints.openai.url", url), tmp_path).endpoints["openai"].url == url


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, None),
        ({"members": {"a": {"max_tokens": 7}}}, 7),
        ({"budget": {"tokens": 9}}, 1024),
        ({"budget": {"money": 0.5}, "members": {"a": {"price": {"input": 1, "output": 1}}}}, 1024),
        ({"endpoints": {"e": {"tokens_per_minute": 99}}}, 1024),
        ({"budget": {"tokens": 9}, "members": {"a": {"context": 600}}}, 300),
        ({"budget": {"tokens": 9}, "members": {"a": {"max_tokens": 7}}}, 7),
    ],
)
def test_only_where_tokens_are_counted_an_answer_needs_a_limit(changes: dict[str, Any], most: int | None) -> None:
    endpoint = {"url": "http://127.0.0.1:9"} | changes.get("endpoints", {}).get("e", {})
    member = {"endpoint": "e", "model": "m"} | changes.get("members", {}).get("a", {})
    given = changes | {"endpoints": {"e": endpoint}, "members": {"a": member}}
    config = AgentsConfig.model_validate(given)
    found = config.members["a"]
    assert isinstance(found, EndpointMemberConfig)
    assert config.most_tokens_of(found) == most


def test_several_members_need_a_default(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="default: say which member answers"):
        read({"members": {"a": {"path": "x"}, "b": {"path": "y"}}}, tmp_path)


def test_many_ways_through_strategies_are_no_circle_and_take_no_time(tmp_path: Path) -> None:
    """Each asks the one before it twice: 2^60 ways, none of them back."""
    strategies: dict[str, Any] = {"s0": {"kind": "single", "member": "a"}}
    for number in range(1, 60):
        before = f"s{number - 1}"
        strategies[f"s{number}"] = {"kind": "moa", "layers": [[before, before]], "aggregator": before}
    config = read({"members": {"a": {"path": "x"}}, "strategies": strategies}, tmp_path)
    assert config.members_of("s59") == {"a"}


def test_a_replay_needs_a_cache_and_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(UsageError, match="TEST_KEY is not set"):
        read(GOOD, tmp_path)
    config = read(GOOD, tmp_path, replay=True)
    assert config.cache is not None
    assert config.cache.mode == "only"
    with pytest.raises(UsageError, match=r"cache: a replay needs the folder of a cache\.$"):
        read(changed("cache", None), tmp_path, replay=True)


def test_nothing_of_this_needs_torch() -> None:
    """A mistake in a file answers at once, and endpoints need no torch at all."""
    code = (
        "import sys, moekit.agents, moekit.agents.members.endpoint\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
