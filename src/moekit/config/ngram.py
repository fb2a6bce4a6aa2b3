"""The n-gram model's configuration."""

from typing import Annotated, Literal

from pydantic import Field

from moekit.config.config_base import Config


class NGramConfig(Config):
    """Modified interpolated Kneser-Ney over bytes, each document a sentence, or over words, each line a sentence."""

    kind: Literal["ngram"] = "ngram"
    order: Annotated[int, Field(ge=1, le=10)] = 5
    unit: Literal["bytes", "words"] = "bytes"
