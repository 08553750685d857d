"""The hosts of a namespace: hosts.toml as containerd reads it, Docker's certificate files, the CRI plugin's tables, and
the defaults.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from services.images.registry.credentials import Credentials
from services.images.registry.cri_config import DEFAULT_DIRECTORIES, Registries
from services.images.registry.host import EVERYTHING, TLS, Capability, Host
from services.images.registry.hosts import Hosts
from services.images.registry.hosts_toml import line_of, parse
from services.kit import errors

PULL, RESOLVE, PUSH, REFERRERS = Capability.PULL, Capability.RESOLVE, Capability.PUSH, Capability.REFERRERS


def certs(directory: Path, name: str, text: str) -> Hosts:
    (directory / name).mkdir(parents=True)
    (directory / name / "hosts.toml").write_text(text)
    return Hosts((directory,))


# ------------------------------------------------------------------------------------------ the examples of
# containerd's docs/hosts.md


def test_docs_simple_default(tmp_path: Path) -> None:
    """docker.io's own host comes before its server."""
    hosts = certs(
        tmp_path,
        "docker.io",
        """
server = "https://docker.io"

[host."https://registry-1.docker.io"]
  capabilities = ["pull", "resolve"]
""",
    ).of("docker.io")
    assert hosts == (Host("https", "registry-1.docker.io", "/v2", PULL | RESOLVE), Host("https", "docker.io", "/v2"))
    assert not any(host.is_proxy_for("docker.io") for host in hosts)


def test_docs_local_mirror(tmp_path: Path) -> None:
    """Mirrors are in the order of the file; a certificate's path is relative to it."""
    first, second, server = certs(
        tmp_path,
        "docker.io",
        """
server = "https://registry-1.docker.io"    # Exclude this to not use upstream

[host."https://public-mirror.example.com"]
  capabilities = ["pull"]                  # Requires less trust, won't resolve tag to digest from this host
[host."https://docker-mirror.internal"]
  capabilities = ["pull", "resolve"]
  ca = "docker-mirror.crt"                 # Or absolute path /etc/containerd/certs.d/docker.io/docker-mirror.crt
""",
    ).of("docker.io")
    assert first == Host("https", "public-mirror.example.com", "/v2", PULL)
    assert second == Host(
        "https",
        "docker-mirror.internal",
        "/v2",
        PULL | RESOLVE,
        TLS((str(tmp_path / "docker.io" / "docker-mirror.crt"),)),
    )
    assert server == Host("https", "registry-1.docker.io", "/v2", EVERYTHING)
    assert first.is_proxy_for("docker.io")


def test_docs_default_mirror(tmp_path: Path) -> None:
    """``_default`` is for all namespaces without a directory. The namespace itself is asked after it, unless a server
    is named.
    """
    hosts = certs(tmp_path, "_default", '[host."https://registry.example.com"]\n  capabilities = ["pull", "resolve"]\n')
    assert hosts.of("quay.io") == (
        Host("https", "registry.example.com", "/v2", PULL | RESOLVE),
        Host("https", "quay.io", "/v2", EVERYTHING),
    )
    assert hosts.of("docker.io")[1].host == "registry-1.docker.io"
    (tmp_path / "_default" / "hosts.toml").write_text('server = "https://registry.example.com"')
    assert hosts.of("quay.io") == (Host("https", "registry.example.com", "/v2", EVERYTHING),)


def test_docs_bypass_tls(tmp_path: Path) -> None:
    """An http host with any setting for TLS is tried with TLS first."""
    first, _ = certs(
        tmp_path,
        "docker.io",
        """
server = "https://registry-1.docker.io"

[host."http://192.168.31.250:5000"]
  capabilities = ["pull", "resolve", "push"]
  skip_verify = true
""",
    ).of("docker.io")
    assert first == Host(
        "https", "192.168.31.250:5000", "/v2", PULL | RESOLVE | PUSH, TLS(skip_verify=True), fallback=True
    )


def test_docs_every_key(tmp_path: Path) -> None:
    """The long example at the end of the document, and its fields at the root."""
    text = """
server = "https://docker.io"
capabilities =  ["pull", "resolve", "push"]
ca = ["/etc/certs/test-1-ca.pem", "/etc/certs/special.pem"]
client = [["/etc/certs/client.cert", "/etc/certs/client.key"],["/etc/certs/client.pem", ""]]
skip_verify = false
override_path = true
dial_timeout = "1s"
[header]
  x-custom-1 = ["custom header part a","part b"]
  x-custom-1-2 = "another custom header"

[host."https://mirror.registry"]
  capabilities = ["pull"]
  ca = "/etc/certs/mirror.pem"
  skip_verify = false
  [host."https://mirror.registry".header]
    x-custom-2 = ["value1", "value2"]

[host."https://mirror-bak.registry/us"]
  capabilities = ["pull"]
  skip_verify = true

[host."http://mirror.registry"]
  capabilities = ["pull"]

[host."https://test-1.registry"]
  capabilities = ["pull", "resolve", "push"]
  ca = ["/etc/certs/test-1-ca.pem", "/etc/certs/special.pem"]
  client = [["/etc/certs/client.cert", "/etc/certs/client.key"],["/etc/certs/client.pem", ""]]

[host."https://test-2.registry"]
  client = "/etc/certs/client.pem"

[host."https://test-3.registry"]
  client = ["/etc/certs/client-1.pem", "/etc/certs/client-2.pem"]

[host."https://non-compliant-mirror.registry/v2/upstream"]
  capabilities = ["pull"]
  override_path = true
"""
    pair = (("/etc/certs/client.cert", "/etc/certs/client.key"), ("/etc/certs/client.pem", ""))
    authorities = ("/etc/certs/test-1-ca.pem", "/etc/certs/special.pem")
    assert parse(text, tmp_path) == (
        Host(
            "https",
            "mirror.registry",
            "/v2",
            PULL,
            TLS(("/etc/certs/mirror.pem",), (), skip_verify=False),
            (("x-custom-2", "value1"), ("x-custom-2", "value2")),
        ),
        Host("https", "mirror-bak.registry", "/us/v2", PULL, TLS(skip_verify=True)),
        Host("http", "mirror.registry", "/v2", PULL),
        Host("https", "test-1.registry", "/v2", PULL | RESOLVE | PUSH, TLS(authorities, pair)),
        Host("https", "test-2.registry", "/v2", EVERYTHING, TLS((), (("/etc/certs/client.pem", ""),))),
        Host(
            "https",
            "test-3.registry",
            "/v2",
            EVERYTHING,
            TLS((), (("/etc/certs/client-1.pem", ""), ("/etc/certs/client-2.pem", ""))),
        ),
        Host("https", "non-compliant-mirror.registry", "/v2/upstream", PULL),
        Host(
            "https",
            "docker.io",
            "",
            PULL | RESOLVE | PUSH,
            TLS(authorities, pair, skip_verify=False),
            (
                ("x-custom-1", "custom header part a"),
                ("x-custom-1", "part b"),
                ("x-custom-1-2", "another custom header"),
            ),
            1.0,
        ),
    )


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("plain.test", "https://plain.test/v2"),
        ("plain.test:5000/", "https://plain.test:5000/v2"),
        ("http://plain.test/a/v2/", "http://plain.test/a/v2"),
        ("https://plain.test/a/../b", "https://plain.test/b/v2"),
    ],
)
def test_addresses(tmp_path: Path, key: str, url: str) -> None:
    """The scheme may be missing, and /v2 is added if it is missing."""
    host, _ = parse(f'[host."{key}"]', tmp_path)
    assert f"{host.scheme}://{host.host}{host.path}" == url


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[host."https://a.test"]\ncapabilities = ["pull", "sing"]',
            r'line 2: host."https://a.test".capabilities: "sing" is none of pull',
        ),
        ('[host."https://a.test"]\ncapabilities = "pull"', "not a list"),
        ("ca = 5", "line 1: ca: 5 is neither a string nor a list of strings"),
        ('client = [["a", "b", "c"]]', "client: .* is not a pair"),
        ('dial_timeout = "soon"', "is not a duration"),
        ('traceparent = "yes"', "line 1: traceparent: 'yes' is not true or false"),
        ('skip_verify = "yes"', "skip_verify: 'yes' is not true or false"),
        ("[header]\nx = 1", "line 2: header.x: 1 is neither"),
        ("\nserver = 5", "line 2: server: 5 is not a string"),
        ('[host."https://"]', 'line 1: host."https://": "https://" is not the address of a host'),
        ('server = "https://"', 'line 1: server: "https://" is not the address of a host'),
        ("server = ", "Invalid value"),
    ],
)
def test_errors_in_a_hosts_toml(tmp_path: Path, text: str, words: str) -> None:
    """Line and key are named. No host is asked for that namespace, not even its own: the file may have been written to
    prevent that. Other namespaces are not affected.
    """
    with pytest.raises(ValueError, match=words):
        parse(text, tmp_path)
    hosts = certs(tmp_path, "quay.io", text)
    with pytest.raises(errors.FailedPrecondition, match=f"^{tmp_path}/quay.io/hosts.toml: .*{words}"):
        hosts.of("quay.io")
    assert hosts.of("docker.io")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("server",), 1),
        (("header", "x-a"), 4),
        (("header",), 3),
        (("host", "https://a.test"), 6),
        (("host", "https://a.test", "ca"), 8),
        (("host", "https://a.test", "header", "x-b"), 11),
        (("host", "https://a.test", "client"), 6),
        (("host", "https://b.test", "ca"), 13),
        (("absent",), 1),
    ],
)
def test_the_line_of_a_key(path: tuple[str, ...], line: int) -> None:
    """If the key is missing, the line of its table counts."""
    text = """server = 'x'

[header]  # of the server
  x-a = '1'

[host.'https://a.test']
skip_verify = true
ca = 'x'

[ host . "https://a.test" . header ]
x-b = 1
[host]
'https://b.test'.ca = 1
"""
    assert line_of(text, *path) == line


def test_names_of_directories(tmp_path: Path) -> None:
    """A port may be written with underscores, and that name is looked for first. Of several roots the first that has an
    entry decides.
    """
    for number, name in enumerate(("_default", "a.test:5000", "a.test_5000_")):
        hosts = certs(tmp_path / "1", name, f'server = "https://{number}.test"')
        assert hosts.of("a.test:5000")[0].host == f"{number}.test"
    certs(tmp_path / "2", "a.test", 'server = "https://second.test"')
    assert Hosts((tmp_path / "2", tmp_path / "1")).of("a.test")[0].host == "second.test"
    assert Hosts((tmp_path / "1", tmp_path / "2")).of("a.test")[0].host == "0.test"
    assert Hosts((tmp_path / "absent",)).of("a.test")[0].host == "a.test"


def test_dockers_certificate_files(tmp_path: Path) -> None:
    """Without a hosts.toml, the authorities and key pairs of the directory are for the namespace's own host."""
    directory = tmp_path / "a.test:5000"
    directory.mkdir()
    for name in ("ca.crt", "client.cert", "client.key", "other.cert", "readme"):
        (directory / name).touch()
    (host,) = Hosts((tmp_path,)).of("a.test:5000")
    at = str(directory)
    assert host == Host(
        "https",
        "a.test:5000",
        "/v2",
        EVERYTHING,
        TLS((f"{at}/ca.crt",), ((f"{at}/client.cert", f"{at}/client.key"), (f"{at}/other.cert", ""))),
    )


# ------------------------------------------------------------------------------------------ http or https


@pytest.mark.parametrize(
    ("namespace", "default_scheme", "url", "fallback", "verified"),
    [
        ("docker.io", "", "https://registry-1.docker.io", False, True),
        ("docker.io", "http", "https://registry-1.docker.io", False, True),
        ("quay.io", "", "https://quay.io", False, True),
        ("example.com:5000", "", "https://example.com:5000", False, True),
        ("example.com", "http", "http://example.com", False, True),
        ("localhost:8080", "", "https://localhost:8080", True, False),
        ("localhost:8080", "https", "https://localhost:8080", False, True),
        ("localhost:8080", "http", "http://localhost:8080", False, True),
        ("localhost:80", "", "http://localhost:80", False, True),
        ("localhost:443", "", "https://localhost:443", False, False),
        ("localhost", "", "https://localhost", False, False),
        ("127.0.0.254:5000", "", "https://127.0.0.254:5000", True, False),
        ("127.0.0.254", "", "https://127.0.0.254", False, False),
        ("[::1]:5000", "", "https://[::1]:5000", True, False),
        ("::1", "", "https://::1", False, False),
    ],
)
def test_schemes(namespace: str, default_scheme: str, url: str, fallback: bool, verified: bool) -> None:
    """This is containerd's rule; a local host is not verified, since no authority issues certificates for it."""
    (host,) = Hosts().of(namespace, default_scheme)
    assert (host.key, host.fallback, not host.tls.skip_verify) == (url, fallback, verified)


# ------------------------------------------------------------------------------------------ the CRI plugin's tables


def test_mirrors_and_configs() -> None:
    """Endpoints come in order, then the namespace; certificates and credentials are chosen by the endpoint's host."""
    registries = Registries.of(
        {
            "plugins": {
                "io.containerd.grpc.v1.cri": {
                    "registry": {
                        "mirrors": {
                            "docker.io": {"endpoint": ["https://mirror.test:8443/docker", "localhost:5000"]},
                            "*": {"endpoint": ["http://all.test"]},
                            "quay.io": {"endpoint": ["https://quay.io"]},
                        },
                        "configs": {
                            "mirror.test:8443": {
                                "tls": {
                                    "ca_file": "/ca",
                                    "cert_file": "/c",
                                    "key_file": "/k",
                                    "insecure_skip_verify": True,
                                },
                                "auth": {"username": "u", "password": "p"},
                            },
                            "all.test": {"auth": {"auth": "dTpw"}},
                        },
                    }
                }
            }
        },
        "config.toml",
    )
    can = PULL | RESOLVE | REFERRERS
    hosts = Hosts((), registries)
    assert hosts.of("docker.io") == (
        Host("https", "mirror.test:8443", "/docker", can, TLS(("/ca",), (("/c", "/k"),), skip_verify=True)),
        Host("http", "localhost:5000", "/v2", can),
        Host("https", "registry-1.docker.io", "/v2", can),
    )
    assert [host.key for host in hosts.of("ghcr.io")] == ["http://all.test", "https://ghcr.io"]
    assert [host.key for host in hosts.of("quay.io")] == ["https://quay.io"]
    assert registries.auth == {"mirror.test:8443": Credentials("u", "p"), "all.test": Credentials("u", "p")}


def test_config_path_wins() -> None:
    """If it is set, the older tables have no effect; if nothing is set, it has a default."""
    table = {"config_path": "/a:/b", "mirrors": {"docker.io": {"endpoint": ["https://mirror.test"]}}}
    assert Hosts.of_config({"plugins": {"io.containerd.cri.v1.images": {"registry": table}}}) == Hosts(
        (Path("/a"), Path("/b"))
    )
    assert Hosts.of_config({}) == Hosts(DEFAULT_DIRECTORIES)
    assert Hosts.of_config({"plugins": {"io.containerd.grpc.v1.cri": {"registry": {"headers": {}}}}}) == Hosts(
        DEFAULT_DIRECTORIES
    )


@pytest.mark.parametrize(
    ("registry", "words"),
    [
        ({"mirrors": {"docker.io": {"endpoint": "https://x"}}}, r'registry.mirrors."docker.io".endpoint'),
        ({"mirrors": []}, r"registry.mirrors is not a table"),
        ({"configs": {"h": {"tls": {"ca_file": 1}}}}, r'registry.configs."h".tls.ca_file: 1 is not a string'),
        ({"configs": {"h": {"auth": {"auth": "?"}}}}, r'registry.configs."h".auth: auth is not USER:PASSWORD'),
        ({"config_path": 1}, "registry.config_path: 1 is not a string"),
    ],
)
def test_errors_in_the_tables(registry: dict[str, object], words: str) -> None:
    """File and key are named."""
    with pytest.raises(errors.InvalidArgument, match=f"^config.toml: io.containerd.grpc.v1.cri {words}"):
        Registries.of({"plugins": {"io.containerd.grpc.v1.cri": {"registry": registry}}}, "config.toml")
