"""The text of tokens as they come: whole characters only, at a cost for each token that does not grow."""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
_ANCHOR = "a"
# An unfinished character has at most three bytes, and each token at least one.
_UNFINISHED = 3
_AT_MOST_HELD = 32


class TextStream:
    """Turns ids into text, piece by piece; the pieces add up to what `decode` gives for all of them as a continuation.

    A tokenizer's bytes need not end where characters do: tokens are held back while their text ends in a replacement
    character that the next one may complete. Whatever came before the tokens held is finished, so that only they are
    decoded at each step. They are decoded behind an ordinary token, because at the beginning of a text some decoders
    (SentencePiece's) drop a space.

    The one difference to decoding all at once: where bytes that are no text follow others directly, a decoder with
    byte tokens (`<0xE4>`) replaces them all; here characters that were finished before stay.
    """

    def __init__(self, encode: Callable[[str], list[int]], decode: Callable[[Sequence[int]], str]) -> None:
        self._decode_all = decode
        self._anchor = list(encode(_ANCHOR))
        self._anchor_text = decode(self._anchor)
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """Give the text that is certain once this token is there."""
        self._held.append(token)
        text = self._decode(self._held)
        if not text.endswith(_REPLACEMENT):
            self._held = []
            return text
        if not self._decode([token]):
            self._held.pop()  # a special token: whatever it stands between, it adds nothing
            return ""
        return self._release(text) if len(self._held) > _UNFINISHED else ""

    def finish(self) -> str:
        """Give the text of the tokens held back, at the end."""
        held, self._held = self._held, []
        return self._decode(held)

    def _release(self, text: str) -> str:
        """Give the text before the latest border between tokens that lies in no character.

        A border lies in none exactly if both sides, decoded each for itself, give the whole.
        """
        for border in range(len(self._held) - 1, 0, -1):
            done, rest = self._decode(self._held[:border]), self._decode(self._held[border:])
            if done + rest == text:
                self._held = self._held[border:]
                return done
        return self.finish() if len(self._held) >= _AT_MOST_HELD else ""

    def _decode(self, ids: list[int]) -> str:
        return self._decode_all(self._anchor + ids).removeprefix(self._anchor_text)
