"""How fast waiting requests get places, as measured."""

WINDOW = 10.0  # seconds


class Pace:
    """How many places a second a model's waiting requests get, over the last 10 to 20 s."""

    def __init__(self, now: float) -> None:
        self._started = now
        self._counts = [0, 0]  # this window's, last window's

    def count(self, now: float) -> None:
        """A place was handed over."""
        self._roll(now)
        self._counts[0] += 1

    def rate(self, now: float) -> float:
        """Places a second; 0 = none was seen."""
        self._roll(now)
        span = now - self._started + (WINDOW if self._counts[1] else 0.0)
        return sum(self._counts) / max(span, 0.001)

    def is_over(self, now: float) -> bool:
        """Whether all of it is too long ago to say anything."""
        return now - self._started >= 2 * WINDOW

    def _roll(self, now: float) -> None:
        if now - self._started >= WINDOW:
            recent = not self.is_over(now)
            self._counts = [0, self._counts[0] if recent else 0]
            self._started = self._started + WINDOW if recent else now
