"""Recurrent models from a source to a target sequence: what they share, translation included, and Sutskever's.

B batch, S source tokens, T target tokens, D embedding width, N width, L layers, V target vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.config.seq2seq import LSTMSeq2SeqConfig, Seq2SeqConfig
from moekit.models.language_model import LanguageModel
from moekit.models.recurrent import LSTM
from moekit.moe import Routing

State = tuple[Tensor, ...]
"""What a decoder remembers of the source and of the target so far; the first dimension of each tensor is the batch."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A target that was found.

    Attributes:
        tokens: its tokens; the end token, where it was reached, is left out.
        log_prob: log p in nats, of the tokens and of the end.
        finished: whether the end token was reached.
    """

    tokens: tuple[int, ...]
    log_prob: float
    finished: bool


class Seq2Seq(LanguageModel):
    """A model of a target given a source. A subclass writes `encode` and `decode`."""

    config: Seq2SeqConfig

    def forward(self, source_BS: Tensor, target_BT: Tensor, source_real_BS: Tensor | None = None) -> Tensor:
        """Compute logits_BTV of the token after each of target_BT.

        Args:
            source_BS: int64 ids.
            target_BT: int64 ids, of which the first is the end token as a start.
            source_real_BS: bool, False for padding, which changes nothing. None means that all are real.

        Raises:
            ValueError: where a source has no real token.
        """
        return self.decode(target_BT, self.encode(source_BS, source_real_BS))[0]

    def encode(self, source_BS: Tensor, source_real_BS: Tensor | None = None) -> State:
        """Compute the state before the first token of the target; raise ValueError where a source has no real token."""
        raise NotImplementedError

    def decode(self, target_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Compute logits_BTV after each of target_BT, which follow those seen before, and the state after the last."""
        raise NotImplementedError

    def target_log_prob(self, source_BS: Tensor, target_BT: Tensor, source_real_BS: Tensor | None = None) -> Tensor:
        """Compute log p in nats of each token of target_BT given the source and the tokens before it.

        target_BT is without the start.

        Returns:
            Shape (B, T), at least fp32.
        """
        start_B1 = target_BT.new_full((target_BT.shape[0], 1), self.config.end_token)
        logits_BTV = self(source_BS, torch.cat((start_B1, target_BT[:, :-1]), 1), source_real_BS)
        return _log_softmax(logits_BTV).gather(-1, target_BT[..., None])[..., 0]

    def log_prob(
        self, tokens_BT: Tensor, *, source_BS: Tensor | None = None, source_real_BS: Tensor | None = None
    ) -> Tensor:
        """Compute log p in nats of each token but the first given those before it and the source.

        tokens_BT is the target without the start. Without a source, the source is the end token alone. A model trained
        on pairs has not met such a source: what it gives then scores text of the target's language, but is no more than
        a makeshift for a language model.

        Returns:
            Shape (B, T - 1), at least fp32.
        """
        if source_BS is None:
            source_BS = tokens_BT.new_full((tokens_BT.shape[0], 1), self.config.end_token)
        return self.target_log_prob(source_BS, tokens_BT, source_real_BS)[:, 1:]

    def loss(self, batch: Mapping[str, Tensor], routings: list[Routing] | None = None) -> tuple[Tensor, int]:
        """Compute the sum of -log p in nats over the real tokens of the target, and how many these are.

        Args:
            batch: `source`, `source_real`, `target`, `target_real`, as moekit.data.objectives.pairs makes them, with
                config.end_token as the end of the target.
            routings: there are none to append.
        """
        real_BT = batch["target_real"]
        log_prob_BT = self.target_log_prob(batch["source"], batch["target"], batch["source_real"])
        return -log_prob_BT.masked_fill(~real_BT, 0).sum(), int(real_BT.sum())

    @torch.no_grad()
    def translate(
        self, source_BS: Tensor, source_real_BS: Tensor | None = None, *, beam: int = 12, max_tokens: int
    ) -> list[Translation]:
        """Find the most probable target for each source, of up to max_tokens tokens, the end included.

        This is a left-to-right beam search (Sutskever et al., section 3.2): of all continuations by one token of the
        hypotheses so far, the `beam` most probable stay; those that end are set aside. It stops where none that goes on
        could still become better. Probabilities are compared as they are, whatever the length. Of hypotheses that reach
        max_tokens without an end, the best is given where none has ended. A beam of 1 is greedy.

        Raises:
            ValueError: where beam or max_tokens is not positive.
        """
        if beam < 1 or max_tokens < 1:
            raise ValueError(f"beam ({beam}) and max_tokens ({max_tokens}) must be positive")
        state = self.encode(source_BS, source_real_BS)
        return [
            self._search(tuple(part[index : index + 1] for part in state), beam, max_tokens)
            for index in range(source_BS.shape[0])
        ]

    def _search(self, state: State, beam: int, max_tokens: int) -> Translation:
        end = self.config.end_token
        # Of the hypotheses that go on: their tokens, log p, and the decoder's state before the last token is read.
        token_KT = torch.full((1, 1), end, device=state[0].device)
        score_K = torch.zeros(1, dtype=torch.float64, device=state[0].device)
        best: Translation | None = None
        for _ in range(max_tokens):
            logits_K1V, state = self.decode(token_KT[:, -1:], state)
            total_KV = score_K[:, None] + _log_softmax(logits_K1V[:, 0])
            score_K, choice_K = total_KV.flatten().topk(min(beam, total_KV.numel()))
            row_K, next_K = choice_K // total_KV.shape[1], choice_K % total_KV.shape[1]
            token_KT = torch.cat((token_KT[row_K], next_K[:, None]), 1)
            ended_K = next_K == end
            for index in ended_K.nonzero().flatten().tolist():
                if best is None or score_K[index].item() > best.log_prob:
                    best = _translation(token_KT[index, 1:-1], score_K[index], finished=True)
            going_K = ~ended_K
            token_KT, score_K = token_KT[going_K], score_K[going_K]
            if not len(score_K) or (best and score_K[0].item() <= best.log_prob):
                break
            state = tuple(part[row_K[going_K]] for part in state)
        return best or _translation(token_KT[0, 1:], score_K[0], finished=False)


class LSTMSeq2Seq(Seq2Seq):
    """Sutskever's model, built from `config`, its weights drawn from torch's current seed.

    Each layer of the decoder starts from the last state of the encoder's layer beside it.
    """

    config: LSTMSeq2SeqConfig

    def __init__(self, config: LSTMSeq2SeqConfig) -> None:
        super().__init__(config)
        self.source_embedding = nn.Embedding(config.source_vocab_size, config.embedding_width)
        self.target_embedding = nn.Embedding(config.target_vocab_size, config.embedding_width)
        self.encoder, self.decoder = (LSTM(config.embedding_width, config.width, config.layers) for _ in range(2))
        self.head = nn.Linear(config.width, config.target_vocab_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -config.init_range, config.init_range)

    def encode(self, source_BS: Tensor, source_real_BS: Tensor | None = None) -> State:
        """Compute hidden_BLN and cell_BLN after the source, read from its last real token to its first."""
        if source_real_BS is None:
            source_real_BS = torch.ones_like(source_BS, dtype=torch.bool)
        length_B = source_real_BS.sum(1)
        if not (length_B > 0).all():
            raise ValueError("a source has no real token")
        # Real tokens first, in the order in which they are read: what is padded is cut off at the end.
        position_S = torch.arange(source_BS.shape[1], device=source_BS.device)
        order_S = -position_S if self.config.reverse_source else position_S
        order_BS = order_S.masked_fill(~source_real_BS, source_BS.shape[1]).argsort(1)
        x_BSD = self.source_embedding(source_BS.gather(1, order_BS))
        _, hidden_LBN, cell_LBN = self.encoder(x_BSD, length_B=None if source_real_BS.all() else length_B)
        return hidden_LBN.transpose(0, 1), cell_LBN.transpose(0, 1)

    def decode(self, target_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Compute logits_BTV after each of target_BT, and the state after the last."""
        hidden_LBN, cell_LBN = (part.transpose(0, 1).contiguous() for part in state)
        x_BTN, hidden_LBN, cell_LBN = self.decoder(self.target_embedding(target_BT), (hidden_LBN, cell_LBN))
        return self.head(x_BTN), (hidden_LBN.transpose(0, 1), cell_LBN.transpose(0, 1))


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, -1, dtype=torch.promote_types(torch.float32, logits.dtype))


def _translation(token_T: Tensor, score: Tensor, *, finished: bool) -> Translation:
    return Translation(tokens=tuple(token_T.tolist()), log_prob=score.item(), finished=finished)
