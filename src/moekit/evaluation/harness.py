"""moekit's models in EleutherAI's lm-evaluation-harness (pip install moekit[harness]).

    from lm_eval import simple_evaluate
    from moekit.evaluation.harness import HarnessModel

    simple_evaluate(HarnessModel.load("./my-model"), tasks=["lambada_openai"])

T tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from moekit.core.errors import UsageError
from moekit.data.model_tokenizer import tokenizer_of
from moekit.data.tokenizers import FileTokenizer, Tokenizer
from moekit.models import Decoder, LanguageModel, LSTMLanguageModel, load
from moekit.moe import without_capacity

_LONGEST = 2048


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A causal model as the harness asks it, for log likelihoods and greedy text.

    Raises:
        UsageError: where the model is not causal, or its tokenizer has no token to start a text with.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        super().__init__()
        if not isinstance(model, Decoder | LSTMLanguageModel):
            raise UsageError(f"The harness needs a causal model, and a {type(model).__name__} is none.")
        if tokenizer.start is None:
            raise UsageError("The harness needs a token that starts a text: set bos_token_id in config.json.")
        self.model, self.tokenizer = model, tokenizer
        self.context = model.context or _LONGEST
        self._start = tokenizer.start
        self._prefix = _prefix(tokenizer)
        self._ends = getattr(tokenizer, "end_tokens", frozenset()) | {tokenizer.start}

    @classmethod
    def load(cls, path: str) -> Self:
        """Load the model in a folder, with its tokenizer."""
        model = load(path)
        if not isinstance(model, LanguageModel):
            raise UsageError("The harness needs a causal model, and an n-gram model gives no logits.")
        return cls(model, tokenizer_of(model.origin, getattr(model.config, "vocab_size", 0)))

    @property
    def eot_token_id(self) -> int:
        """The token that stands between texts."""
        return self._start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Encode a text, after the tokens that the tokenizer puts before every text.

        Args:
            string: the text; tokens that it writes out itself are not put there twice.
            add_special_tokens: False for the text alone.
            kwargs: what the harness may have for other models.
        """
        ids = self.tokenizer.encode(string)
        has_them = ids[: len(self._prefix)] == self._prefix
        return ids if add_special_tokens is False or has_them else [*self._prefix, *ids]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Compute log p in nats of each whole text, each of its tokens given as many before it as fit."""
        totals = []
        for request in tqdm(requests, disable=disable_tqdm):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, prefix_token=self._start, max_seq_len=self.context, context_len=1)
            scored = [self._score(*make_disjoint_window(window))[0] for window in windows]
            totals.append(sum(scored))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Write the most probable continuation of each text, token by token, up to a stop string."""
        texts = []
        for request in tqdm(requests, disable=disable_tqdm):
            context, options = request.args
            stops = options.get("until") or []
            stops = [stops] if isinstance(stops, str) else stops
            if options.get("do_sample") or options.get("temperature", 0):
                raise UsageError("The adapter generates greedily: leave do_sample and temperature out.")
            texts.append(self._continue(context, stops, int(options.get("max_gen_toks", 256))))
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return [self._score(context, text) for _, context, text in tqdm(requests, disable=disable_tqdm)]

    def _score(self, context: list[int], text: list[int]) -> tuple[float, bool]:
        """Compute log p of the text after the context, and whether greedy decoding would write it.

        A text that is longer than the model's context is scored in pieces, each of its tokens given at least half of
        what the model can see.
        """
        ids, total, greedy = context + text, 0.0, True
        size = len(text) if len(text) <= self.context else max(1, self.context // 2)
        for begin in range(len(context), len(ids), size):
            end = min(begin + size, len(ids))
            seen = ids[max(0, end - 1 - self.context) : end - 1]
            log_probs_TV = self._logits(seen)[begin - end :].double().log_softmax(-1)
            target_T = torch.tensor(ids[begin:end])
            total += float(log_probs_TV.gather(1, target_T[:, None]).sum())
            greedy = greedy and bool((log_probs_TV.argmax(-1) == target_T).all())
        return total, greedy

    def _continue(self, context: str, stops: Sequence[str], tokens: int) -> str:
        ids = self.tok_encode(context) or [self._start]
        written: list[int] = []
        for _ in range(tokens):
            window = (ids + written)[-self.context :]
            written.append(int(self._logits(window)[-1].argmax()))
            text = self.tokenizer.decode(written)
            cut = [text.index(stop) for stop in stops if stop in text]
            if cut:
                return text[: min(cut)]
            if written[-1] in self._ends:
                return self.tokenizer.decode(written[:-1])
        return self.tokenizer.decode(written)

    def _logits(self, ids: list[int]) -> Tensor:
        with torch.no_grad(), without_capacity(self.model):
            logits_BTV: Tensor = self.model(torch.tensor([ids]))
        return logits_BTV[0]


def _prefix(tokenizer: Tokenizer) -> list[int]:
    """Find the tokens that stand before every text: those of the tokenizer's post-processor; byte 0 before bytes."""
    if not isinstance(tokenizer, FileTokenizer):
        return [] if tokenizer.start is None else [tokenizer.start]
    plain, prompt = tokenizer.encode("a"), tokenizer.encode_prompt("a")
    places = (at for at in range(len(prompt)) if prompt[at : at + len(plain)] == plain)
    return prompt[: next(places, 0)]
