"""The base class of every language model made of torch modules. B batch, T tokens."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from moekit.config import Config
from moekit.models.folder import write_model
from moekit.moe import MoELayer, Routing


def is_bias(name: str) -> bool:
    """Tell whether a parameter is a bias, a matrix of them for experts: it starts at 0 and does not decay."""
    return name.endswith(("bias", "_bias_EG", "_bias_ED"))


class LanguageModel(nn.Module):
    """A model that gives text a probability, and can be saved.

    Attributes:
        config: its configuration.
        origin: the folder it was loaded from, whose tokenizer and further settings `save` carries over.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.origin: Path | None = None

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens; None where there is no limit."""
        return getattr(self.config, "context", None)

    @property
    def moe_layers(self) -> list[MoELayer]:
        """The layers that have experts, in the order in which their Routings come."""
        return [module for module in self.modules() if isinstance(module, MoELayer)]

    @property
    def moe_places(self) -> list[int]:
        """The indices of the layers with experts among the model's layers, or 0, 1, … where there is no such order."""
        return list(range(len(self.moe_layers)))

    def log_prob(self, tokens_BT: Tensor) -> Tensor:
        """Compute log p in nats of each token but the first, shape (B, T - 1), at least fp32.

        It is given those before it, for a causal model; a subclass that means something else by it says so.
        """
        raise NotImplementedError

    def loss(self, batch: Mapping[str, Tensor], routings: list[Routing] | None = None) -> tuple[Tensor, int]:
        """Compute the sum of the objective's loss in nats over the targets of a batch, and their number.

        Args:
            batch: a batch as the objective of moekit.data makes it.
            routings: a list that gets the Routing of each MoE layer appended.
        """
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write a Hugging Face folder of the family it came from, or of the first that can say its configuration.

        What is not complete never stands under its name.

        Raises:
            UsageError: where `path` holds something already.
            MoekitError: where the disk is full.
        """
        write_model(self, self.config, Path(path), self.origin)
