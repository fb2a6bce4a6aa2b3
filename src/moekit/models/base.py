"""What every language model made of torch modules has. B batch, T tokens."""

from pathlib import Path

from torch import Tensor, nn

from moekit.config import Config
from moekit.models.folder import write_model


class LanguageModel(nn.Module):
    """A model that gives text a probability, and can be saved.

    origin: the folder it was loaded from, whose tokenizer and further settings `save` carries over.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.origin: Path | None = None

    def log_prob(self, tokens_BT: Tensor) -> Tensor:
        """log p in nats of each token but the first, shape (B, T - 1), at least fp32.

        Given those before it, for a causal model; a subclass that means something else by it says so.
        """
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write a Hugging Face folder of the family it came from, or of the first that can say its configuration.

        Raises UsageError where `path` holds something already, MoekitError where the disk is full; what is not complete
        never stands under its name.
        """
        write_model(self, self.config, Path(path), self.origin)
