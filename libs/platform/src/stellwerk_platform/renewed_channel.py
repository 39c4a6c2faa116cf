"""A channel that changes to each new certificate of this process without dropping a call.

Own code: gRPC's Python client takes its certificate once, when a channel is made. So this makes a
new channel for each certificate; what runs on the old one ends there, and the last call closes it.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from stellwerk_platform.identity import Identity

Make = Callable[[grpc.ChannelCredentials], grpc.aio.Channel]


class _Generation:
    """The channel of one certificate, and how many calls run on it."""

    def __init__(self, number: int, channel: grpc.aio.Channel) -> None:
        self.number = number
        self.channel = channel
        self._running = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    def track(self, call: Any) -> None:
        """Counts a call until it is done."""
        self._running += 1
        call.add_done_callback(self._done)

    def retire(self) -> None:
        """Closes the channel once nothing runs on it."""
        self._retired = True
        self._close_if_idle()

    @property
    def closed(self) -> bool:
        """Nothing runs here any more, and nothing will."""
        return self._closing is not None

    def _done(self, _call: Any) -> None:
        self._running -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._retired and self._running == 0 and self._closing is None:
            self._closing = asyncio.ensure_future(self.channel.close())


class _Method:
    """One method of a stub; each call goes to the newest channel."""

    def __init__(self, channel: "RenewedChannel", kind: str, arguments: Any, options: Any) -> None:
        self._channel = channel
        self._kind = kind
        self._arguments = arguments
        self._options = options
        self._number = 0
        self._callable: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        newest = self._channel.newest()
        if self._number != newest.number:
            self._callable = getattr(newest.channel, self._kind)(*self._arguments, **self._options)
            self._number = newest.number
        call = self._callable(*arguments, **options)
        newest.track(call)
        return call


class RenewedChannel(grpc.aio.Channel):
    """As any channel of grpc.aio."""

    def __init__(self, identity: Identity, make: Make) -> None:
        self._identity = identity
        self._make = make
        self._generations = [self._begin()]

    def _begin(self) -> _Generation:
        number = self._identity.generation
        return _Generation(number, self._make(self._identity.channel_credentials()))

    def newest(self) -> _Generation:
        """The channel with the newest certificate."""
        newest = self._generations[-1]
        if newest.number != self._identity.generation:
            newest.retire()
            newest = self._begin()
            self._generations = [*(g for g in self._generations if not g.closed), newest]
        return newest

    async def __aenter__(self) -> "RenewedChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Closes all that is left; running calls get `grace` seconds, then they are cancelled."""
        await asyncio.gather(*(generation.channel.close(grace) for generation in self._generations))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """That of the newest channel."""
        return self.newest().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Of the newest channel."""
        await self.newest().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Waits for the newest channel."""
        await self.newest().channel.channel_ready()

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """A method of this kind."""
        return _Method(self, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """A method of this kind."""
        return _Method(self, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """A method of this kind."""
        return _Method(self, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """A method of this kind."""
        return _Method(self, "stream_stream", arguments, options)
