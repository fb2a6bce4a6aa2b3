"""The LSTM language model, with the regularisation of AWD-LSTM.

B batch, T tokens, D embedding width, N width of a layer, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from moekit.config.recurrent import LSTMConfig
from moekit.models.language_model import LanguageModel
from moekit.moe import Routing
from moekit.nn import token_loss


class LSTM(nn.Module):
    """`layers` LSTM layers one on the other, with torch.nn.LSTM's arithmetic and names.

    i, f, g, o = W x + b + U h + c in this order of rows; cell = sigmoid(f) cell + sigmoid(i) tanh(g); h = sigmoid(o)
    tanh(cell).

    torch's own kernels compute it, on a CPU oneDNN's. Its module is not used because it holds on to the matrices that
    it was built with: neither a dropped one nor one from a file could take their place. Parameters come uninitialised.
    """

    def __init__(self, inputs: int, width: int, layers: int = 1) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        for index in range(layers):
            shapes = {"weight_ih": (4 * width, inputs if index == 0 else width), "weight_hh": (4 * width, width)}
            for name, shape in (shapes | {"bias_ih": (4 * width,), "bias_hh": (4 * width,)}).items():
                self.register_parameter(f"{name}_l{index}", nn.Parameter(torch.empty(shape)))

    def forward(
        self,
        x_BTN: Tensor,
        state: tuple[Tensor, Tensor] | None = None,
        *,
        length_B: Tensor | None = None,
        weight_dropout: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the last layer's h after each token, and hidden and cell of all layers at the end.

        Args:
            x_BTN: the input.
            state: hidden and cell before, (L, B, N); None for zeros.
            length_B: the lengths of the sequences, where some are shorter than T; hidden and cell are then those at
                their ends, and h is packed (see torch.nn.utils.rnn).
            weight_dropout: the share of the recurrent matrices that is dropped in training, by one mask for all tokens.

        Returns:
            h (B, T, N), hidden (L, B, N) and cell (L, B, N).
        """
        if state is None:
            zeros_LBN = x_BTN.new_zeros(self.layers, x_BTN.shape[0], self.width)
            state = (zeros_LBN, zeros_LBN)
        weights = [
            F.dropout(parameter, weight_dropout, self.training) if "weight_hh" in name else parameter
            for name, parameter in self.named_parameters()
        ]
        if length_B is None:
            return torch.lstm(x_BTN, state, weights, True, self.layers, 0.0, self.training, False, True)
        packed = pack_padded_sequence(x_BTN, length_B.cpu(), batch_first=True, enforce_sorted=False)
        assert packed.sorted_indices is not None
        assert packed.unsorted_indices is not None
        state = (state[0][:, packed.sorted_indices], state[1][:, packed.sorted_indices])
        packed_h, hidden_LBN, cell_LBN = torch.lstm(
            packed.data, packed.batch_sizes, state, weights, True, self.layers, 0.0, self.training, False
        )
        return packed_h, hidden_LBN[:, packed.unsorted_indices], cell_LBN[:, packed.unsorted_indices]

    def initialize(self, reach: float) -> None:
        """Draw all parameters from U(-reach, reach)."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -reach, reach)


class LSTMState:
    """The state of the layers after the tokens so far; a model's call reads it and writes it.

    Attributes:
        hidden: the output of each layer, a tensor of shape (B, N) a layer, without gradients: a call does not reach
            back into the one before.
        cell: the cell of each layer, likewise.
    """

    def __init__(self, hidden: list[Tensor], cell: list[Tensor]) -> None:
        self.hidden, self.cell = hidden, cell


class LSTMLanguageModel(LanguageModel):
    """An LSTM language model built from `config`, its weights drawn from torch's current seed."""

    config: LSTMConfig

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_width)
        self.layers = nn.ModuleList(LSTM(inputs, width) for inputs, width in config.layer_shapes)
        self.head = nn.Linear(config.widths[-1], config.vocab_size)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self._initialize()

    def forward(self, tokens_BT: Tensor, *, state: LSTMState | None = None) -> Tensor:
        """Compute logits_BTV of the token after each of tokens_BT (int64).

        state: from `new_state`; tokens_BT then follow those seen before, and the state is moved on.
        """
        return self.head(self._hidden(tokens_BT, state)[1])  # type: ignore[no-any-return]

    def new_state(self, batch: int) -> LSTMState:
        """Make the state before the first token of `batch` sequences: zeros."""
        weight = self.head.weight
        return LSTMState(*([weight.new_zeros(batch, width) for width in self.config.widths] for _ in range(2)))

    def log_prob(self, tokens_BT: Tensor, *, state: LSTMState | None = None) -> Tensor:
        """Compute log p in nats of each token but the first given those before it: shape (B, T - 1), at least fp32.

        state: as in `forward`; it has seen all tokens but the last afterwards.
        """
        return _log_prob(self(tokens_BT[:, :-1], state=state), tokens_BT[:, 1:])

    def loss(
        self, batch: Mapping[str, Tensor], routings: list[Routing] | None = None, *, state: LSTMState | None = None
    ) -> tuple[Tensor, int]:
        """Compute the sum of -log p in nats over the targets of a batch, and their number.

        In training, the penalties on activations, which are means, are added times the number of targets, so that
        dividing by it gives the loss of the paper.

        Args:
            batch: `tokens` (B, T + 1), int64, and where some are padding, which has to stand at the end, `real`, bool.
            routings: there are none to append.
            state: as in `forward`.
        """
        tokens_BT, real_BT = batch["tokens"], batch.get("real")
        raw_BTN, dropped_BTN = self._hidden(tokens_BT[:, :-1], state)
        loss_BT = -_log_prob(self.head(dropped_BTN), tokens_BT[:, 1:])
        targets = loss_BT.numel()
        if real_BT is not None:
            loss_BT = loss_BT.masked_fill(~real_BT[:, 1:], 0)
            targets = int(real_BT[:, 1:].sum())
        loss = loss_BT.sum()
        if self.training and targets:
            loss = loss + targets * self._penalties(raw_BTN, dropped_BTN, None if real_BT is None else real_BT[:, 1:])
        return loss, targets

    def _hidden(self, tokens_BT: Tensor, state: LSTMState | None) -> tuple[Tensor, Tensor]:
        """Compute the last layer's output, before and after dropout."""
        config = self.config
        x_BTN = self._dropout(self._embed(tokens_BT), config.input_dropout)
        carried = state or self.new_state(tokens_BT.shape[0])
        for index, layer in enumerate(self._layers()):
            if index:
                x_BTN = self._dropout(x_BTN, config.layer_dropout)
            before = (carried.hidden[index][None], carried.cell[index][None])
            x_BTN, hidden_1BN, cell_1BN = layer(x_BTN, before, weight_dropout=config.weight_dropout)
            if state:
                state.hidden[index], state.cell[index] = hidden_1BN[0].detach(), cell_1BN[0].detach()
        return x_BTN, self._dropout(x_BTN, config.output_dropout)

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        x_BTD: Tensor = self.embedding(tokens_BT)
        if self.training and self.config.word_dropout:
            # A word that is dropped is dropped wherever it stands.
            kept_V = F.dropout(x_BTD.new_ones(self.config.vocab_size), self.config.word_dropout)
            x_BTD = x_BTD * kept_V[tokens_BT][..., None]
        return x_BTD

    def _dropout(self, x_BTN: Tensor, share: float) -> Tensor:
        if not (self.training and share):
            return x_BTN
        if not self.config.locked:
            return F.dropout(x_BTN, share)
        return x_BTN * F.dropout(x_BTN.new_ones(x_BTN.shape[0], 1, x_BTN.shape[2]), share)

    def _penalties(self, raw_BTN: Tensor, dropped_BTN: Tensor, real_BT: Tensor | None) -> Tensor:
        """Compute alpha mean(h²) of the dropped output plus beta mean((h_t+1 - h_t)²) of the raw one.

        Both are means over real tokens.
        """
        total = raw_BTN.new_zeros((), dtype=torch.promote_types(torch.float32, raw_BTN.dtype))
        if self.config.activation_penalty:
            total = total + self.config.activation_penalty * _mean(dropped_BTN.to(total.dtype).square(), real_BT)
        if self.config.temporal_penalty and raw_BTN.shape[1] > 1:
            change_BTN = raw_BTN.to(total.dtype).diff(dim=1)
            total = total + self.config.temporal_penalty * _mean(
                change_BTN.square(), None if real_BT is None else real_BT[:, 1:]
            )
        return total

    def _layers(self) -> Iterator[LSTM]:
        for layer in self.layers:
            assert isinstance(layer, LSTM)
            yield layer

    def _initialize(self) -> None:
        config = self.config
        for matrix in (self.embedding.weight, self.head.weight):
            nn.init.uniform_(matrix, -config.init_range, config.init_range)
        nn.init.zeros_(self.head.bias)
        for layer, width in zip(self._layers(), config.widths, strict=True):
            layer.initialize(config.recurrent_init_range or 1 / math.sqrt(width))


def _log_prob(logits_BTV: Tensor, target_BT: Tensor) -> Tensor:
    return -token_loss(logits_BTV.flatten(0, 1), target_BT.flatten()).view(target_BT.shape)


def _mean(values_BTN: Tensor, real_BT: Tensor | None) -> Tensor:
    if real_BT is None:
        return values_BTN.mean()
    # A batch of sequences of one token has no change from token to token.
    count = real_BT.sum().clamp(min=1) * values_BTN.shape[-1]
    return values_BTN.masked_fill(~real_BT[..., None], 0).sum() / count
