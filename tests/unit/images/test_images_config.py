"""Settings of the images service: its own table and containerd's plugins, their precedence, and the messages about the
other keys.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from services.images import verifier_config
from services.images.config import Config, Unpack, check, load
from services.kit import errors, settings
from services.oci.platforms import Platform, default, parse

TRANSFER = '[plugins."io.containerd.transfer.v1.local"]'
BINDIR = '[plugins."io.containerd.image-verifier.v1.bindir"]'
CURRENT, OLDER = '[plugins."io.containerd.cri.v1.images".registry]', '[plugins."io.containerd.grpc.v1.cri".registry]'


def file(text: str) -> settings.File:
    return settings.File("c.toml", tomllib.loads(text))


def found(text: str, kind: str = "warning") -> list[str]:
    """Return the messages of a check of a file."""
    return [words for each, words in check(file(text)) if each == kind]


def test_the_transfer_plugins_keys_are_read() -> None:
    """They mean the same as in containerd: 0 is no limit, so that only the number of connections limits."""
    config = load(
        file(f"""
{TRANSFER}
max_concurrent_downloads = 3
max_concurrent_uploaded_layers = 0
max_concurrent_unpacks = 1
config_path = "/a:/b"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "native"
differ = ""
""")
    )
    assert config == Config(
        downloads=3,
        uploads=16,
        unpacks=1,
        config_path="/a:/b",
        unpack_config=(Unpack(platform="linux/amd64", snapshotter="native"),),
    )
    assert load(file("")) == Config()
    assert load(file(f"{TRANSFER}\nmax_concurrent_unpacks = 0")) == Config()


@pytest.mark.parametrize("host", ["https://r.test", "r.test/v2", "r.test:", "", "r test"])
def test_what_gets_trace_context_is_a_host(host: str) -> None:
    """With a port, if it has one; a star stands for all."""
    assert load(file('[images]\ntraceparent = ["r.test:5000", "[::1]:5000", "*"]')).traceparent[1] == "[::1]:5000"
    with pytest.raises(errors.InvalidArgument, match=f'traceparent: "{host}" is not a host'):
        load(file(f'[images]\ntraceparent = ["{host}"]'))


def test_ours_win_and_say_so() -> None:
    """This is decided for each key."""
    text = (
        f'[images]\ndownloads = 8\nconfig_path = "/ours"\n{TRANSFER}\nmax_concurrent_downloads = '
        '3\nmax_concurrent_uploaded_layers = 2\nconfig_path = "/theirs"\n'
    )
    assert load(file(text)) == Config(downloads=8, uploads=2, config_path="/ours")
    assert found(text) == [
        f"config file c.toml: {TRANSFER} max_concurrent_downloads has no effect: [images] downloads is set, and wins",
        f"config file c.toml: {TRANSFER} config_path has no effect: [images] config_path is set, and wins",
        "config file c.toml: config_path: /ours is not a directory",
    ]


def test_verifiers_are_configured_in_containerds_words() -> None:
    """They may be in containerd's table or in ours, whose keys take precedence."""
    text = f'{BINDIR}\nbin_dir = "/v"\nmax_verifiers = -1\nper_verifier_timeout = "3s"\nx = 1\n'
    assert load(file(text)).verifier == verifier_config.Config(bin_dir="/v", max_verifiers=-1, per_verifier_timeout=3.0)
    both = f"{text}[images.verifier]\nmax_verifiers = 2\n"
    assert load(file(both)).verifier == verifier_config.Config(bin_dir="/v", max_verifiers=2, per_verifier_timeout=3.0)
    assert found(both) == [
        f"config file c.toml: {BINDIR} max_verifiers has no effect: [images.verifier] max_verifiers is set, and wins",
        f"config file c.toml: {BINDIR} x is containerd's and means nothing here",
    ]
    assert load(file('[images.verifier]\nbin_dir = ""')).verifier == verifier_config.Config(bin_dir="")


def test_keys_without_meaning_here_are_named() -> None:
    """These are keys of the plugin and of an entry of unpack_config."""
    text = (
        f"{TRANSFER}\nconcurrent_layer_fetch_buffer = 2\ncheck_platform_supported = false\nunpack_config = "
        f'[{{platform = "linux", snapshotter = "x", differ = "walking", optional = true}}]\n'
    )
    assert found(text) == [
        f"config file c.toml: {TRANSFER} {key} is containerd's and means nothing here"
        for key in ("concurrent_layer_fetch_buffer", "unpack_config: differ", "unpack_config: optional")
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            f'{TRANSFER}\nmax_concurrent_downloads = "3"',
            f"{TRANSFER} max_concurrent_downloads: '3' is not a whole number",
        ),
        (f"{TRANSFER}\nconfig_path = 3", f"{TRANSFER} config_path: 3 is not a string"),
        (
            f'{TRANSFER}\nunpack_config = [{{platform = "a b"}}]',
            f"{TRANSFER} unpack_config: platform: 'a b' is not a platform such as linux/amd64",
        ),
        (
            f'{TRANSFER}\nunpack_config = [{{platform = "linux"}}]',
            f"{TRANSFER} unpack_config: snapshotter: none is named for linux",
        ),
        (
            '[[images.unpack_config]]\nsnapshotter = "x"',
            "[images] unpack_config: platform: '' is not a platform such as linux/amd64",
        ),
        (f'{BINDIR}\nper_verifier_timeout = "soon"', f"{BINDIR} per_verifier_timeout: 'soon' is not a duration"),
        (f'{BINDIR}\nper_verifier_timeout = "0s"', f"{BINDIR} per_verifier_timeout must be greater than 0"),
        (f'{BINDIR}\nbin_dir = "here"', f"{BINDIR} bin_dir: 'here' is not an absolute path"),
        ('[images.verifier]\nbin_dir = "here"', "[images] verifier: bin_dir: 'here' is not an absolute path"),
        ('[plugins]\n"io.containerd.transfer.v1.local" = 1', f"{TRANSFER} is not a table"),
    ],
)
def test_an_error_names_table_and_key(text: str, words: str) -> None:
    """This holds for containerd's tables as well as ours."""
    with pytest.raises(errors.InvalidArgument) as caught:
        load(file(text))
    assert str(caught.value).startswith(f"config file c.toml: {words}")


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/arm/v7", Platform("linux", "arm", "v7")),
        ("linux", default()),
        ("arm64", Platform("linux", "arm64")),
        ("linux(+erofs)/amd64", Platform("linux", "amd64", os_features=("erofs",))),
        ("windows(10.0.17763)/amd64", Platform("windows", "amd64", os_version="10.0.17763")),
        ("linux/x86_64", Platform("linux", "amd64")),
    ],
)
def test_platforms_are_parsed(text: str, platform: Platform) -> None:
    """Missing parts are this machine's."""
    assert parse(text) == platform


@pytest.mark.parametrize("text", ["", "linux/", "linux/amd64/v1/x", "linux amd64", "(x)"])
def test_malformed_platforms_are_refused(text: str) -> None:
    """The error quotes the platform."""
    with pytest.raises(ValueError, match="is not a platform such as linux/amd64"):
        parse(text)


# ------------------------------------------------------------------------------------------ registries


@pytest.mark.parametrize(("version", "wins"), [("version = 3", CURRENT), ("version = 2", OLDER), ("", CURRENT)])
def test_the_version_says_which_table_of_the_cri_plugin_counts(version: str, wins: str, tmp_path: Path) -> None:
    """The table of another version is named."""
    (tmp_path / "a.test").mkdir()
    (tmp_path / "a.test" / "hosts.toml").write_text("x = 1")
    other = OLDER if wins == CURRENT else CURRENT
    text = f'{version}\n{wins}\nconfig_path = "{tmp_path}"\n{other}\nconfig_path = "/other"\n'
    assert found(text) == [
        f"config file c.toml: {other} has no effect beside {version or wins}",
        f"{tmp_path}/a.test/hosts.toml: line 1: unknown key x",
    ]


def test_a_table_of_another_version_means_nothing() -> None:
    """This is as in containerd, and a message says so."""
    assert found(f'version = 3\n{OLDER}\nconfig_path = "/other"\n') == [
        f"config file c.toml: {OLDER} has no effect beside version = 3"
    ]


def test_keys_of_the_cri_plugins_tables_without_effect() -> None:
    """Each key has a message; other tables of the plugin have one line together."""
    table = OLDER[:-1]
    text = f"""
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "x"
{OLDER}
[plugins."io.containerd.grpc.v1.cri".registry.auths]
[plugins."io.containerd.grpc.v1.cri".registry.headers]
X-Team = ["blue"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://m.test"]
rewrite = 1
[plugins."io.containerd.grpc.v1.cri".registry.configs."m.test".tls]
ca = "/x"
[plugins."io.containerd.grpc.v1.cri".registry.configs."m.test".auth]
username = "u"
"""
    assert found(text) == [
        f"config file c.toml: {words}"
        for words in (
            (
                '[plugins."io.containerd.grpc.v1.cri"] is containerd\'s, and nothing but its registry table means '
                "anything "
                "here"
            ),
            f"{table}] headers is containerd's and means nothing here",
            f'{table}.mirrors."docker.io"] rewrite is not known',
            f'{table}.configs."m.test".tls] ca is not known',
            (
                f'{table}.configs."m.test".auth] has no effect: clients that pull bring their own credentials, and the '
                "kubelet's pulls (CRI) are not served yet"
            ),
        )
    ]
    both = (
        f'{OLDER}\nconfig_path = "/"\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint '
        "= []\n"
    )
    assert found(both) == [f"config file c.toml: {OLDER} mirrors has no effect beside config_path"]
    assert f"config file c.toml: {OLDER} has no effect: another config_path comes first, /x" in found(
        f'{both}{TRANSFER}\nconfig_path = "/x"'
    )


@pytest.mark.parametrize(
    "text",
    [
        f"{OLDER}\nmirrors = 1",
        f'{OLDER}\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint = ["ftp://x"]',
    ],
)
def test_a_malformed_table_is_an_error(text: str) -> None:
    """Otherwise the service would not start, or no pull would succeed."""
    (words,) = found(text, "error")
    assert "registry.mirrors" in words


def test_each_hosts_toml_is_looked_at(tmp_path: Path) -> None:
    """File, line and key are named; certificates are loaded."""
    for name, text in (
        ("bad.test", "server = "),
        ("key.test", '[host."https://m.test"]\n\nca = 5'),
        ("odd.test", '\nsever = "x"\n[host."https://m.test"]\nskip_verfy = true'),
        ("tls.test", f'[host."https://m.test"]\nca = "{tmp_path}/absent.crt"'),
        ("good.test", 'server = "https://x.test"\n[host."https://m.test"]\ntraceparent = true'),
        ("told.test", 'traceparent = "all"'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text(text)
    (tmp_path / "dir.test" / "hosts.toml").mkdir(parents=True)
    (tmp_path / "files.test").mkdir()
    (tmp_path / "files.test" / "x.crt").touch()
    (tmp_path / "readme").touch()
    text = f'[images]\nconfig_path = "{tmp_path}"'
    assert found(text, "trouble") == [
        f"{tmp_path}/{words}"
        for words in (
            "bad.test/hosts.toml: Invalid value (at end of document)",
            "dir.test/hosts.toml: Is a directory",
            f"files.test: files.test: certificate authority {tmp_path}/files.test/x.crt: no certificate or crl found",
            'key.test/hosts.toml: line 3: host."https://m.test".ca: 5 is neither a string nor a list of strings',
            f"tls.test/hosts.toml: m.test: certificate authority {tmp_path}/absent.crt: No such file or directory",
            "told.test/hosts.toml: line 1: traceparent: 'all' is not true or false",
        )
    ]
    assert found(text) == [
        f"{tmp_path}/odd.test/hosts.toml: line {words}"
        for words in ("2: unknown key sever", '4: unknown key host."https://m.test".skip_verfy')
    ]
    assert not found(text, "error")
