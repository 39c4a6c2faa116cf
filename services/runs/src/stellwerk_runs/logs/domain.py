"""Log text in chunks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

CHUNK_BYTES = 512 * 1024
# A chunk below this grows with the next text; a larger one stays as it is.
_SMALL_BYTES = 32 * 1024
# Text that follows within this time is not marked with a time of its own.
_MARK_MILLISECONDS = 1_000
_CONTINUATION = bytes(range(0x80, 0xC0))


@dataclass(frozen=True)
class Written:
    """Text and when it was read from the file: milliseconds since 1970-01-01 UTC, 0 for unknown."""

    data: bytes
    time: int = 0


@dataclass(frozen=True)
class LogText:
    """Stored text of one log from byte `offset` on; marks are (offset in the log, time), in order."""

    log: str
    offset: int
    data: bytes
    marks: tuple[tuple[int, int], ...] = ()

    def time_at(self, offset: int) -> int:
        """When the byte at this offset of the log was read, as far as marks tell."""
        return next((time for mark, time in reversed(self.marks) if mark <= offset), 0)

    def character_from(self, offset: int) -> int:
        """The next position from `offset` on where a UTF-8 character begins."""
        start = max(offset - self.offset, 0)
        tail = self.data[start : start + 3]
        return max(offset, self.offset) + len(tail) - len(tail.lstrip(_CONTINUATION))

    def cut(self, start: int, end: int) -> "LogText":
        """The part from byte `start` of this text up to `end`, with the marks that tell of it."""
        first, last = self.offset + start, self.offset + end
        inner = tuple((mark, time) for mark, time in self.marks if first < mark < last)
        return LogText(self.log, first, self.data[start:end], ((first, self.time_at(first)), *inner))

    def after(self, offset: int) -> Iterator["LogText"]:
        """The text from `offset` on, cut where the time changes; each part has one mark."""
        begin = max(offset, self.offset)
        end = self.offset + len(self.data)
        cuts = [begin, *(mark for mark, _ in self.marks if begin < mark < end), end]
        for start, stop in pairwise(cuts):
            data = self.data[start - self.offset : stop - self.offset]
            if data:
                yield LogText(self.log, start, data, ((start, self.time_at(start)),))


@dataclass
class LogEnd:
    """How far a log is stored, and where its last chunk begins."""

    log: str
    size_bytes: int = 0
    tail: int = 0

    @property
    def tail_is_small(self) -> bool:
        """Whether the next text goes into the last chunk."""
        return 0 < self.size_bytes - self.tail < _SMALL_BYTES

    def append(self, parts: Sequence[Written], tail: LogText | None) -> list[LogText]:
        """Counts the text in and returns the chunks to store, the extended tail first."""
        begin = self.tail if tail is not None else self.size_bytes
        marks = list(tail.marks) if tail is not None else []
        position = self.size_bytes
        for part in parts:
            if not marks or not 0 <= part.time - marks[-1][1] < _MARK_MILLISECONDS:
                marks.append((position, part.time))
            position += len(part.data)
        data = b"".join([tail.data if tail is not None else b"", *(part.data for part in parts)])
        whole = LogText(self.log, begin, data, tuple(marks))
        chunks = [whole.cut(start, start + CHUNK_BYTES) for start in range(0, len(data), CHUNK_BYTES)]
        self.size_bytes = begin + len(data)
        self.tail = chunks[-1].offset
        return chunks
