"""The way to a cluster: its endpoints, of which one is used until it fails, the login, and the time that all may take.

An endpoint that fails is left alone for a pause, which grows from ``FIRST`` to ``LONGEST`` seconds with the time for
which it has failed. So the end of an election is noticed within a moment of it. While all endpoints pause, calls fail
at once: nobody waits for an etcd that is known to be away, and its absence costs a node an attempt every few seconds.

An endpoint is *proven* by one small question (Maintenance.Status) on each new connection, and again after a call to it
was late. So a write is sent only to a member that has answered, has a leader, and belongs to the cluster; and a member
that was never reached has certainly not done it. If an endpoint does not answer soon, the next one is asked, too: one
that hangs delays nobody for long.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor

from services.etcd import protocol
from services.etcd.answers import Meaning, meaning, short
from services.etcd.config import EtcdConfig
from services.etcd.store import ClusterStatus, MemberStatus, Uncertain
from services.kit import errors, loops, rpc

FIRST, LONGEST = 0.1, 5.0
"""Seconds of the pause after a failure: first, and at most. Half of each is chance: nodes must not come all at once."""
PROOF = 2.0
"""Seconds in which a member must connect, and must answer the question that proves it."""
SOON = 0.2
"""Seconds after which the next endpoint is asked, too."""
LEADER: Final = {"hasleader": "true"}
"""Metadata by which a member without a leader refuses at once. Without it a write waits 7 s, and a watch for ever."""


def pause(failures: int) -> float:
    """Seconds until the next attempt after so many failures."""
    return _some_of(min(FIRST * 2 ** min(failures - 1, 16), LONGEST))


def _some_of(seconds: float) -> float:
    return seconds * (0.5 + random.random() / 2)  # noqa: S311


class Endpoint:
    """One member as the configuration names it."""

    def __init__(self, name: str, config: EtcdConfig) -> None:
        self.name = name
        # grpc-go ends connections that are pinged often
        self.channel = rpc.Channel(config.address_of(name), f"etcd {name}", pings="never")
        self.proven = False
        """Whether it has answered on this connection, and no call was late since."""
        self.why = ""
        """Why it failed last; empty: it works, or was never asked."""
        self.proving: asyncio.Task[bool] | None = None
        """Asks it, for all calls that wait for the answer: whether it can be used."""
        self._since = 0.0
        """When it began to fail; 0: it works."""
        self._until = 0.0

    def pausing(self, now: float) -> float:
        """Seconds for which it is still left alone."""
        return max(self._until - now, 0.0)

    def failed(self, why: str, now: float) -> None:
        """Leave it alone for a while. Calls that fail together count once."""
        self.proven, self.why = False, why
        if now >= self._until:
            self._since = self._since or now
            self._until = now + _some_of(min(max((now - self._since) / 2, FIRST), LONGEST))

    def works(self) -> None:
        self.why, self._since, self._until = "", 0.0, 0.0

    def client(self, service: ServiceDescriptor) -> Any:
        return self.channel.client(service)

    def connected(self) -> bool:
        return self.channel.connected()


class Cluster:
    """The endpoints of one configuration."""

    def __init__(self, config: EtcdConfig) -> None:
        if not config.endpoints:
            raise errors.InvalidArgument("etcd: endpoints: no endpoint is configured")
        self.config = config
        self.endpoints = [Endpoint(name, config) for name in config.endpoints]
        self.id = 0
        """The cluster's id, once a member has said it."""
        self._current = 0
        self._loop = asyncio.get_running_loop()
        self._token = ""
        self._login = asyncio.Lock()
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        asked = [endpoint.proving for endpoint in self.endpoints if endpoint.proving is not None]
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.gather(*(endpoint.channel.close() for endpoint in self.endpoints))

    # -- which endpoint

    def _usable(self, tried: set[Endpoint]) -> list[Endpoint]:
        """The endpoints that do not pause and were not tried, beginning with the one that was used last."""
        now = self._loop.time()
        order = (*self.endpoints[self._current :], *self.endpoints[: self._current])
        return [endpoint for endpoint in order if endpoint not in tried and not endpoint.pausing(now)]

    def _away(self) -> errors.Unavailable:
        now = self._loop.time()
        each = "; ".join(f"{endpoint.name}: {endpoint.why or 'it has not answered yet'}" for endpoint in self.endpoints)
        soonest = min(endpoint.pausing(now) for endpoint in self.endpoints)
        again = f", asked again in {soonest:.1f} s" if soonest else ""
        return errors.Unavailable(f"etcd cannot be used now ({each}{again})")

    def fail(self, endpoint: Endpoint, why: str) -> None:
        """Turn away from an endpoint, for a pause."""
        endpoint.failed(why.removeprefix(f"etcd {endpoint.name}: "), self._loop.time())
        if self.endpoints[self._current] is endpoint:
            self._current = (self._current + 1) % len(self.endpoints)

    async def proof(self, endpoint: Endpoint, seconds: float) -> Any:
        """Ask an endpoint whether it can be used. NodeError, in words, if it cannot."""
        endpoint.connected()  # begins to connect
        try:
            said = await endpoint.client(protocol.MAINTENANCE).Status(protocol.StatusRequest(), timeout=seconds)
        except errors.DeadlineExceeded:
            raise errors.Unavailable(f"it did not answer within {seconds:.2g} s") from None
        except errors.NodeError as error:
            if (trouble := endpoint.channel.trouble) and isinstance(error, errors.Disconnected):
                raise errors.Unavailable(trouble) from None
            raise meaning(error, endpoint.name)[1] from None
        if not self.id:
            self.id = said.header.cluster_id
        elif said.header.cluster_id != self.id:
            raise errors.FailedPrecondition(
                f"it is a member of cluster {said.header.cluster_id:x}, and this process works with {self.id:x}; "
                "restart it if the cluster was made anew"
            )
        if not said.leader:
            raise errors.Unavailable("it has no leader: less than half of the members are there")
        return said

    async def ready(self, tried: set[Endpoint], end: float) -> Endpoint:
        """An endpoint that is proven and was not tried, to which calls may go. Unavailable if there is none by ``end``,
        a time of the loop.
        """
        while True:
            if self._closed:
                raise errors.Cancelled("the connection to etcd is closed")
            usable = self._usable(tried)
            left = end - self._loop.time()
            if not usable or left <= 0:
                raise self._away()
            for endpoint in usable:
                if endpoint.proven:
                    endpoint.proven = endpoint.connected()
                if endpoint.proven:
                    self._current = self.endpoints.index(endpoint)
                    return endpoint
            tried |= await self._prove(usable, left)

    async def _prove(self, endpoints: Sequence[Endpoint], seconds: float) -> set[Endpoint]:
        """Ask whether one of these can be used: the first one, and each next one if that fails or does not answer soon.
        Returns those that cannot, once one can or none.
        """
        end = self._loop.time() + seconds
        asked: dict[asyncio.Task[bool], Endpoint] = {}
        while True:
            more = len(asked) < len(endpoints)
            if more:
                endpoint = endpoints[len(asked)]
                if endpoint.proving is None:
                    endpoint.proving = loops.aside(f"asking etcd {endpoint.name}", self._proved(endpoint))
                asked[endpoint.proving] = endpoint
            open_ = [task for task in asked if not task.done()]
            left = end - self._loop.time()
            if open_ and left > 0:
                await asyncio.wait(
                    open_, timeout=min(SOON, left) if more else left, return_when=asyncio.FIRST_COMPLETED
                )
            failed = {endpoint for task, endpoint in asked.items() if task.done() and not endpoint.proven}
            if len(failed) == len(endpoints) or end <= self._loop.time() or any(each.proven for each in asked.values()):
                return failed

    async def _proved(self, endpoint: Endpoint) -> bool:
        """Ask an endpoint, for all who wait."""
        try:
            await self.proof(endpoint, PROOF)
        except errors.NodeError as error:
            self.fail(endpoint, short(error))
            return False
        else:
            endpoint.proven = True
            return True
        finally:
            endpoint.proving = None

    # -- login

    async def headers(self, endpoint: Endpoint, end: float) -> dict[str, str | bytes]:
        """The metadata of a call: the demand for a leader, and the token of who is logged in."""
        if not self.config.user:
            return dict(LEADER)
        if not self._token:
            async with self._login:
                if not self._token:
                    await self._authenticate(endpoint, end)
        return {**LEADER, "token": self._token}

    async def _authenticate(self, endpoint: Endpoint, end: float) -> None:
        secret = await asyncio.to_thread(self.config.secret)
        request = protocol.AuthenticateRequest(name=self.config.user, password=secret)
        left = max(end - self._loop.time(), 0.1)
        answer = await endpoint.client(protocol.AUTH).Authenticate(request, timeout=left)
        self._token = answer.token

    def forget(self, headers: Mapping[str, str | bytes]) -> None:
        """The token of ``headers`` is not valid any more: the next call logs in again."""
        if headers.get("token") == self._token:
            self._token = ""

    # -- calls

    async def call(
        self, service: ServiceDescriptor, method: str, request: Any, *, writes: bool = False, seconds: float = 0.0
    ) -> Any:
        """Make a unary call at any member, within ``seconds`` (0: the configured time). A read goes on at the next
        member. A write that may have happened is Uncertain, and is not repeated.
        """

        async def unary(endpoint: Endpoint, headers: Mapping[str, str | bytes], left: float) -> Any:
            return await getattr(endpoint.client(service), method)(request, headers=headers, timeout=left)

        return await self._anywhere(unary, seconds, writes=writes)

    async def exchange(self, service: ServiceDescriptor, method: str, request: Any, *, seconds: float = 0.0) -> Any:
        """Like :meth:`call`, for one message each way of a streaming method."""

        async def one(endpoint: Endpoint, headers: Mapping[str, str | bytes], left: float) -> Any:
            async with getattr(endpoint.client(service), method)(headers=headers, timeout=left) as stream:
                await stream.send(request)
                if (answer := await stream.receive()) is None:
                    raise errors.Unavailable("it has ended the call without an answer")
                return answer

        return await self._anywhere(one, seconds, writes=False)

    async def _anywhere(
        self,
        ask: Callable[[Endpoint, Mapping[str, str | bytes], float], Awaitable[Any]],
        seconds: float,
        *,
        writes: bool,
    ) -> Any:
        end = self._loop.time() + (seconds or self.config.timeout)
        tried: set[Endpoint] = set()
        logins = 0
        while True:
            endpoint = await self.ready(tried, end)
            left = max(end - self._loop.time(), 0.05)
            # a hung member must leave time for the others
            attempt = left if writes else max(left / (len(self.endpoints) - len(tried)), min(left, 0.5))
            headers: Mapping[str, str | bytes] = {}
            sent = False
            try:
                headers = await self.headers(endpoint, self._loop.time() + attempt)
                sent = True
                answer = await ask(endpoint, headers, attempt)
            except errors.NodeError as error:
                what, ours = meaning(error, endpoint.name)
                if what is Meaning.LOGIN and logins < 2:
                    logins += 1
                    self.forget(headers)
                    continue
                if what in (Meaning.FINAL, Meaning.LOGIN):
                    raise ours from None
                tried.add(endpoint)
                self.fail(endpoint, short(ours))
                if what is Meaning.UNKNOWN and writes and sent:
                    raise Uncertain(f"etcd may have done it, or not: {short(ours)}") from None
                continue
            endpoint.works()
            return answer

    # -- what is known

    async def status(self) -> ClusterStatus:
        """What each endpoint says, asked beside each other, and whether the quorum answers."""
        members, (available, error, revision) = await asyncio.gather(
            asyncio.gather(*(self._member(endpoint) for endpoint in self.endpoints)), self._quorum()
        )
        return ClusterStatus(
            members=tuple(members), available=available, error=error, cluster=self.id, revision=revision
        )

    async def _quorum(self) -> tuple[bool, str, int]:
        request = protocol.RangeRequest(key=self.config.prefix.encode(), keys_only=True, limit=1)
        try:
            return True, "", (await self.call(protocol.KV, "Range", request)).header.revision
        except errors.NodeError as error:
            return False, short(error), 0

    async def _member(self, endpoint: Endpoint) -> MemberStatus:
        begun = self._loop.time()
        maintenance = endpoint.client(protocol.MAINTENANCE)
        try:
            said = await maintenance.Status(protocol.StatusRequest(), timeout=self.config.timeout)
        except errors.NodeError as error:
            why = endpoint.channel.trouble or short(error)
            return MemberStatus(endpoint=endpoint.name, reachable=False, error=why)
        wrong = list(said.errors)
        if self.id and said.header.cluster_id != self.id:
            wrong.insert(0, f"a member of another cluster ({said.header.cluster_id:x})")
        if not said.leader and not any("no leader" in each for each in wrong):
            wrong.insert(0, "no leader")
        return MemberStatus(
            endpoint=endpoint.name,
            reachable=True,
            error="; ".join(wrong),
            version=said.version,
            leader=bool(said.leader) and said.leader == said.header.member_id,
            learner=said.isLearner,
            size=said.dbSize,
            used=said.dbSizeInUse,
            revision=said.header.revision,
            full=any("NOSPACE" in each for each in said.errors),
            seconds=self._loop.time() - begun,
        )
