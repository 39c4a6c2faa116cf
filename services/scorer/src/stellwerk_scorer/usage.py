"""What a replica uses, for gateways that ask whether it is ready: processor, memory, calls of `run`."""

import json
from collections.abc import Iterable

import psutil


class Usage:
    """Sums since the start of the replica, over the front and all workers that there ever were.

    Processes that user code starts count once they have ended and were waited for.
    """

    def __init__(self, max_batch_size: int = 1) -> None:
        # Calls of `run`, and requests that they had: more than one each where requests are batched.
        self.calls = 0
        self.requests = 0
        # Calls by the power of two that their requests fit in: 1, 2, 4, and so on.
        self._batches = [0] * ((max_batch_size - 1).bit_length() + 1)
        self._max_batch_size = max_batch_size
        self._processes: dict[int, psutil.Process] = {}
        self._cpu_seconds: dict[int, float] = {}

    def called(self, requests: int) -> None:
        """One call of `run` with so many requests."""
        self.calls += 1
        self.requests += requests
        self._batches[(requests - 1).bit_length()] += 1

    @property
    def batches(self) -> dict[int, int]:
        """Calls by the most requests that are counted together, without those that there were none of."""
        bounds = (min(1 << power, self._max_batch_size) for power in range(len(self._batches)))
        return {bound: count for bound, count in zip(bounds, self._batches, strict=True) if count}

    def header(self, pids: Iterable[int]) -> bytes:
        """The line of an answer, with what these processes use now: a JSON object."""
        memory_bytes = 0
        living = set(pids)
        self._processes = {pid: found for pid, found in self._processes.items() if pid in living}
        for pid in living:
            try:
                process = self._processes.setdefault(pid, psutil.Process(pid))
                with process.oneshot():
                    memory_bytes += process.memory_info().rss
                    self._cpu_seconds[pid] = sum(process.cpu_times()[:4])
            except psutil.Error:
                continue  # it has just ended: what it used until the last time stays counted
        document = {
            "cpu_seconds": round(sum(self._cpu_seconds.values()), 2),
            "memory_bytes": memory_bytes,
            "calls": self.calls,
            "requests": self.requests,
            "batches": self.batches,
        }
        return b"x-stellwerk-usage: %b\r\n" % json.dumps(document).encode()
