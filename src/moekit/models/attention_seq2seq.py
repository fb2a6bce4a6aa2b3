"""Bahdanau's model: gated recurrent units that attend to the source as they write the target.

B batch, S source tokens, T target tokens, D embedding width, N width, C context width (2 N with attention, else N),
A alignment width, M maxout width, V target vocabulary.
"""

import torch
from torch import Tensor, nn

from moekit.config.seq2seq import GRUSeq2SeqConfig
from moekit.models.seq2seq import Seq2Seq, State


class GatedUnit(nn.Module):
    """A gated recurrent unit with the gates of Bahdanau et al. (appendix A.1.1).

    s' = (1 - z) s + z tanh(x_s + U (r s)), with z, r = sigmoid(x_zr + U_zr s). The reset gate r acts before the
    recurrent matrix: torch.nn.GRU multiplies first and resets afterwards, which is another function, and it calls 1 - z
    what is z here. `recurrent` has rows of z, of r, then of the candidate; x has the same order.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.recurrent = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x_BN3: Tensor, s_BN: Tensor) -> Tensor:
        """Compute the state after a step that takes in x."""
        width, weight = self.width, self.recurrent.weight
        x_BN2, x_BN = x_BN3[..., : 2 * width], x_BN3[..., 2 * width :]
        z_BN, r_BN = (x_BN2 + nn.functional.linear(s_BN, weight[: 2 * width])).sigmoid().chunk(2, -1)
        candidate_BN = (x_BN + nn.functional.linear(r_BN * s_BN, weight[2 * width :])).tanh()
        return torch.lerp(s_BN.to(candidate_BN.dtype), candidate_BN, z_BN)


class GRUSeq2Seq(Seq2Seq):
    """RNNsearch, or RNNencdec where the configuration has no attention; weights drawn from torch's current seed.

    With s the state, y the token before and c the context (appendix A.1.2, A.2.1 and A.2.2):
    c_i = sum_j softmax_j(v tanh(W_a s_{i-1} + U_a h_j)) h_j over the source's states h_j, forward beside backward;
    p(token i) = softmax(W_o maxout(U_o s_{i-1} + V_o E y_{i-1} + C_o c_i)), maxout the larger of each two neighbours;
    s_i = GRU(W E y_{i-1} + C c_i, s_{i-1}), s_0 = tanh(W_s h_1) with h_1 the backward state at the first token.
    Without attention the encoder's last forward state is all contexts, and takes the place of h_1.
    """

    config: GRUSeq2SeqConfig

    def __init__(self, config: GRUSeq2SeqConfig) -> None:
        super().__init__(config)
        embedding, width, context = config.embedding_width, config.width, config.context_width
        self.source_embedding = nn.Embedding(config.source_vocab_size, embedding)
        self.target_embedding = nn.Embedding(config.target_vocab_size, embedding)
        directions = 2 if config.attention else 1
        self.encoder_inputs = nn.ModuleList(nn.Linear(embedding, 3 * width) for _ in range(directions))
        self.encoder_units = nn.ModuleList(GatedUnit(width) for _ in range(directions))
        self.start = nn.Linear(width, width)
        self.decoder_input = nn.Linear(embedding, 3 * width)
        self.decoder_context = nn.Linear(context, 3 * width, bias=False)
        self.decoder_unit = GatedUnit(width)
        if config.attention:
            self.align_state = nn.Linear(width, config.alignment_width, bias=False)
            self.align_source = nn.Linear(context, config.alignment_width, bias=False)
            self.align_score = nn.Linear(config.alignment_width, 1, bias=False)
        self.maxout_state = nn.Linear(width, 2 * config.maxout_width)
        self.maxout_token = nn.Linear(embedding, 2 * config.maxout_width, bias=False)
        self.maxout_context = nn.Linear(context, 2 * config.maxout_width, bias=False)
        self.head = nn.Linear(config.maxout_width, config.target_vocab_size)
        self._initialize()

    def encode(self, source_BS: Tensor, source_real_BS: Tensor | None = None) -> State:
        """Compute s_BN, then, with attention, h_BSC, U_a h (B, S, A) and which are real; without it, context_BC."""
        if source_real_BS is None:
            source_real_BS = torch.ones_like(source_BS, dtype=torch.bool)
        if not source_real_BS.any(1).all():
            raise ValueError("a source has no real token")
        x_BSD = self.source_embedding(source_BS)
        states = []
        for index, (inputs, unit) in enumerate(zip(self.encoder_inputs, self.encoder_units, strict=True)):
            states.append(_run(unit, inputs(x_BSD), source_real_BS, backwards=index == 1))
        if not self.config.attention:
            last_BN = states[0][:, -1]
            return self.start(last_BN).tanh(), last_BN
        h_BSC = torch.cat(states, -1)
        return self.start(states[1][:, 0]).tanh(), h_BSC, self.align_source(h_BSC), source_real_BS

    def decode(self, target_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Compute logits_BTV after each of target_BT, and the state after the last."""
        y_BTD = self.target_embedding(target_BT)
        x_BTN3 = self.decoder_input(y_BTD)
        s_BN, *source = state
        before, contexts = [], []
        for x_BN3 in x_BTN3.unbind(1):
            context_BC = self._context(s_BN, source)
            before.append(s_BN)
            contexts.append(context_BC)
            s_BN = self.decoder_unit(x_BN3 + self.decoder_context(context_BC), s_BN)
        # Outputs don't reach back into the recurrence: all steps at once.
        s_BTN, context_BTC = torch.stack(before, 1), torch.stack(contexts, 1)
        deep_BTM2 = self.maxout_state(s_BTN) + self.maxout_token(y_BTD) + self.maxout_context(context_BTC)
        deep_BTM = deep_BTM2.unflatten(-1, (-1, 2)).amax(-1)
        return self.head(deep_BTM), (s_BN, *source)

    def _context(self, s_BN: Tensor, source: list[Tensor]) -> Tensor:
        if not self.config.attention:
            return source[0]
        h_BSC, key_BSA, real_BS = source
        score_BS: Tensor = self.align_score((self.align_state(s_BN)[:, None] + key_BSA).tanh())[..., 0]
        score_BS = score_BS.to(torch.promote_types(torch.float32, score_BS.dtype))
        weight_BS = score_BS.masked_fill(~real_BS, -torch.inf).softmax(-1).to(h_BSC.dtype)
        return (weight_BS[:, None] @ h_BSC)[:, 0]

    def _initialize(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name == "align_score.weight":
                nn.init.zeros_(parameter)
            elif "recurrent" in name:
                for matrix in parameter.detach().chunk(3):
                    nn.init.orthogonal_(matrix)
            else:
                nn.init.normal_(parameter, std=0.001 if name.startswith("align") else 0.01)


def _run(unit: nn.Module, x_BSN3: Tensor, real_BS: Tensor, *, backwards: bool) -> Tensor:
    """Compute the states after each token, (B, S, N), from zero on; padding leaves the state as it is."""
    s_BN = x_BSN3.new_zeros(x_BSN3.shape[0], x_BSN3.shape[2] // 3)
    steps = list(zip(x_BSN3.unbind(1), real_BS[..., None].unbind(1), strict=True))
    states = []
    for x_BN3, real_B1 in reversed(steps) if backwards else steps:
        s_BN = torch.where(real_B1, unit(x_BN3, s_BN), s_BN)
        states.append(s_BN)
    return torch.stack(states[::-1] if backwards else states, 1)
