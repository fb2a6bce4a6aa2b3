"""From the prompts of a merge to tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moekit.data.model_tokenizer import tokenizer_of
from moekit.data.tokenizers import FileTokenizer, Tokenizer
from moekit.models.stored_model import StoredModel
from moekit.models.streamed_decoder import TokenBatch

# Prompts of a batch hold about so many tokens together.
_BATCH_TOKENS = 2048
# Longer prompts are cut: what a text is about shows early, and attention over it grows with the square.
_MAX_TOKENS = 512


@dataclass(frozen=True)
class PromptEncoder:
    """From prompts to tokens, each after the start token.

    start_text: what stands for the start token in a text, as mergekit writes it before each prompt. Where there is none
    (bytes), its id is put there. padding: any token; padding is masked.
    """

    tokenizer: Tokenizer
    start_text: str
    start: int | None
    padding: int

    def ids(self, prompt: str) -> list[int]:
        """Give the tokens of one prompt."""
        ids = self.tokenizer.encode(self.start_text + prompt)
        return ids if self.start is None else [self.start, *ids]


def prompt_encoder(base: StoredModel) -> PromptEncoder:
    """Make the encoder of the base model's folder; raises UsageError where there is no tokenizer."""
    tokenizer = tokenizer_of(base.folder, base.config.vocab_size)
    if not isinstance(tokenizer, FileTokenizer):
        return PromptEncoder(tokenizer, "", tokenizer.start, 0)
    named = [tokenizer.special_texts.get(name, "") for name in ("bos_token", "eos_token")]
    padding = [token for text in named for token in tokenizer.encode(text)[:1]]
    return PromptEncoder(tokenizer, named[0], None, padding[0] if padding else 0)


def prompt_batches(
    encoder: PromptEncoder, texts: Sequence[str], context: int
) -> tuple[list[list[int]], list[list[int]], list[TokenBatch]]:
    """Cut texts to what is run of them, and put those of about one length together.

    Gives the tokens of each text, and for each batch the texts that are its rows and the rows, padded at their end.
    """
    rows = [encoder.ids(text)[: min(_MAX_TOKENS, context)] for text in texts]
    order = sorted((index for index, row in enumerate(rows) if row), key=lambda index: len(rows[index]))
    groups = list(_grouped(order, rows))
    return rows, groups, [TokenBatch.of([rows[index] for index in group]) for group in groups]


def _grouped(order: Sequence[int], rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Put rows of about one length together; `order` goes from short to long."""
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * len(rows[index]) > _BATCH_TOKENS:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
