"""The ingress and its replicas in one process, without Ray: a handle that calls the replicas as Ray Serve's would."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from llama3 import Llama
from llama3.ray import replica as replica_module
from llama3.ray.affinity import Holders
from llama3.ray.ingress import Ingress
from llama3.ray.replica import END, Ask, Replica
from llama3.ray.settings import Settings

Dies = Callable[[int, int], bool]  # (number of the call, number of a part) -> whether its replica dies before that


class Death(Exception):
    """What a handle raises when its replica has died."""


class Call:
    """An answer of one replica, which `dies` may break off. (`DeploymentResponseGenerator` in Ray Serve.)"""

    def __init__(self, nth: int, replica: Replica, ask: Ask, dies: Dies, on_end: Callable[[], None]):
        self.parts, self.nth, self.dies, self.on_end = replica.answer(ask), nth, dies, on_end
        self.n, self.dead, self.ended = 0, False, False
        self.waiting: asyncio.Task[Any] | None = None

    async def __anext__(self) -> Any:
        if self.dead or self.dies(self.nth, self.n):
            self.dead = True
            await self.close()
            raise Death()
        self.n += 1
        self.waiting = asyncio.ensure_future(anext(self.parts))
        try:
            part = await self.waiting
        finally:
            self.waiting = None
        if part is END:
            await self.close()
        return part

    async def close(self) -> None:
        if not self.ended:
            self.ended = True
            if self.waiting is not None:
                await asyncio.wait([self.waiting])
            await self.parts.aclose()
            self.on_end()

    def cancel(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
        if not self.ended:
            self.closing = asyncio.ensure_future(self.close())


class Handle:
    """The handle of some replicas, with the choice that AffinityRouter makes."""

    def __init__(self, replicas: list[Replica], slots: int, dies: Dies):
        self.replicas, self.slots, self.dies = {each.name: each for each in replicas}, slots, dies
        self.loads, self.holders, self.asked = dict.fromkeys(self.replicas, 0), Holders(), list[str]()

    def options(self, **_: Any) -> "Handle":
        return self

    def remote(self, ask: Ask) -> Call:
        name = self.holders.choose(ask.keys, self.loads, self.slots, ask.avoid)
        self.holders.put(ask.keys, name)
        self.loads[name] += 1
        self.asked.append(name)

        def end() -> None:
            self.loads[name] -= 1

        return Call(len(self.asked) - 1, self.replicas[name], ask, self.dies, end)


async def service(
    llama: Llama, n: int = 2, dies: Dies = lambda nth, part: False, **settings: Any
) -> tuple[Any, Handle, Ingress]:
    """-> the ingress's application, the handle, and the ingress."""
    given = Settings(quiet=True, **settings)
    names = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replica_module, "own_name", lambda: f"r{next(names)}")
        replicas = []
        for _ in range(n):
            replicas.append(Replica(given, lambda _: llama))
    handle = Handle(replicas, given.slots, dies)
    ingress = Ingress(given, handle)
    return ingress.__serve_build_asgi_app__(), handle, ingress
