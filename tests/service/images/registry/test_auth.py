"""Authentication: tokens, passwords, helper programs; and no other host gets the secrets."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from services.images.documents import parser_program
from services.images.registry.client import Registry
from services.images.registry.credentials import Credentials, DockerConfig, first_of
from services.images.registry.limits import TOKEN_LIMIT
from services.images.registry_timeouts import Timeouts
from services.kit import errors
from tests.fake_registry import Auth, FakeRegistry, cut, redirect, says, silent, status
from tests.service.images.registry.conftest import HASTY, QUICK
from tests.service.images.registry.pulls import LAYER, described, fetched, small_image
from tests.support import within

pytestmark = pytest.mark.once

LAYER_DESCRIPTOR = described(LAYER)


def known(username: str = "", secret: str = "", header: str = "") -> Callable[[str], Awaitable[Credentials | None]]:
    """A source that always gives the same credentials, and records in ``asked`` for which hosts."""

    async def source(host: str) -> Credentials | None:
        source.asked.append(host)  # type: ignore[attr-defined]
        return Credentials(username, secret, header)

    source.asked = []  # type: ignore[attr-defined]
    return source


@pytest.fixture
def name(fake: FakeRegistry) -> str:
    fake.add_blob("box", LAYER)
    return fake.add(small_image(), "box:1")


async def test_an_anonymous_token(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Without credentials a token is requested too, once for all requests that need it."""
    fake.auth = Auth()
    client = quick.client()
    root = await client.resolve(name)
    await client.manifest(name, root)
    await asyncio.gather(*(fetched(client, name, LAYER_DESCRIPTOR) for _ in range(4)))
    assert [(each.method, each.path) for each in fake.asked(part="/token")] == [
        ("GET", "/token?service=fake&scope=repository%3Abox%3Apull")
    ]
    assert len([each for each in fake.seen if each.status == 401]) == 1


async def test_a_token_for_a_user(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """User and password go to the token server by POST, as in OAuth; the registry itself gets the token only."""
    fake.auth = Auth(user="me", password="s3cret")
    source = known("me", "s3cret")
    await quick.client(source).resolve(name)
    assert source.asked == [fake.host]  # type: ignore[attr-defined]
    (asked,) = fake.asked("POST", "/token")
    assert "Authorization" not in asked.headers
    assert all(each.headers.get("Authorization", "Bearer ").startswith("Bearer ") for each in fake.asked(part="/v2/"))


@pytest.mark.parametrize("code", [400, 401, 404, 405])
async def test_a_token_server_without_post(quick: Registry, fake: FakeRegistry, name: str, code: int) -> None:
    """If the server does not know POST, GET with basic authentication follows."""
    fake.auth = Auth(user="me", password="s3cret", post=code)
    await quick.client(known("me", "s3cret")).resolve(name)
    assert [each.method for each in fake.asked(part="/token")] == ["POST", "GET"]


async def test_an_identity_token(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A secret without a user is a refresh token."""
    fake.auth = Auth(identity="opaque")
    await quick.client(known(secret="opaque")).resolve(name)
    assert len(fake.asked("POST", "/token")) == 1


async def test_basic(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Basic authentication is used once the registry asks for it, and from then on without a challenge."""
    fake.auth = Auth("basic", "me", "s3cret")
    client = quick.client(known("me", "s3cret"))
    await client.manifest(name, await client.resolve(name))
    assert [each.status for each in fake.seen] == [401, 200, 200]


async def test_a_header_of_the_clients(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A client may give the whole header."""
    fake.auth = Auth("basic", "me", "s3cret")
    await quick.client(known(header="Basic " + base64.b64encode(b"me:s3cret").decode())).resolve(name)


async def test_a_wrong_password(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """The error comes at once and names the host and the user, but not the password."""
    fake.auth = Auth(user="me", password="s3cret")
    with within(5), pytest.raises(errors.Unauthenticated) as raised:
        await quick.client(known("me", "wr0ng")).resolve(name)
    said = str(raised.value)
    assert (
        f'{fake.host}: {fake.host}, its token server, refused a token as "me": 401 Unauthorized: UNAUTHORIZED: '
        "incorrect username or password"
    ) in said
    assert "wr0ng" not in said
    fake.auth = Auth("basic", "me", "s3cret")
    with (
        within(5),
        pytest.raises(errors.Unauthenticated, match=rf'{fake.host}: HEAD .* 401 .* \(access denied as "me"'),
    ):
        await quick.client(known("me", "wr0ng")).resolve(name)


async def test_without_credentials(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """The error says that there were none."""
    fake.auth = Auth("basic", "me", "s3cret")
    with (
        within(5),
        pytest.raises(errors.Unauthenticated, match=r"authentication required \(access denied without credentials"),
    ):
        await quick.client().resolve(name)


class Clock:
    """A clock for the registry and its client."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def timed(clock: Clock) -> AsyncIterator[Registry]:
    """A registry client with ``clock``."""
    async with Registry(timeouts=QUICK, retry=HASTY, clock=clock) as registry:
        yield registry


async def test_a_token_that_ends_in_the_middle_of_a_pull(
    timed: Registry, fake: FakeRegistry, name: str, clock: Clock
) -> None:
    """A new token is requested before the old one expires, so that no late layer is refused."""
    fake.auth = Auth(seconds=100, clock=clock)
    client = timed.client()
    await client.resolve(name)
    for _ in range(12):
        clock.now += 10
        assert (await fetched(client, name, LAYER_DESCRIPTOR))[0] == LAYER
    assert [each.status for each in fake.seen].count(401) == 1
    assert len(fake.asked(part="/token")) == 2


async def test_a_token_that_ends_before_it_said(timed: Registry, fake: FakeRegistry, name: str, clock: Clock) -> None:
    """A refused token is replaced at once, once for all its users, also in the middle of a layer."""
    fake.auth = Auth(seconds=10, told=3600, clock=clock)
    client = timed.client()
    await client.resolve(name)
    clock.now += 20
    fake.inject("blob", cut(100_000), times=1)
    for blob, _ in await asyncio.gather(*(fetched(client, name, LAYER_DESCRIPTOR) for _ in range(3))):
        assert blob == LAYER
    assert len(fake.asked(part="/token")) == 2


async def test_a_token_that_does_not_say_how_long(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """It is used until it is refused."""
    fake.auth = Auth(told=0)
    client = quick.client()
    await client.resolve(name)
    assert (await fetched(client, name, LAYER_DESCRIPTOR))[0] == LAYER
    assert len(fake.asked(part="/token")) == 1


async def test_a_token_server_that_is_away(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Requests to it are retried as those to the registry are; in the end the error names both."""
    fake.auth = Auth()
    fake.inject("token", status(503), times=1)
    with within(5):
        await quick.client().resolve(name)
    fake.auth.realm = "http://127.0.0.1:9/token"
    with (
        within(8),
        pytest.raises(
            errors.Unavailable, match=f"{fake.host}: no token: 127.0.0.1:9: no connection: Connection refused"
        ),
    ):
        await quick.client().resolve(name)


async def test_a_silent_token_server(fake: FakeRegistry, name: str) -> None:
    """Four layers that wait for one token fail together, not one after another."""
    fake.auth = Auth()
    fake.inject("token", silent(), times=100)
    async with Registry(timeouts=replace(QUICK, token=0.3), retry=HASTY) as registry:
        client = registry.client()
        with within(8):
            for outcome in await asyncio.gather(
                *(fetched(client, name, LAYER_DESCRIPTOR) for _ in range(4)), return_exceptions=True
            ):
                assert isinstance(outcome, errors.Unavailable)
                assert "its token server, did not answer within 0.3 s" in str(outcome)
    assert len(fake.asked(part="/token")) <= 5


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("[" * 5000 + "]" * 5000, ": a list instead of an object"),
        ('{"token":' + "[" * 5000 + "]" * 5000 + "}", ": token: a list instead of a string"),
        ('{"x":' * 10_001, ": exceeded max depth"),
        ("<html>", ': invalid character "<" at byte 0'),
        ("", ": unexpected end of JSON input"),
        ('{"token":"' + "x" * TOKEN_LIMIT + '"}', f": more than {TOKEN_LIMIT} bytes"),
        ('{"token":null}', ""),
    ],
)
async def test_a_token_server_that_answers_anything_else(
    quick: Registry, fake: FakeRegistry, name: str, body: str, why: str
) -> None:
    """The error names the host, its token server, and what is wrong with the answer."""
    fake.auth = Auth()
    fake.inject("token", says(body))
    with within(5), pytest.raises(errors.Unauthenticated) as caught:
        await quick.client().resolve(name)
    assert f"{fake.host}: {fake.host}, its token server, answered without a token{why}: unauth" in str(caught.value)


@pytest.mark.parametrize("token", ["\\ud800", "a\\nb", "a\\r\\nX: b", "\u00e9"])
async def test_a_token_that_no_header_can_hold(quick: Registry, fake: FakeRegistry, name: str, token: str) -> None:
    """It is refused with that reason, and not sent."""
    fake.auth = Auth()
    fake.inject("token", says(f'{{"token":"{token}"}}'))
    with within(5), pytest.raises(errors.Unauthenticated) as caught:
        await quick.client().resolve(name)
    assert (
        f"{fake.host}: {fake.host}, its token server, answered with a token that no header can hold: it has control "
        "characters, or others than ASCII: unauth"
    ) in str(caught.value)


@pytest.mark.parametrize("wrapped", ["\ufeff{}", "{} and more", "{}"])
async def test_a_token_in_an_odd_answer(quick: Registry, fake: FakeRegistry, name: str, wrapped: str) -> None:
    """Windows' servers begin with a byte order mark. Bytes after the answer are ignored, names are matched without
    regard to case, and numbers may be strings.
    """
    fake.auth = Auth()
    fake.auth.tokens["abc"] = (float("inf"), {"repository:box:pull"})
    fake.inject(
        "token",
        says(
            wrapped.replace(
                "{}", '{"Access_Token":null,"TOKEN":"abc","expires_in":"300","x":' + "[" * 3000 + "]" * 3000 + "}"
            )
        ),
    )
    with within(5):
        await quick.client().resolve(name)
    assert len(fake.asked(part="/token")) == 1


async def test_a_token_in_an_answer_of_tens_of_thousands_of_fields(
    quick: Registry, fake: FakeRegistry, name: str
) -> None:
    """Such an answer is read by the program for large documents: what is made of it is not the service's memory."""
    fake.auth = Auth()
    fake.auth.tokens["abc"] = (float("inf"), {"repository:box:pull"})
    seen = parser_program._PROGRAM.read_so_far
    fields = {f"f{number}": number for number in range(20_000)}
    fake.inject("token", says(json.dumps({**fields, "token": "abc", "expires_in": 300})))
    with within(10), parser_program.available():
        await quick.client().resolve(name)
    assert parser_program._PROGRAM.read_so_far == seen + 1


async def test_a_redirected_token_request_carries_nothing(
    quick: Registry, fake: FakeRegistry, other: FakeRegistry, name: str
) -> None:
    """If a token server redirects to another host, our password is not sent there."""
    fake.auth = Auth(user="me", password="s3cret", post=404)
    fake.inject("token", redirect(f"{other.url}/elsewhere"), method="GET")
    with within(5), pytest.raises(errors.NodeError):
        await quick.client(known("me", "s3cret")).resolve(name)
    assert [each.path for each in other.seen] == ["/elsewhere"]
    assert "Authorization" not in other.seen[0].headers


async def test_several_challenges(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Of several challenges the token's is taken; unknown ones are skipped."""
    fake.auth = Auth()
    realm = f"{fake.url}/token"
    fake.inject(
        "manifest",
        status(
            401,
            WWW_Authenticate=(
                f'Negotiate, Basic realm="x", Bearer realm="{realm}",service="fake",scope="repository:box:pull"'
            ),
        ),
    )
    await quick.client(known()).resolve(name)


# ------------------------------------------------------------------------------------------ docker's config.json


def helper(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """A credential helper on the PATH."""
    program = directory / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def config(directory: Path, **what: object) -> DockerConfig:
    file = directory / "config.json"
    file.write_text(json.dumps(what))
    return DockerConfig.read(file, Timeouts(helper=1))


async def test_auths(tmp_path: Path) -> None:
    """User and password in base64, by host or URL; an identity token; docker.io by its old name."""
    auth = base64.b64encode(b"me:pass:word").decode()
    source = config(
        tmp_path,
        auths={
            "https://index.docker.io/v1/": {"auth": auth},
            "ghcr.io": {"identitytoken": "t", "auth": auth},
            "127.0.0.1:5000": {"auth": auth},
            "https://quay.io/v2/": {"username": "u", "password": "p"},
            "empty.test": {},
        },
    )
    assert await source("registry-1.docker.io") == Credentials("me", "pass:word")
    assert await source("ghcr.io") == Credentials(secret="t")
    assert await source("127.0.0.1:5000") == Credentials("me", "pass:word")
    assert await source("quay.io") == Credentials("u", "p")
    assert await source("127.0.0.1:5001") is None
    assert await source("empty.test") is None


async def test_a_helper_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: Registry, fake: FakeRegistry, name: str
) -> None:
    """The program of credHelpers gets the host on stdin and answers in JSON; a whole pull with it."""
    helper(
        tmp_path,
        monkeypatch,
        "fake",
        f"""[ "$1" = get ] && echo "$(cat)" >>{tmp_path}/asked; echo '{{"Username": "me", "Secret": "s3cret"}}'""",
    )
    fake.auth = Auth(user="me", password="s3cret")
    await quick.client(config(tmp_path, credHelpers={fake.host: "fake"})).resolve(name)
    assert (tmp_path / "asked").read_text() == f"{fake.host}\n"


async def test_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """credsStore is for all hosts; the file may have credentials that the store lacks; <token> is an identity token."""
    helper(
        tmp_path,
        monkeypatch,
        "store",
        """case $(cat) in
        https://index.docker.io/v1/) echo '{"Username": "<token>", "Secret": "t"}';;
        *) echo "credentials not found in native keychain"; exit 1;; esac""",
    )
    source = config(tmp_path, credsStore="store", auths={"quay.io": {"username": "u", "password": "p"}})
    assert await source("registry-1.docker.io") == Credentials(secret="t")
    assert await source("quay.io") == Credentials("u", "p")
    assert await source("ghcr.io") is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo locked; exit 1", r"docker-credential-bad failed \(1\): locked"),
        ("echo hello", "did not answer with Username and Secret"),
        ("exec sleep 30", "did not answer within 1 s"),
    ],
)
async def test_a_bad_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str) -> None:
    """The error names host and program."""
    helper(tmp_path, monkeypatch, "bad", script)
    with within(5), pytest.raises(errors.NodeError, match=f"^quay.io: docker-credential-bad.*{words}|{words}"):
        await config(tmp_path, credHelpers={"quay.io": "bad"})("quay.io")


async def test_an_absent_helper(tmp_path: Path) -> None:
    """The error names the missing program and the file that wants it. Credentials of another host do not depend on
    it.
    """
    source = config(tmp_path, credHelpers={"quay.io": "absent"}, auths={"ghcr.io": {"username": "u", "password": "p"}})
    with pytest.raises(
        errors.FailedPrecondition,
        match=r"quay.io: docker-credential-absent, which .*config.json names, cannot be started: No such file",
    ):
        await source("quay.io")
    assert await source("ghcr.io") == Credentials("u", "p")


async def test_a_malformed_config(tmp_path: Path) -> None:
    """The error names the file, and the bad entry if there is one; an absent file counts as empty."""
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(errors.InvalidArgument, match="config.json"):
        DockerConfig.read(tmp_path / "config.json")
    with pytest.raises(errors.FailedPrecondition, match=r'auths."quay.io": auth is not USER:PASSWORD in base64'):
        await config(tmp_path, auths={"quay.io": {"auth": "???"}})("quay.io")
    assert await DockerConfig.read(tmp_path / "absent.json")("quay.io") is None


async def test_the_first_source_that_knows() -> None:
    """Sources are asked in turn."""

    async def nothing(host: str) -> Credentials | None:
        return None

    assert await first_of(None, nothing, known("me", "x"), known("you", "y"))("h") == Credentials("me", "x")
    assert await first_of(nothing)("h") is None


def test_secrets_are_not_printed() -> None:
    """A repr that gets into a log has no secret."""
    assert "hush" not in repr(Credentials("me", "hush")) + repr(Credentials(secret="hush")) + repr(
        Credentials(header="hush")
    )
