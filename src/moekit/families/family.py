"""A family of models: published configurations, and how Hugging Face's folders name settings and tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moekit.checkpoint.layout import Stored
from moekit.config import Config
from moekit.families.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published configuration.

    Attributes:
        source: where it is published.
        parameters: the total as published, where it is, for the table that holds ours against it.
        active: the parameters of a token, likewise.
    """

    config: Config
    source: str
    parameters: float | None = None
    active: float | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of folder.

    Attributes:
        model_type: the value in config.json.
        architecture: the name in config.json's `architectures`.
        read: reads our configuration from its settings; it raises what Settings raises.
        write: writes the settings of config.json for a configuration of ours, or gives None where the family cannot say
            it: `read` of what it gives has to be the configuration again.
        layout: the stored tensors of a model of that configuration; None where each of the model's own tensors is
            stored under its own name.
        other_layouts: the same model under the names that some folders have instead; what is written has those of
            `layout`, unless it comes from such a folder.
        ignored: tells whether a tensor of that name is a leftover that carries nothing (old files hold buffers).
        renamed: gives the name in the layout of a stored tensor, where old files have another.
    """

    model_type: str
    architecture: str
    read: Callable[[Settings], Config]
    write: Callable[[Any], dict[str, Any] | None]
    layout: Callable[[Any], Sequence[Stored]] | None
    other_layouts: Sequence[Callable[[Any], Sequence[Stored]]] = ()
    presets: Mapping[str, Preset] = field(default_factory=dict)
    ignored: Callable[[str], bool] = lambda name: False
    renamed: Callable[[str], str] = lambda name: name
