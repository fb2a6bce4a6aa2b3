"""The mixture-of-experts layer: router, experts, and the dense branch beside them."""

from torch import Tensor, nn

from moekit.config import MoEConfig
from moekit.kernels.backends import Backend
from moekit.moe.experts import Experts
from moekit.moe.routers import new_router
from moekit.moe.routing import RouterInput, Routing
from moekit.nn import FeedForward


class MoELayer(nn.Module):
    """A layer with experts: y = routed(x), or that with a dense branch beside it, as configured.

    `shared` adds shared(x); `gated_shared` adds that times sigmoid(w x); `residual` mixes: c = softmax(W x + b) in two
    values, y = c_0 · routed(x) + c_1 · branch(x) (Residual-MoE, arXiv 2201.05596, section 4.1.1, as DeepSpeed computes
    it).

    Args:
        width: the width of the model, D.
        config: the configuration.
        vocab_size: the model's vocabulary, for a router that hashes token ids.
        backend: the kernels that compute the experts.
    """

    def __init__(self, width: int, config: MoEConfig, vocab_size: int, backend: Backend = "fastest") -> None:
        super().__init__()
        self.config = config
        self.router = new_router(width, config.experts, config.router, vocab_size)
        self.experts = Experts(width, config, backend)
        self.branch = FeedForward(width, config.dense_branch) if config.branch_width else None
        self.mixing = nn.Linear(width, 2) if config.branch == "residual" else None
        self.branch_gate = nn.Linear(width, 1, bias=False) if config.branch == "gated_shared" else None

    def forward(self, x_BTD: Tensor, given: RouterInput | None = None) -> tuple[Tensor, Routing]:
        """Compute y of the shape of x, and what the router decided for its tokens in row-major order.

        given: what some routers need beside x, for the tokens in the same order.
        """
        x_TD = x_BTD.flatten(0, -2)
        routing = self.router(x_TD, given)
        y_TD = self.experts(x_TD, routing.assignments)
        if self.branch is not None:
            branch_TD = self.branch(x_TD)
            if self.mixing is not None:
                share_T2 = self.mixing(x_TD).softmax(-1)
                y_TD = share_T2[:, :1] * y_TD + share_T2[:, 1:] * branch_TD
            elif self.branch_gate is not None:
                y_TD = y_TD + self.branch_gate(x_TD).sigmoid() * branch_TD
            else:
                y_TD = y_TD + branch_TD
        return y_TD.view(x_BTD.shape), routing
