"""services.wire.headers: decoding of blocks in any state of the table, and encoding."""

from __future__ import annotations

import base64
import random

import pytest
from hpack import Decoder as Hpack
from hpack import Encoder, HPACKError

from services.kit import memory
from services.wire import headers, requests
from services.wire.frames import Code, ConnectionFault, StreamFault
from services.wire.limits import Limits
from tests.wires import REQUEST, literal


class Reader:
    """Our decoder and hpack's, side by side: for the same blocks they must give the same result."""

    def __init__(self) -> None:
        self.encoder = Encoder()
        self._ours = headers.Decoder(Limits())
        self._theirs = Hpack()

    def read(self, block: bytes, kind=headers.trailers) -> headers.Head:
        head = self._ours(kind, block)
        assert [pair for pair in self._theirs.decode(block, raw=True) if not pair[0].startswith(b":")] == head.pairs
        return head

    def send(self, *fields: tuple[str, str]) -> headers.Head:
        """Encode as hpack's encoder does, with its table."""
        return self.read(self.encoder.encode(list(fields)))


def indexed(number: int) -> bytes:
    return bytes([0x80 | number])


def remembered(name: str, value: str) -> bytes:
    """Encode a literal that is added to the table."""
    return b"\x40" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


NEWEST = indexed(62)

# ---------------------------------------------------------------------------------------------- the cache


def test_a_block_that_leaves_the_table_alone_is_read_once() -> None:
    """The very same Head comes back; for another kind of list it is another Head."""
    decoder = headers.Decoder(Limits())
    block = literal([("a", "b")])
    assert decoder(headers.trailers, block) is decoder(headers.trailers, block)
    with pytest.raises(StreamFault):
        decoder(headers.response, block)
    assert decoder(headers.trailers, block).headers == {"a": "b"}


def test_a_reference_to_the_table_means_what_the_table_says_now() -> None:
    """The same byte is read before and after the table has changed."""
    reader = Reader()
    reader.read(remembered("x", "1"))
    assert reader.read(NEWEST).headers == {"x": "1"}
    assert reader.read(NEWEST).headers == {"x": "1"}
    reader.read(remembered("x", "2"))
    assert reader.read(NEWEST).headers == {"x": "2"}
    assert reader.read(indexed(63)).headers == {"x": "1"}


def test_a_table_of_one_entry_replaced_twice_in_one_block() -> None:
    """The table has as many entries as before, even one of the same name and value: it is another table, and is read
    right.
    """
    reader = Reader()
    reader.read(b"\x3f\x03")  # 34 bytes: room for one entry of two letters
    reader.read(remembered("x", "1"))
    assert reader.read(NEWEST).headers == {"x": "1"}
    reader.read(remembered("y", "2") + remembered("x", "3"))
    assert reader.read(NEWEST).headers == {"x": "3"}
    reader.read(remembered("y", "2") + remembered("x", "3"))
    assert reader.read(NEWEST).headers == {"x": "3"}


def test_a_table_emptied_and_filled_again_in_one_block() -> None:
    """Size updates to 0 and back, then an entry: the number of entries is the same, and the meaning is another."""
    reader = Reader()
    reader.read(remembered("x", "1"))
    assert reader.read(NEWEST).headers == {"x": "1"}
    reader.read(b"\x20\x3f\xe1\x1f" + remembered("x", "2"))
    assert reader.read(NEWEST).headers == {"x": "2"}
    reader.read(b"\x20\x3f\xe1\x1f")
    with pytest.raises(ConnectionFault) as fault:
        reader.read(NEWEST)
    assert fault.value.code == Code.COMPRESSION_ERROR


def test_an_entry_too_large_for_the_table_empties_it() -> None:
    """RFC 7541, section 4.4: this is no error, and no entry is left."""
    reader = Reader()
    reader.read(b"\x3f\x21" + remembered("x", "1"))  # 64 bytes
    assert reader.read(NEWEST).headers == {"x": "1"}
    reader.read(remembered("large", "v" * 60))
    with pytest.raises(ConnectionFault):
        reader.read(NEWEST)


def test_entries_that_fall_out_at_the_end_are_noticed() -> None:
    """A smaller table drops the oldest entries; the newest stays at its place."""
    reader = Reader()
    reader.read(remembered("old", "1") + remembered("new", "2"))
    assert reader.read(indexed(63)).headers == {"old": "1"}
    reader.read(b"\x3f\x09")  # 40 bytes
    assert reader.read(NEWEST).headers == {"new": "2"}
    with pytest.raises(ConnectionFault):
        reader.read(indexed(63))


def test_a_malformed_list_changes_the_table_all_the_same() -> None:
    """Only the stream fails; the connection goes on, and later references to the table are right."""
    reader = Reader()
    reader.read(remembered("x", "1"))
    assert reader.read(NEWEST).headers == {"x": "1"}
    with pytest.raises(StreamFault):
        reader._ours(headers.trailers, remembered("x", "2") + literal([("UPPER", "case")]))
    assert reader._ours(headers.trailers, NEWEST).headers == {"x": "2"}


@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_blocks_is_read_as_hpack_reads_it(seed: int) -> None:
    """Random peers use their tables: repeated, new and sensitive fields, and tables of any size."""
    pick = random.Random(seed)
    reader = Reader()
    fields = [(f"name{n}", f"value{m}" * (m + 1)) for n in range(3) for m in range(4)]
    for _ in range(200):
        if pick.random() < 0.1:
            reader.encoder.header_table_size = pick.choice([0, 34, 50, 100, 300, 4096])
        reader.send(*pick.sample(fields, pick.randrange(1, 4)))


def entries(hpack: Hpack) -> tuple[list[tuple[bytes, bytes]], int]:
    """The table of a decoder, and its size."""
    return list(hpack.header_table.dynamic_entries), hpack.header_table._current_size


@pytest.mark.parametrize("seed", range(20))
def test_what_is_read_by_the_shorter_way_is_what_hpack_reads(seed: int) -> None:
    """Of blocks as peers write them, and of damaged ones. What it does not read it leaves as it was."""
    pick = random.Random(seed)
    decoder, encoder, theirs = headers.Decoder(Limits()), Encoder(), Hpack()
    names = [":path", "te", "containerd-namespace", "x" * 130, "grpc-timeout", "name"]
    short = 0
    for _ in range(150):
        fields = [
            (pick.choice(names), "v" * pick.choice([0, 1, 9, 126, 127, 2000])) for _ in range(pick.randrange(1, 5))
        ]
        block = bytearray(encoder.encode(fields, huffman=pick.random() < 0.5))
        for _ in range(pick.choice([0, 0, 0, 1, 3])):
            block[pick.randrange(len(block))] = pick.randrange(256)
        if pick.random() < 0.1:
            del block[pick.randrange(len(block)) :]
        before = entries(decoder._hpack)
        found = decoder._short(bytes(block))
        if found is None:
            assert entries(decoder._hpack) == before
        try:
            said = list(theirs.decode(bytes(block), raw=True))
        except (HPACKError, IndexError, ValueError):
            assert not found
            decoder, encoder, theirs = headers.Decoder(Limits()), Encoder(), Hpack()
            continue
        if found is None:
            decoder._hpack.decode(bytes(block), raw=True)
        else:
            short += 1
            assert found == said
        assert entries(decoder._hpack) == entries(theirs)
    assert short > 20


def test_a_client_of_grpc_go_is_read_by_the_shorter_way() -> None:
    """Its first call, and further ones with other paths."""
    decoder, encoder = headers.Decoder(Limits()), Encoder()
    for number in range(20):
        block = encoder.encode([*REQUEST[:3], (":path", f"/package.Service/Method{number}"), *REQUEST[4:]])
        assert decoder._short(block) is not None


def test_the_cache_has_bounds() -> None:
    """The number of its blocks is bounded, and long blocks are not kept."""
    decoder = headers.Decoder(Limits())
    for number in range(1000):
        decoder(headers.trailers, literal([("n", str(number))]))
    assert len(decoder._cache) <= headers._CACHED
    before = len(decoder._cache)
    long = literal([("long", "v" * headers._CACHEABLE)])
    assert decoder(headers.trailers, long) is not decoder(headers.trailers, long)
    assert len(decoder._cache) == before


def test_the_same_fields_are_one_head_on_all_connections() -> None:
    """Also if their blocks differ, since the tables do. Of many, or of long ones, none is kept for others."""
    first, second = Reader(), Reader()
    second.send(("before", "it"))
    fields = ("x-of-two", "connections"), ("grpc-status", "0")
    head = first.send(*fields)
    assert first.send(*fields) is second.send(*fields) is head
    assert first.send(fields[0]) is not head
    long = ("x-long", "x" * 2000)
    assert first.send(long) is not second.send(long)
    for number in range(headers._HEADS_CACHED):
        first.send(("x-number", str(number)))
    assert len(headers._HEADS) <= headers._HEADS_CACHED
    assert second.send(*fields, ("another", "field")) is not head


def test_a_cache_is_dropped_when_a_burst_is_over() -> None:
    """It has a few kilobytes for each connection, which would keep megabytes; the cache of sent blocks is dropped
    too.
    """
    decoder = headers.Decoder(Limits())
    block = literal([("a", "b")])
    head = decoder(headers.trailers, block)
    requests.request_block("/a/b", (("c", "d"),), None)
    for drop in memory._caches:
        drop()
    assert decoder(headers.trailers, block) is not head
    assert not requests._BLOCKS


TRACEPARENT = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
CONTEXTS = [
    [TRACEPARENT],
    [TRACEPARENT, ("tracestate", "splitd=00f067aa0ba902b7")],
    [TRACEPARENT, ("tracestate", "")],
    [TRACEPARENT, ("tracestate", "a=" + "x" * 200)],
    [("traceparent", "00-short"), ("tracestate", "a=b")],
    [TRACEPARENT, ("tracestate", "a=b"), ("x", "y")],
    [("x", "y"), TRACEPARENT],
]


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_block_with_trace_context_is_read_as_any_other(context: list[tuple[str, str]]) -> None:
    """Wherever the context is, hpack reads the same; and how we write it makes no difference."""
    reader = Reader()
    metadata = (("a", "b"), *context)
    sent = requests.request_block("/splitd.Test/Say", metadata, 1.0)
    assert headers.plain(context) == headers.block(headers.metadata(context))
    for block in (sent, literal([*REQUEST, *metadata]), reader.encoder.encode([*REQUEST, *metadata])):
        head = reader.read(block, headers.request)
        assert {name: head.headers[name] for name, _ in metadata} == dict(metadata)
        assert head.path == "/splitd.Test/Say"


def test_what_differs_in_its_trace_only_is_read_and_written_once() -> None:
    """Calls of many traces share one entry of each cache, and what was derived from the head."""
    decoder = headers.Decoder(Limits())
    requests._BLOCKS.clear()
    heads = []
    for number in range(300):
        trace = ("traceparent", f"00-{number + 1:032x}-b7ad6b7169203331-01")
        block = requests.request_block("/a/b", (("c", "d"), trace, ("tracestate", "splitd=00f067aa0ba902b7")), 1.0)
        heads.append(decoder(headers.request, block))
        assert heads[-1].headers["traceparent"] == trace[1]
    assert (len(decoder._cache), len(requests._BLOCKS)) == (1, 1)
    assert all(head.memory is heads[0].memory for head in heads)


LEASES = ("containerd-lease", "a"), ("containerd-lease", "b")


def test_what_differs_in_its_lease_only_is_decided_once() -> None:
    """What is derived from the head is there for the next lease, by another connection too; a call without one, or with
    two, is another. The first of two counts.
    """
    none, one, other, both = (
        headers.Decoder(Limits())(headers.request, literal([*REQUEST, *fields, ("c", "d")]))
        for fields in ((), LEASES[:1], LEASES[1:], LEASES)
    )
    assert one.memory is other.memory
    assert len({id(head.memory) for head in (none, one, both)}) == 3
    assert [head.headers.get("containerd-lease") for head in (none, one, other, both)] == [None, "a", "b", "a"]
    assert [head.lease for head in (none, one, other, both)] == ["", "a", "b", ""]
    assert one.headers == {**none.headers, "containerd-lease": "a"}
    assert sorted(one.pairs) == sorted([*none.pairs, (b"containerd-lease", b"a")])


def test_a_lease_that_http2_forbids_is_refused() -> None:
    """RFC 9113, sections 8.2.1 and 8.3: pseudo-headers come first."""
    lease = ("containerd-lease", "a")
    for fields in ([*REQUEST, (lease[0], "a\nb")], [lease, *REQUEST], [REQUEST[0], lease, *REQUEST[1:]]):
        with pytest.raises(StreamFault):
            headers.Decoder(Limits())(headers.request, literal(fields))


@pytest.mark.parametrize(
    ("contexts", "words"), [(Limits().header_count, "header fields"), (900, "header list over 65536 bytes")]
)
def test_many_trace_contexts_count_as_other_fields(contexts: int, words: str) -> None:
    """Only the last one is read apart, so the limits hold, and nothing recurs as often as the peer likes."""
    block = literal(REQUEST) + headers.plain([TRACEPARENT]) * (contexts + 1)
    with pytest.raises(ConnectionFault, match=words):
        headers.Decoder(Limits())(headers.request, block)


@pytest.mark.parametrize("value", ["00-\n" + "x" * 51, "\0" * 55])
def test_a_trace_context_that_http2_forbids_is_refused(value: str) -> None:
    """RFC 9113, section 8.2.1."""
    with pytest.raises(StreamFault, match="malformed header field"):
        headers.Decoder(Limits())(headers.request, literal([*REQUEST, ("traceparent", value)]))


# ---------------------------------------------------------------------------------------------- limits


def decoded(block: bytes, **limits: int) -> headers.Head:
    return headers.Decoder(Limits(**limits))(headers.trailers, block)


def test_a_header_list_is_bounded_as_the_rfc_counts_it() -> None:
    """A field counts as name, value and 32 bytes: a list at the bound is read, a byte more is ENHANCE_YOUR_CALM for the
    connection.
    """
    assert decoded(literal([("a", "v" * 67), ("b", "v" * 67)]), header_list=200).pairs
    with pytest.raises(ConnectionFault) as fault:
        decoded(literal([("a", "v" * 67), ("b", "v" * 68)]), header_list=200)
    assert fault.value.code == Code.ENHANCE_YOUR_CALM


def test_an_hpack_bomb_goes_off_outside() -> None:
    """One large entry is referred to again and again: a few hundred bytes that stand for megabytes are not decoded to
    the end.
    """
    decoder = headers.Decoder(Limits())
    decoder(headers.trailers, b"\x40\x01x" + b"\x7f\xa1\x1e" + b"v" * 4000)
    with pytest.raises(ConnectionFault) as fault:
        decoder(headers.trailers, NEWEST * 1000)
    assert fault.value.code == Code.ENHANCE_YOUR_CALM


def test_the_number_of_fields_is_bounded() -> None:
    """A list at the bound is read, one field more is ENHANCE_YOUR_CALM."""
    assert len(decoded(literal([("a", "b")] * 10), header_count=10).pairs) == 10
    with pytest.raises(ConnectionFault) as fault:
        decoded(literal([("a", "b")] * 11), header_count=10)
    assert fault.value.code == Code.ENHANCE_YOUR_CALM


def test_size_updates_are_few() -> None:
    """RFC 7541 allows two in a block: a block of many would cost us much and the peer nothing."""
    assert decoded(b"\x20\x3f\xe1\x1f" + literal([("a", "b")])).headers == {"a": "b"}
    for block in (b"\x20" * 9, b"\x3f\xe1\x1f" * 9, b"\x20" * 90_000):
        with pytest.raises(ConnectionFault) as fault:
            decoded(block)
        assert fault.value.code == Code.COMPRESSION_ERROR


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xff\xff\xff\xff\xff\xff\xff",
        b"\x40",
        b"\x40\x05ab",
        b"\x00\x01a",
        b"\x3f\xff\xff\xff",
        b"\x00\x81\xff\x00",
        b"\xbe",
        b"\x0f",
        b"\x82\x20",
    ],
    ids=bytes.hex,
)
def test_malformed_hpack_ends_the_connection(block: bytes) -> None:
    """COMPRESSION_ERROR: index 0, unending numbers, strings cut off, bad Huffman codes, entries that are not there,
    a late size update.
    """
    with pytest.raises(ConnectionFault) as fault:
        decoded(block)
    assert fault.value.code == Code.COMPRESSION_ERROR


# ---------------------------------------------------------------------------------------------- the rules of HTTP/2


def replaced(name: str, value: str | bytes | None) -> list[tuple[str, str | bytes]]:
    return [(k, value if k == name else v) for k, v in REQUEST if k != name or value is not None]  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields",
    [
        replaced(":method", None),
        replaced(":path", None),
        replaced(":scheme", None),
        replaced(":path", ""),
        [*REQUEST, (":method", "POST")],
        [(":method", "POST"), *REQUEST],
        [(":status", "200"), *REQUEST],
        [(":protocol", "x"), *REQUEST],
        [*REQUEST, ("Upper", "x")],
        [*REQUEST, ("", "x")],
        [*REQUEST, ("sp ace", "x")],
        [*REQUEST, ("colon:", "x")],
        [*REQUEST, ("a", "x\ny")],
        [*REQUEST, ("a", "x\ry")],
        [*REQUEST, ("a", "x\0y")],
        replaced(":path", "/a\nb"),
        replaced(":authority", "a\r\nb"),
        replaced(":scheme", "a\0"),
        [*REQUEST, ("te", "gzip")],
        *(
            [*REQUEST, (name, "x")]
            for name in ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")
        ),
        [*REQUEST, ("content-length", "x")],
        [*REQUEST, ("content-length", "1" * 19)],
    ],
    ids=repr,
)
def test_malformed_requests(fields: list[tuple[str, str]]) -> None:
    """PROTOCOL_ERROR for the stream (RFC 9113, section 8.2 and 8.3)."""
    with pytest.raises(StreamFault) as fault:
        headers.Decoder(Limits())(headers.request, literal(fields))
    assert fault.value.code == Code.PROTOCOL_ERROR


def test_a_request() -> None:
    """Pseudo-headers are separate, metadata is by name, and the first of each name counts."""
    head = headers.Decoder(Limits())(
        headers.request,
        literal([*REQUEST, ("a", "1"), ("a", "2"), ("content-length", "12"), ("grpc-encoding", "gzip")]),
    )
    assert (head.method, head.scheme, head.path, head.authority) == ("POST", "http", "/splitd.Test/Say", "localhost")
    assert head.headers == {"te": "trailers", "a": "1"}
    assert (head.content_length, head.encoding, head.is_grpc(), head.problem) == (12, "gzip", True, "")


@pytest.mark.parametrize(
    ("value", "is_grpc"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc;charset=x", True),
        ("application/grpc-web", False),
        ("text/html", False),
    ],
)
def test_the_content_type_of_grpc(value: str, is_grpc: bool) -> None:
    """It may have a subtype or a parameter, and nothing else."""
    assert headers.Decoder(Limits())(headers.request, literal(replaced("content-type", value))).is_grpc() is is_grpc


@pytest.mark.parametrize("value", ["", "20", "2000", "x00", "²00"])
def test_a_response_has_a_status_of_three_digits(value: str) -> None:
    """Anything else is malformed."""
    with pytest.raises(StreamFault):
        headers.Decoder(Limits())(headers.response, literal([(":status", value)]))


def test_trailers_have_no_pseudo_headers() -> None:
    """RFC 9113, section 8.1."""
    with pytest.raises(StreamFault):
        decoded(literal([(":status", "200"), ("grpc-status", "0")]))


# ---------------------------------------------------------------------------------------------- gRPC's meaning


@pytest.mark.parametrize("value", [b"", b"\0", b"ab", b"abc", b"\xff\xfe\xfd\xfc", bytes(range(256))])
def test_binary_metadata_survives(value: bytes) -> None:
    """Written without padding, read with or without it."""
    ((name, raw),) = headers.metadata([("x-bin", value)])
    assert b"=" not in raw
    assert decoded(headers.block([(name, raw)])).headers == {"x-bin": value}
    assert decoded(headers.block([(name, base64.b64encode(value))])).headers == {"x-bin": value}


def test_of_binary_values_joined_by_commas_the_first_counts() -> None:
    """The same is so for repeated fields."""
    assert decoded(literal([("x-bin", "YQ,Yg")])).headers == {"x-bin": b"a"}


@pytest.mark.parametrize("value", ["a", "a===", "!!!!", "YWJj\x7f", "Y Q"])
def test_malformed_binary_metadata_is_a_problem_of_the_call(value: str) -> None:
    """HTTP/2 accepts it, so the call is answered with an error that names the field."""
    assert decoded(literal([("x-bin", value)])).problem == "malformed binary metadata x-bin"


def test_values_that_are_no_text_pass_unchanged() -> None:
    """A relay sends on the bytes that it received."""
    head = decoded(literal([("x", b"\xff\xc3\xa4\x80")]))
    assert headers.metadata(head.headers.items()) == [(b"x", b"\xff\xc3\xa4\x80")]
    assert decoded(head.encoded()).pairs == head.pairs


@pytest.mark.parametrize("message", ["plain", "50% off\n", "ä€\U0001f600", "\0\x7f\r", "%41", "", "a" * 5000, "~ !"])
def test_a_status_message_survives(message: str) -> None:
    """It is percent-encoded: only printable ASCII is sent."""
    block = headers.status(5, message)
    head = decoded(block)
    assert (head.code, head.message) == (5, message)
    for name, value in head.pairs:
        assert all(0x20 <= byte < 0x7F for byte in value), name


def test_a_status_message_that_is_no_text_is_sent_as_well_as_can_be() -> None:
    """It has half of a surrogate pair, as file names and headers have that are no UTF-8: the call is answered
    nevertheless.
    """
    for message in ("name \udcff!", "half \ud800!"):
        head = decoded(headers.status(2, message))
        assert head.code == 2
        assert head.message.endswith("!")


@pytest.mark.parametrize(
    ("value", "message"), [("a%20b", "a b"), ("100%", "100%"), ("%zz", "%zz"), ("%ff!", "�!"), ("%C3%A4", "ä")]
)
def test_a_status_message_is_read_leniently(value: str, message: str) -> None:
    """An invalid percent-encoding stays as it is: a status is never lost because of its message."""
    assert decoded(literal([("grpc-status", "2"), ("grpc-message", value)])).message == message


@pytest.mark.parametrize(
    ("value", "code"),
    [("0", 0), ("16", 16), ("007", 7), ("9999", 9999), ("", 2), ("-1", 2), ("1x", 2), ("²", 2), ("99999", 2)],
)
def test_a_status_that_is_no_number_is_unknown(value: str, code: int) -> None:
    """It is UNKNOWN, as in gRPC."""
    assert decoded(literal([("grpc-status", value)])).code == code


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1H", 3600),
        ("2M", 120),
        ("3S", 3),
        ("4m", 0.004),
        ("5u", 5e-6),
        ("6n", 6e-9),
        ("0S", 0),
        ("99999999H", 99999999 * 3600),
    ],
)
def test_a_timeout_is_read(value: str, seconds: float) -> None:
    """At most eight digits and a unit."""
    head = decoded(literal([("grpc-timeout", value)]))
    assert head.timeout == pytest.approx(seconds)
    assert not head.problem


@pytest.mark.parametrize("value", ["", "S", "1", "1s", "1 S", "-1S", "1.5S", "123456789S", "1S\t", "١S"])
def test_a_malformed_timeout_is_a_problem_of_the_call(value: str) -> None:
    """No value is guessed."""
    head = decoded(literal([("grpc-timeout", value)]))
    assert head.timeout is None
    assert "malformed grpc-timeout" in head.problem


@pytest.mark.parametrize("seconds", [1e-9, 1e-6, 0.001, 0.0125, 1, 59.9999, 86400, 1e7, 1e9, 1e12, 1e20])
def test_a_timeout_is_written_rounded_up(seconds: float) -> None:
    """It is never shorter than given, unless it cannot be expressed, and at most a thousandth longer, except for the
    smallest.
    """
    head = decoded(headers.timeout(seconds))
    assert head.timeout is not None
    if seconds > 99999999 * 3600:
        assert head.timeout == 99999999 * 3600
    else:
        assert seconds * (1 - 1e-9) <= head.timeout <= max(seconds * 1.001 + 1e-9, 1e-6) + 0.001


# ---------------------------------------------------------------------------------------------- writing


def test_what_we_write_never_touches_the_table() -> None:
    """Any decoder reads our blocks with a table of size zero, any number of times."""
    pairs = [(k.encode(), v.encode()) for k, v in REQUEST] + [
        (b"new", b"x" * 300),
        (b"age", b""),
        (b":status", b"404"),
        (b"accept-encoding", b"gzip, deflate"),
    ]
    decoder = Hpack()
    decoder.header_table_size = 0
    block = headers.block(pairs)
    for _ in range(2):
        assert decoder.decode(block, raw=True) == pairs
    assert not decoder.header_table.dynamic_entries


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 16383, 16384, 40000])
def test_strings_of_any_length(length: int) -> None:
    """Lengths around each step of HPACK's numbers are tried."""
    name, value = b"n" * max(1, length), b"v" * length
    assert Hpack(1 << 20).decode(headers.field(name, value), raw=True) == [(name, value)]
