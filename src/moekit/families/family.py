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
        read: reads our configuration from settings in which every key of `defaults` stands; it raises what Settings
            raises. Whoever has a config.json calls `config`.
        write: writes the settings of config.json for a configuration of ours, or gives None where the family cannot say
            it: `read` of what it gives has to be the configuration again.
        layout: the stored tensors of a model of that configuration; None where each of the model's own tensors is
            stored under its own name.
        other_layouts: the same model under the names that some folders have instead; what is written has those of
            `layout`, unless it comes from such a folder.
        defaults: what its class in transformers (5.23) takes a key that is missing in config.json to be; None where it
            follows from other keys.
        nulls: what a key that is null is there; those that are not listed may not be null.
        aliases: other names of its keys (transformers' attribute_map).
        leftover: tells whether a tensor of that name is no part of the model, though files hold it.
        renamed: gives the name in the layout of a stored tensor, where old files have another.
    """

    model_type: str
    architecture: str
    read: Callable[[Settings], Config]
    write: Callable[[Any], dict[str, Any] | None]
    layout: Callable[[Any], Sequence[Stored]] | None
    other_layouts: Sequence[Callable[[Any], Sequence[Stored]]] = ()
    presets: Mapping[str, Preset] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    nulls: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    leftover: Callable[[str], bool] = lambda name: False
    renamed: Callable[[str], str] = lambda name: name

    def config(self, settings: Settings) -> Config:
        """Read our configuration from a config.json.

        Raises:
            MoekitError: naming the key that is of the wrong kind, not supported or null.
            ValueError: where values contradict each other or lie out of bounds.
        """
        if settings.values.get("per_layer_config"):
            raise settings.problem("per_layer_config", "changes single layers, which moekit does not read")
        return self.read(settings.completed(self.defaults, self.nulls, self.aliases))
