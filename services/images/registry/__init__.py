"""The registry client: it resolves names, fetches and pushes manifests and blobs. It has no gRPC and no protobuf;
aiohttp is in three files. This one imports none of them: readers of settings need only hosts.py and what is below it.

::

    async with Registry(Hosts.of_config(tables, file)) as registry:     # one for the process
        client = registry.client(first_of(asked_of_the_caller, docker_config))
        root = await client.resolve("docker.io/library/busybox:latest")
        data = await client.manifest("docker.io/library/busybox:latest", root)
        async with client.fetch("docker.io/library/busybox:latest", layer) as body:
            async for chunk in body: ...

The files, from the bottom up:

    accept.py, limits.py           the media types that are asked for; the bytes of an answer that are read
    ../registry_timeouts.py        every time and count, with its reason; it is not here, since readers of settings
                                   need no HTTP
    ../waits.py                    what a transfer waits for, for its trace and its client
    host.py, hosts_toml.py, cri_config.py, hosts.py
                                   the hosts that are asked: certs.d, config.toml, defaults; config_check.py checks them
    credentials.py, challenge.py, auth.py
                                   the credentials, the challenges of hosts, tokens
    request_ids.py, failure.py, host_memory.py
                                   failures, and what is remembered of each host
    response_head.py, response_parser.py
                                   the answers that Go accepts
    content_encoding.py            compressed bodies
    trace.py, http_debug.py, proxy.py, transport.py
                                   HTTP
    endpoint.py                    a host as one pull sees it: authorization, redirects, and where secrets may go
    failover.py                    several hosts, several times
    resolve.py, download.py, upload.py, client.py
                                   the operations; ../distribution/fetcher.py stores blobs in the node

Deliberate differences from containerd: a dead mirror costs its dial timeout once, not for each blob; a body that breaks
continues at its byte; a header of hosts.toml is never sent to the target of a redirect; pauses between attempts grow
and are random; a manifest of more than 4 MiB is refused from every host; a hosts.toml that cannot be parsed is an error
and is not skipped.
"""
