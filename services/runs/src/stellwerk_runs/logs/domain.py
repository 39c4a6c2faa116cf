"""Log text in chunks."""

from dataclasses import dataclass

CHUNK_BYTES = 512 * 1024
# A chunk below this grows with the next text; a larger one stays as it is.
_SMALL_BYTES = 32 * 1024


@dataclass(frozen=True)
class LogText:
    """Stored text of one log from byte `offset` on."""

    log: str
    offset: int
    data: bytes


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

    def append(self, data: bytes, tail: LogText | None) -> list[LogText]:
        """Counts the text in and returns the chunks to store, the extended tail first."""
        begin = self.tail if tail is not None else self.size_bytes
        if tail is not None:
            data = tail.data + data
        chunks = [
            LogText(self.log, begin + start, data[start : start + CHUNK_BYTES])
            for start in range(0, len(data), CHUNK_BYTES)
        ]
        self.size_bytes = begin + len(data)
        self.tail = chunks[-1].offset
        return chunks
