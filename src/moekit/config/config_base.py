"""The base of all configuration classes, and the bounds that they share."""

from typing import Annotated

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
    """Base of all configuration classes: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
