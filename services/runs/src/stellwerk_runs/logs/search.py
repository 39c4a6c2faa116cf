"""Finds lines in a log that comes in chunks, whatever the chunks cut: lines, or characters."""

from collections.abc import Iterator
from dataclasses import dataclass

from stellwerk_protos.runs.v1.logs_pb2 import LogLine
from stellwerk_runs.logs.domain import LogText

TEXT_CHARACTERS = 10_000
# A line without an end is searched in pieces of this size, which overlap by the longest query.
_LONGEST_LINE_BYTES = 1024 * 1024
_OVERLAP_BYTES = 4_096


@dataclass
class LineSearch:
    """Feed it the chunks in order. `position` is where the first line begins that it has not judged."""

    query: str
    position: int

    def __post_init__(self) -> None:
        self._folded = self.query.casefold()
        self._rest = b""
        self._rest_time = 0

    def feed(self, text: LogText) -> Iterator[LogLine]:
        """The lines that hold the query and end in this chunk; `position` moves past each line given."""
        begin = max(self.position + len(self._rest), text.offset)
        data = text.data[begin - text.offset :]
        if not self._rest:
            self._rest_time = text.time_at(begin)
        block, self._rest = self._rest + data, b""
        end = block.rfind(b"\n") + 1
        base, first_time = self.position, self._rest_time
        if self._may_hold(block[:end]):
            for line in self._lines(block[:end]):
                offset, self.position = self.position, self.position + len(line)
                if found := self._judge(line, offset, first_time if offset == base else text.time_at(offset)):
                    yield found
        self.position = base + end
        self._rest = block[end:]
        if end:
            self._rest_time = text.time_at(self.position)
        if len(self._rest) > _LONGEST_LINE_BYTES:
            yield from self._cut()

    def finish(self) -> Iterator[LogLine]:
        """The last line, which has no end."""
        if self._rest and (found := self._judge(self._rest, self.position, self._rest_time)):
            yield found
        self.position += len(self._rest)
        self._rest = b""

    def _cut(self) -> Iterator[LogLine]:
        found = self._judge(self._rest, self.position, self._rest_time)
        self.position += len(self._rest) - _OVERLAP_BYTES
        self._rest = self._rest[-_OVERLAP_BYTES:]
        if found:
            yield found

    def _may_hold(self, block: bytes) -> bool:
        return self._folded in block.decode(errors="replace").casefold()

    def _lines(self, block: bytes) -> Iterator[bytes]:
        start = 0
        while start < len(block):
            end = block.find(b"\n", start) + 1
            yield block[start:end]
            start = end

    def _judge(self, line: bytes, offset: int, time: int) -> LogLine | None:
        text = line.decode(errors="replace").rstrip("\r\n")
        if self._folded not in text.casefold():
            return None
        return LogLine(offset=offset, text=text[:TEXT_CHARACTERS], time=time)
