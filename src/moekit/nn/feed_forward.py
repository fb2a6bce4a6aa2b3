"""The dense feed-forward network (FFN)."""

from torch import Tensor, nn

from moekit.config import DenseConfig
from moekit.kernels.activation import Activation
from moekit.kernels.backends import dense_network
from moekit.kernels.experts_kernel import ExpertWeights


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202), or down(act(up(x))), as the configuration says.

    gate and up are one matrix of 2 F rows, gate first, as in a MoE layer's experts; without a gate, up alone.
    """

    def __init__(self, width: int, config: DenseConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * config.width if config.gated else config.width, bias=config.bias)
        self.activation = Activation(config.activation, config.gated)
        self.down = nn.Linear(config.width, width, bias=config.bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Compute y_TD for any leading shape."""
        weights = ExpertWeights(
            self.gate_up.weight[None],
            self.down.weight[None],
            None if self.gate_up.bias is None else self.gate_up.bias[None],
            None if self.down.bias is None else self.down.bias[None],
        )
        y_TD = dense_network(x_TD.flatten(0, -2), weights, self.activation)
        if y_TD is not None:
            return y_TD.view(x_TD.shape)
        return self.down(self.activation(self.gate_up(x_TD)))  # type: ignore[no-any-return]
