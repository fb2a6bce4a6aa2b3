"""The base of all configuration classes, and the bounds that they share."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]

# Bounds that no real model meets, so that a hostile file cannot make us build for ever.
Count = Annotated[int, Field(gt=0, le=2**31)]
MAX_LAYERS = 10_000
Layers = Annotated[int, Field(gt=0, le=MAX_LAYERS)]

# Byte-level models: every byte value is a token.
BYTE_VOCAB_SIZE = 256


class Config(BaseModel):
    """Base of all configuration classes: frozen, and an unknown key is an error.

    Attributes:
        also_read: keys that data may have beside the fields, and where; errors tell it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    also_read: ClassVar[Mapping[str, str]] = {}
