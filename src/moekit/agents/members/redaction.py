"""Keys never leave this process but in the header of a request, whatever a server sends back."""

_INSTEAD = "[key]"


class Redactor:
    """Takes a key out of text that comes whole, or out of text that comes in pieces. key: None: there is none."""

    def __init__(self, key: str | None) -> None:
        self._key = key or None
        self._held = ""

    def whole(self, text: str) -> str:
        """Take the key out of a whole text."""
        return text if self._key is None else text.replace(self._key, _INSTEAD)

    def piece(self, text: str) -> str:
        """Give what can be passed on after another piece: an end that may be the beginning of the key waits."""
        if self._key is None:
            return text
        text = self.whole(self._held + text)
        longest = min(len(self._key) - 1, len(text))
        held = next((n for n in range(longest, 0, -1) if self._key.startswith(text[-n:])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """Give what still waited when the pieces ended."""
        held, self._held = self._held, ""
        return held
