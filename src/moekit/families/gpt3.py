"""GPT-3's published configurations: GPT-2's kind, with full and banded attention in turn and heads of their own width.

Its weights are unpublished, and so is the width of the band: 256 here, which is GPT-Neo's, a re-creation. Where the
table's width is not heads times head width (1.3B, 13B) both are as printed.
"""

from moekit.families.family import Preset
from moekit.families.gpt2 import gpt2

_BAND = 256
_SOURCE = "arXiv 2005.14165, table 2.1; the band's width is unpublished"


def _preset(layers: int, width: int, heads: int, head_width: int, parameters: float) -> Preset:
    config = gpt2(layers=layers, width=width, heads=heads, head_width=head_width, context=2048, windows=(None, _BAND))
    return Preset(config=config, source=_SOURCE, parameters=parameters)


PRESETS = {
    "gpt3-125m": _preset(12, 768, 12, 64, 125e6),
    "gpt3-350m": _preset(24, 1024, 16, 64, 356e6),
    "gpt3-760m": _preset(24, 1536, 16, 96, 760e6),
    "gpt3-1.3b": _preset(24, 2048, 24, 128, 1.3e9),
    "gpt3-2.7b": _preset(32, 2560, 32, 80, 2.7e9),
    "gpt3-6.7b": _preset(32, 4096, 32, 128, 6.7e9),
    "gpt3-13b": _preset(40, 5140, 40, 128, 13.0e9),
    "gpt3-175b": _preset(96, 12_288, 96, 128, 175.0e9),
}
