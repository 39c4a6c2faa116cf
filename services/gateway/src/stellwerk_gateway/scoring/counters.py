"""What the router has counted, by deployment; plain numbers, so that counting costs nothing.

Each process counts for itself from its start; sums over processes are for who reads them.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# Upper bounds in seconds, those of OpenTelemetry's `http.server.request.duration`; one more takes the rest.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
# The client hung up before it was answered; nginx's number for it.
CLIENT_GONE = 499


@dataclass
class Counters:
    """Of one deployment, or of an endpoint's requests that reached none."""

    # Answered requests by HTTP status (gRPC: the status that stands for the code).
    codes: Counter[int] = field(default_factory=Counter)
    # Seconds from the end of the request's head to the end of the answer, by bucket of BOUNDS.
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0
    retries: int = 0
    ejections: int = 0
    mirrored: int = 0
    mirror_dropped: int = 0
    # How often requests waited because no replica ran, and the seconds until one was ready, together.
    cold_starts: int = 0
    cold_start_seconds: float = 0.0

    def count(self, status: int, seconds: float) -> None:
        """One request has ended."""
        self.codes[status] += 1
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "requests": sum(self.codes.values()),
            "codes": {str(code): number for code, number in sorted(self.codes.items())},
            "duration": {
                "bounds_seconds": BOUNDS,
                "buckets": self.buckets,
                "sum_seconds": round(self.seconds, 6),
            },
            "retries": self.retries,
            "ejections": self.ejections,
            "mirrored": self.mirrored,
            "mirror_dropped": self.mirror_dropped,
            "cold_starts": self.cold_starts,
            "cold_start_seconds": round(self.cold_start_seconds, 3),
        }
