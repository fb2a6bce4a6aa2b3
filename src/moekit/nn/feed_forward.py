"""The dense feed-forward network."""

from torch import Tensor, nn

from moekit.kernels import gated_activation


class GatedFeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)), hidden width F (Shazeer, arXiv 2002.05202, SwiGLU without biases).

    gate and up are one matrix of 2 F rows, gate first, as in a MoE layer's experts.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """y_TD for any leading shape."""
        return self.down(gated_activation(self.gate_up(x_TD)))  # type: ignore[no-any-return]
