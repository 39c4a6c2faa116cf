"""The standard metrics of a run: what its processes use of the node, every few seconds and once at the end.

They go into a write-ahead file beside those of the script and travel with them. Steps are the
seconds since the command began, so that a restarted agent goes on where the last one was.

- `system/cpu_percent`: of one core, all processes of the command together; 200 is two full cores.
- `system/memory_rss_bytes`: resident memory, all processes together.
- `system/disk_read_bytes`, `system/disk_write_bytes`: all processes together, since the command began.
- `system/network_received_bytes`, `system/network_sent_bytes`: of the node without loopback, since an
  agent began to sample.
- `system/gpu_<n>_utilization_percent`, `…_memory_used_bytes`, `…_power_watts`: of the node.
"""

import asyncio
import importlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from stellwerk import wal
from stellwerk_agent.command import Usage

log = logging.getLogger(__name__)
_FIRST_SECONDS = 1.0
_Points = list[tuple[str, float]]


class SystemMetrics:
    """Samples one command; `processes` lists its living processes, `began` is when it began (epoch)."""

    def __init__(
        self, folder: Path, processes: Callable[[], Iterable[psutil.Process]], began: float, gpus: "Gpus"
    ) -> None:
        self._folder = folder
        self._processes = processes
        self._began = began
        self._gpus = gpus
        self._writer: wal.Writer | None = None
        self._cpu_seconds: float | None = None
        self._disk = (0, 0)
        self._network = _network()
        self._sampled = time.time()

    async def run(self, period_seconds: float) -> None:
        """Samples until cancelled; never fails the run."""
        await asyncio.sleep(min(_FIRST_SECONDS, period_seconds))
        while True:
            await asyncio.to_thread(self._sample)
            await asyncio.sleep(period_seconds)

    def finish(self, usage: Usage | None) -> None:
        """The last points: by what the kernel counted for the command, processes that are gone included."""
        if usage is not None:
            disk = (usage.disk_read_bytes, usage.disk_write_bytes)
            self._write(self._cpu(usage.cpu_seconds) + self._totals(disk) + self._gpus.points())
        if self._writer is not None:
            self._writer.close()

    def _sample(self) -> None:
        cpu, memory, read, write = 0.0, 0, 0, 0
        for process in self._processes():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    memory += process.memory_info().rss
                    io = process.io_counters()
            except (psutil.Error, OSError):
                continue  # it has just ended; its parent has its times
            cpu += times.user + times.system + times.children_user + times.children_system
            read, write = read + io.read_bytes, write + io.write_bytes
        points: _Points = [("system/memory_rss_bytes", memory)]
        self._write(points + self._cpu(cpu) + self._totals((read, write)) + self._gpus.points())

    def _cpu(self, seconds: float) -> _Points:
        now = time.time()
        # The first time the whole life of the command counts.
        since = self._began if self._cpu_seconds is None else self._sampled
        used = max(0.0, seconds - (self._cpu_seconds or 0.0))
        self._cpu_seconds, self._sampled = max(seconds, self._cpu_seconds or 0.0), now
        return [("system/cpu_percent", 100 * used / max(now - since, 0.001))]

    def _totals(self, disk: tuple[int, int]) -> _Points:
        # What an orphan used is lost with it; a total never falls.
        self._disk = (max(self._disk[0], disk[0]), max(self._disk[1], disk[1]))
        received, sent = _network()
        return [
            ("system/disk_read_bytes", self._disk[0]),
            ("system/disk_write_bytes", self._disk[1]),
            ("system/network_received_bytes", max(0, received - self._network[0])),
            ("system/network_sent_bytes", max(0, sent - self._network[1])),
        ]

    def _write(self, points: _Points) -> None:
        now = time.time()
        step = max(0, int(now - self._began))
        try:
            if self._writer is None:
                self._writer = _open(self._folder)
            self._writer.append(int(now * 1000), [(name, step, float(value)) for name, value in points])
        except OSError as error:
            log.warning("Standard metrics cannot be written: %s", error)


def _open(folder: Path) -> wal.Writer:
    """A write-ahead file that tells by its name who writes it."""
    writer = wal.Writer(folder)
    os.rename(writer.path, named := writer.path.with_name(f"agent-{writer.path.name}"))
    writer.path = named
    return writer


def _network() -> tuple[int, int]:
    counters = psutil.net_io_counters(pernic=True)
    nics = [counter for name, counter in counters.items() if name != "lo"]
    return sum(nic.bytes_recv for nic in nics), sum(nic.bytes_sent for nic in nics)


class Gpus:
    """The node's NVIDIA GPUs, if nvidia-ml-py is installed and finds any."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            # Optional: most nodes have no GPU.
            pynvml: Any = importlib.import_module("pynvml")
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
            self._nvml = pynvml
        except pynvml.NVMLError as error:
            log.info("No GPU is measured: %s", error)

    def points(self) -> _Points:
        """Three values a GPU; those that a GPU does not tell are left out."""
        points: _Points = []
        for number, handle in enumerate(self._handles):
            readings: list[tuple[str, Callable[[Any], float]]] = [
                ("utilization_percent", lambda h: self._nvml.nvmlDeviceGetUtilizationRates(h).gpu),
                ("memory_used_bytes", lambda h: self._nvml.nvmlDeviceGetMemoryInfo(h).used),
                ("power_watts", lambda h: self._nvml.nvmlDeviceGetPowerUsage(h) / 1000),
            ]
            for name, read in readings:
                try:
                    points.append((f"system/gpu_{number}_{name}", read(handle)))
                except self._nvml.NVMLError:
                    continue
        return points
