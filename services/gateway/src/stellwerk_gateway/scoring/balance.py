"""Which deployment answers, and which get a copy. Pure rules."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

_WHOLE = 100


class Split:
    """Whose turn it is at one endpoint.

    Shares follow smooth weighted round-robin (as nginx does it): over any 100 requests each
    deployment gets exactly its percent, spread evenly. Shares of deployments that cannot
    answer go to the others in proportion.
    """

    def __init__(self) -> None:
        self._percents: dict[str, int] = {}
        self._credit: dict[str, int] = {}

    def update(self, percents: Mapping[str, int]) -> None:
        """Replaces the shares; a split of the same deployments goes on where it is."""
        self._percents = {name: percent for name, percent in sorted(percents.items()) if percent > 0}
        if self._percents.keys() != self._credit.keys():
            self._credit = dict.fromkeys(self._percents, 0)

    def shares(self) -> Iterable[str]:
        """The deployments that have a share, by name."""
        return self._percents

    def next(self, able: Sequence[str]) -> str:
        """The one of `able`, all of which have a share, whose turn it is."""
        if len(able) == 1:
            return able[0]
        for name in able:
            self._credit[name] += self._percents[name]
        chosen = max(able, key=self._credit.__getitem__)
        self._credit[chosen] -= sum(self._percents[name] for name in able)
        return chosen

    def sticky(self, able: Sequence[str], value: bytes) -> str:
        """The one of `able` that a value always leads to; few values move when a share changes a little."""
        place = int.from_bytes(blake2b(value, digest_size=8).digest(), "big")
        place %= sum(self._percents[name] for name in able)
        for name in able:
            place -= self._percents[name]
            if place < 0:
                return name
        raise AssertionError("the shares of a split add up to its sum")


class Copies:
    """Decides which requests a deployment gets a copy of: exactly its percent of any 100."""

    def __init__(self) -> None:
        self.percent = 0
        self._credit = 0

    def due(self) -> bool:
        """Whether this request is to be copied."""
        self._credit += self.percent
        if self._credit < _WHOLE:
            return False
        self._credit -= _WHOLE
        return True
