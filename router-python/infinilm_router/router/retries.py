"""How many retries there may be."""


class RetryBudget:
    """Keeps retries from multiplying load on a bad day (Envoy's retry budget, tower's TpsBudget).

    Over a sliding window of 10 to 20 s, retries may be a fifth of the requests, or three a second.
    """

    WINDOW = 10.0
    SHARE = 0.2
    FLOOR = 3 * WINDOW

    def __init__(self) -> None:
        self.requests = 0  # of this window, without retries; counted by who starts them
        self._last_requests = 0
        self._started = 0.0
        self._retries = [0, 0]  # this window's, last window's

    def take(self, now: float) -> bool:
        """Count a retry and return True when the budget allows one more."""
        if now - self._started >= self.WINDOW:
            recent = now - self._started < 2 * self.WINDOW
            self._last_requests, self.requests = self.requests if recent else 0, 0
            self._retries = [0, self._retries[0] if recent else 0]
            self._started = now
        if sum(self._retries) >= max(
            self.FLOOR, self.SHARE * (self.requests + self._last_requests)
        ):
            return False
        self._retries[0] += 1
        return True
