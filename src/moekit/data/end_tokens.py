"""Tokens that end an answer by their texts, for files that do not name all of them.

The rules are llama.cpp's (src/llama-vocab.cpp, `special_eog_ids`): such a token ends an answer whatever kind it is
stored as.
"""

from collections.abc import Mapping

_ENDS = {
    *(
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "[e~[",
    ),
}
# Of code models: padding, and what stands between repositories and files. The first of each that is there counts.
_BETWEEN_FILES = (
    ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    ("<|file_sep|>",),
)
# A text that is no end where all of these are tokens, too.
_NO_END = (
    ("<|end|>", ("<|return|>", "<|call|>")),
    ("<|end|>", ("<|return|>", "<|calls|>")),
    ("<|end|>", ("<|flush|>", "<|call|>")),
    ("<|end|>", ("<|flush|>", "<|calls|>")),
    ("</s>", ("<|tool_response>",)),
)


def known_ends(ids: Mapping[str, int]) -> frozenset[int]:
    """Find the tokens that end an answer among all tokens, given by their texts."""
    texts = {text for text in _ENDS if text in ids}
    texts |= {found[0] for row in _BETWEEN_FILES if (found := [text for text in row if text in ids])}
    texts -= {text for text, beside in _NO_END if all(other in ids for other in beside)}
    return frozenset(ids[text] for text in texts)
