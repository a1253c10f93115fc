"""Words before which an answer ends, as it grows piece by piece. Text in, text out."""

from __future__ import annotations

from collections.abc import Sequence


class StopWords:
    """Lets text through up to the first of `words`; what may be the beginning of one is held back."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [word for word in words if word]
        self._held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """What of all that was added can be shown now."""
        if not self._words:
            return text
        if self.found is not None:
            return ""
        self._held += text
        places = [(self._held.find(word), word) for word in self._words if word in self._held]
        if places:
            end, self.found = min(places)
            shown, self._held = self._held[:end], ""
            return shown
        end = len(self._held) - self._possible()
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def finish(self) -> str:
        """What was held back, when nothing follows."""
        rest, self._held = self._held, ""
        return rest

    def cut(self, whole: str) -> str:
        """The whole text as far as it was let through, what is held back included."""
        return whole if self.found is None else whole[: whole.find(self.found)]

    def _possible(self) -> int:
        """Length of the longest end of what is held that a word begins with."""
        longest = max(len(word) for word in self._words) - 1
        ends = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in ends if any(word.startswith(self._held[-n:]) for word in self._words)), 0)
