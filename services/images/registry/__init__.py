"""The registry client: resolving names, fetching and pushing manifests and blobs. No gRPC and no protobuf here; aiohttp
in three files.

::

    async with Registry(Hosts.of_config(tables, file)) as registry:     # one for the process
        client = registry.client(first_of(asked_of_the_caller, docker_config))
        root = await client.resolve("docker.io/library/busybox:latest")
        data = await client.manifest("docker.io/library/busybox:latest", root)
        async with client.fetch("docker.io/library/busybox:latest", layer) as body:
            async for chunk in body: ...

From the bottom up:

    accept.py, limits.py           which media types are asked for; how many bytes of an answer are read
    ../registry_timeouts.py        every number that is a time or a count, with its reason; not here, since whoever
    reads settings needs no HTTP
    host.py, hosts_toml.py, cri_config.py, hosts.py    where it is asked for: certs.d, config.toml, defaults;
    config_check.py looks at them all
    credentials.py, challenge.py, auth.py       who we are, what the host wants to see, tokens
    failure.py, host_memory.py     what goes wrong, and what is remembered of each host
    response_head.py, response_parser.py    what Go takes for an answer
    content_encoding.py            bodies that come compressed
    trace.py, http_debug.py, proxy.py, transport.py    HTTP
    endpoint.py                    a host as one pull sees it: authorization and redirects, and where secrets may go
    failover.py                    several hosts, several times
    resolve.py, download.py, upload.py, client.py    what it is all for; that a blob lands in the node is done by
    ../distribution/fetcher.py

What differs from containerd, on purpose: a dead mirror costs its dial timeout once, not for each blob; a body that
breaks goes on at its byte; a header of hosts.toml is never sent to where a host redirects; pauses between tries grow
and are random; a manifest of more than 4 MiB is refused whoever serves it; a hosts.toml that cannot be understood is
not passed over.
"""

from services.images.registry.client import Client, Registry
from services.images.registry.credentials import Credentials, DockerConfig, Source, first_of
from services.images.registry.download import Body, NoParts, WrongBytes
from services.images.registry.host_memory import HostMemory, HostState
from services.images.registry.hosts import Hosts
from services.images.registry.upload import Pushed
from services.images.registry_timeouts import Retry, Timeouts

__all__ = [
    "Body",
    "Client",
    "Credentials",
    "DockerConfig",
    "HostMemory",
    "HostState",
    "Hosts",
    "NoParts",
    "Pushed",
    "Registry",
    "Retry",
    "Source",
    "Timeouts",
    "WrongBytes",
    "first_of",
]
