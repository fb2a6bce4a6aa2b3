"""From a configuration to answers with models that were trained here on two kinds of text, and no network."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import DENSE, model_config
from tests.threads import one_torch_thread

from moekit.agents import AgentsConfig, Answer, Engine
from moekit.core.messages import ChatOptions, Message
from moekit.models import Decoder

TEXTS = {
    "letters": "the cat sat on the mat and the dog sat on the cat. ",
    "digits": "12 34 56 78 90 31 41 59 26 53 58 97. ",
}
QUESTIONS = {"letters": "the dog sat", "digits": "41 59 26"}
STRATEGIES: dict[str, dict[str, Any]] = {
    "n-grams": {"kind": "route", "by": "examples"},
    "vectors": {"kind": "route", "by": "examples", "embedding": "letters"},
    "classifier": {"kind": "route", "by": "classifier"},
    "classified vectors": {"kind": "route", "by": "classifier", "embedding": "letters"},
    "likelihood": {"kind": "route", "by": "likelihood"},
    "rank": {"kind": "rank", "by": "likelihood", "judge": "both"},
    "mixture": {"kind": "ensemble"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for each kind of text, and one for both."""
    root = tmp_path_factory.mktemp("specialists")
    for name, text in {**TEXTS, "both": "".join(TEXTS.values())}.items():
        torch.manual_seed(0)
        model = Decoder(model_config((DENSE, DENSE)).model_copy(update={"init_std": 0.1}))
        tokens_N = torch.tensor(list((text * 40).encode()))
        steps = 60 if name != "both" else 120
        for step in range(steps):
            starts = torch.randint(len(tokens_N) - 25, (8,), generator=torch.Generator().manual_seed(step))
            batch_BT = torch.stack([tokens_N[start : start + 25] for start in starts.tolist()])
            loss = -model.log_prob(batch_BT).mean()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():  # descent by signs: enough here, and torch's optimisers take seconds to import
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 5e-3 * (1 - step / steps) * gradient.sign()
        model.save(root / name)
    return root


@pytest.fixture(scope="module")
def config(folder: Path) -> AgentsConfig:
    examples = {name: [text[place : place + 12] for place in range(0, 36, 12)] for name, text in TEXTS.items()}
    shown = {
        name: {**strategy, "members": list(TEXTS)}
        | ({"examples": examples} if strategy.get("by") in ("examples", "classifier") else {})
        for name, strategy in STRATEGIES.items()
    }
    members = {name: {"path": str(folder / name), "max_tokens": 6} for name in (*TEXTS, "both")}
    return AgentsConfig.model_validate({"members": members, "strategies": shown})


def answers(config: AgentsConfig, name: str) -> dict[str, Answer]:
    """To both questions, by strategy or member `name`."""

    async def work() -> dict[str, Answer]:
        async with Engine(config) as engine:
            return {
                kind: await engine.answer([Message(role="user", content=text)], name, ChatOptions(temperature=0.0))
                for kind, text in QUESTIONS.items()
            }

    return asyncio.run(work())


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if STRATEGIES[name]["kind"] == "route"])
def test_each_question_goes_to_the_model_of_its_kind(config: AgentsConfig, strategy: str) -> None:
    for kind, answer in answers(config, strategy).items():
        asked = [call.name for call in answer.trace.calls if call.stage == "answer"]
        assert asked == [kind]
        assert answer.text in TEXTS[kind] * 2, "and it goes on with its text"


def test_the_answer_that_the_judge_finds_likely_wins(config: AgentsConfig) -> None:
    own, ranked = {name: answers(config, name) for name in TEXTS}, answers(config, "rank")
    for kind, answer in ranked.items():
        assert {call.name for call in answer.trace.calls if call.stage == "candidates"} == set(TEXTS)
        assert answer.text == own[kind][kind].text != own[next(name for name in TEXTS if name != kind)][kind].text


def test_a_mixture_goes_on_with_either_kind(config: AgentsConfig) -> None:
    for kind, answer in answers(config, "mixture").items():
        assert answer.text in TEXTS[kind] * 2
        assert [call.name for call in answer.trace.calls] == ["mixture"]
        assert answer.usage.completion_tokens == 6
        assert answer.usage.prompt_tokens == 1 + len(QUESTIONS[kind])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield
