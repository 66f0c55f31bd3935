"""Requests as hypothesis strategies: mostly sound ones, with every kind of oddity strewn in."""
# ruff: noqa: E501 - tables are easier to read in long lines

import json
from typing import Any

from hypothesis import strategies as st

from differential.wire_parts import (
    Draw,
    chunked,
    cut,
    lines,
    mostly,
    pick,
    rarely,
    several,
    spoilt,
    upto,
)

BASE = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/chat/completions", "/v1/x"]
PATHS = [
    *BASE, "/v1/", "/v1", "/completions", "/generate", "/responses/r-1", "/audio/a", "/sleep", "/",
    "/v1/models", "/v1/models/m", "/v1/models/%C3%A9", "/v1/models/none", "/models", "/v1/models/",
    "/v1/%2e%2e/x", "/v1/a/../b", "/v1/./a", "/v1/a%2fb", "/v1/a%2f..%2fb", "/v1/%00", "/v1/%", "/v1/%zz",
    "/v1/a/..", "/v1/.a", "/v1/..a/", "/v1/a.", "/v1/%2e", "/v1/a%2E%2e/b", "//v1/x", "/v1//x", "/V1/x",
    "/v1/a;b=c/..;/d", "/v1/...", "/v1/x%2F.", "/v1\\x", "/v1/x#f", "/v1/\u00e9", "*", "v1/x", "a:80", "",
    "http://a/v1/x", "HTTP://A/v1/x", "http://b/v1/x", "https://a/v1/x", "http://a", "http://a?model=m",
    "http:///v1/x", "http://a:80/v1/x", "http://u@a/v1/x", "http://a/v1/../x",
]  # fmt: skip
QUERIES = [
    "?model=m", "?model=none", "?model=%6d", "?model=%C3%A9", "?a=1&model=m", "?model=", "?model=m+", "?",
    "?model=none&model=m", "?MODEL=none", "?a=%", "?model=%zz", "?model=%ff", "?x=/../y", "?model=%", "??",
    "?model=m%00", "?a='\"<>{}|^`", "?model=%0", "?xmodel=none", "?model=%6D%6", "?a=%00", "?a=#b", "?/v1/../x",
]  # fmt: skip
METHODS = ["POST", "POST", "POST", "GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]
ODD_METHODS = [
    "TRACE",
    "CONNECT",
    "post",
    "GETS",
    "G",
    "P()ST",
    "",
    "QUERY",
    "PRI",
    "M-SEARCH",
    "Get",
]
ODD_VERSIONS = ["HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1 ", "http/1.1", "HTTP/11", "HTTP/1", "", "HTTP/3", "HTTP/1.10", "XTTP/1.1", "HTTP/9.9"]  # fmt: skip
NAMES = [
    "Connection", "connection", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "proxy-x", "TE",
    "Trailer", "Upgrade", "HTTP2-Settings", "Expect", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host",
    "X-Forwarded-Proto", "X-Real-IP", "X-Request-Id", "Via", "Content-Type", "Authorization", "Cookie",
    "Accept", "X-A", "x-a", "X_A", "X-Infinilm-Session", "session-id", "X-Session-Id", "Content_Length",
    "transfer_encoding", "Content-Lengthy", "Proxy", "X-Accel-Buffering", "traceparent", "!#$%&'*+-.^_`|~9",
    "Host", "Content-Encoding", "Cache-Control", "Transfer-Encoding ", "X A", "", "X-\u00e9", "Proxy_X", "Date",
]  # fmt: skip
VALUES = [
    "", "a", "a, b", "close", "keep-alive", "Close", "keep-alive, X-A", "x-a", "close, keep-alive", "upgrade",
    "Upgrade, HTTP2-Settings", "h2c", "websocket", "100-continue", "100-Continue", "200-ok", "trailers",
    "\tpadded \t", "caf\u00e9", "\u00ff\u0080", "quoted \"x\"; y", "a\tb", "r-1", "r 1", "id" * 33, "1.1 other",
    "1.1 infinilm-00000000", "application/json", "multipart/form-data; boundary=b", "host", "content-type",
    "te, , x-a ,", ",", "a;q=0.5", "x" * 900, "Host", "via, x-request-id", "X-Request-Id", "gzip", "0", "1",
    "authorization", "cookie", "x\u0001y", "x\u007fy", "a\u00a0b", "h2c, websocket", " ", "2001:db8::1",
]  # fmt: skip
HOSTS = [
    "a", "A", "a:80", "", "[::1]", "[::1]:80", "a:", "a:123456", "a b", "a/b", "u@a", "a,b", "%41", "[", "[]",
    "a:x", "::1", "a_b", "a\u00e9", "a\"", "[::1", "[::1]x", "[v1.a]", "-", ".",
]  # fmt: skip

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
MODELS = [
    '"m"', '"m"', '"m"', '"m"', '"\\u006d"', '"none"', "null", '""', "1", "true", "[]", "{}", '"\u00e9"',
    '"\\u00e9"', '"\\ud83d"', '"\\ud83d\\ude00"', '"m', '"\\x"', '"\\u00"', '"m\\u0000"', "m", '"m\n"', "",
    '"a/b"', '"\\\\"', '"\\""', '"\\/m"', "-", '"M"', '"m "', "1e400", '"\\uD83D\\u0041"', '"<>&\u2028"',
]  # fmt: skip
KEYS = ['"model"', '"model"', '"\\u006dodel"', '"Model"', '"mod\\u0065l"', '"model" ', "'model'", "model", '"model\\u0000"']  # fmt: skip
MEMBERS = [
    '"stream":true', '"stream":true', '"stream":false', '"stream":1', '"stream":"true"', '"user":"u"',
    '"messages":[{"role":"user","content":"hi"}]', '"prompt":"p"', '"input":["a","b"]', '"messages":[',
    '"prompt_cache_key":"k"', '"a":{"model":"none"}', '"b":[[[{"model":1}]]]', '"c":"\\"model\\":1"',
    '"x":}', '"y":]', '"z":NaN', '"w":1 2', '"v"', "1", "", '"s":"\\\\"', '"t":"\\', '"q":{"a":"}"}', '"r":tru',
]  # fmt: skip


def json_body(draw: Draw) -> bytes:
    """An object with members that routing looks at, in odd spellings; or any other text."""
    members = several(draw, MEMBERS, 3)
    for _ in range(pick(draw, [1, 1, 1, 0, 2])):
        key = mostly(draw, '"model"', KEYS)
        model = mostly(draw, MODELS[0], MODELS, 3)
        members.insert(upto(draw, len(members)), f"{key}:{model}")
    if rarely(draw, 6):
        members.append(f'"any":{json.dumps(draw(JSON_VALUES))}')
    blank = mostly(draw, "", [" ", "\n", "\t \r\n", "\u00a0", "\ufeff", "\x0b"])
    text = blank + "{" + f"{blank},".join(members) + mostly(draw, "}", ["", "}}", "} x", "\n"])
    encoding = mostly(draw, "utf-8", ["latin-1", "utf-16"])
    return text.encode(encoding, "replace")


def form_body(draw: Draw) -> tuple[bytes, str]:
    """A form with the field `model`, and its content type."""
    mark = pick(draw, ["b", "----x9", "b b", 'b"', "a" * 70, "a" * 71, "b=c"])
    said = mostly(draw, f'"{mark}"', [mark, f"{mark}; charset=x", "other", "", '"b'])
    name = mostly(draw, 'name="model"',
        ["name=model", "name='model'", 'filename="f"; name="model"', 'name="model"; filename="f"',
         'xname="model"', 'Name="model"', 'name=models', 'name="model', "name=model;", 'name="x"']
    )  # fmt: skip
    model = pick(draw, ["m", "m", "none", "", "caf\u00e9", "m\r\n"])
    parts = [
        f"Content-Disposition: form-data; {name}\r\n\r\n{model}",
        'Content-Disposition: form-data; name="file"; filename="x"\r\nContent-Type: audio/wav\r\n\r\nname="model"',
    ]
    parts = parts[::-1] if rarely(draw, 2) else parts
    end = mostly(draw, f"\r\n--{mark}--\r\n", ["", "\r\n", f"--{mark}--"])
    body = "".join(f"\r\n--{mark}\r\n{part}" for part in parts)[2:] + end
    kind = mostly(draw, "multipart/form-data", ["Multipart/Form-Data", "multipart/mixed"])
    sign = mostly(draw, "boundary=", ["Boundary=", "boundary =", "x=1; boundary="])
    return body.encode(), f"{kind}; {sign}{said}"


def body_and_type(draw: Draw) -> tuple[bytes, str | None]:  # noqa: PLR0911 - one for each kind
    kind = pick(draw, ["json"] * 10 + ["form"] * 3 + ["bytes", "big", "none", "deep", "many"])
    if kind == "form":
        return form_body(draw)
    if kind == "bytes":
        return draw(st.binary(max_size=60)), None
    if kind == "big":
        return b'{"model":"m","prompt":"' + b"x" * pick(
            draw, [9_000, 17_000, 70_000, 300_000, 399_975, 399_976, 410_000]
        ) + b'"}', None
    if kind == "deep":
        depth = pick(draw, [50, 5000])
        return b'{"a":' + b"[" * depth + b"]" * depth + b',"model":"m"}', None
    if kind == "many":
        count = pick(draw, [4094, 4095, 4096, 4097])
        return b"{" + b'"a":1,' * count + b'"model":"m"}', None
    if kind == "none":
        return b"", None
    return json_body(draw), pick(draw, [None, "application/json", "text/plain"])


def head_fields(draw: Draw) -> list[tuple[str, str]]:
    """Fields of every kind; `Host` is mostly right."""
    count = pick(draw, [0, 0, 1, 1, 2, 3, 5])
    fields = []
    for _ in range(count):
        names, values = (NAMES, VALUES) if rarely(draw, 8) else (SOUND_NAMES, SOUND_VALUES)
        fields.append((pick(draw, names), pick(draw, values)))
    if rarely(draw, 60):
        fields += [("X-Many", "1")] * pick(draw, [90, 95, 99, 100, 101, 250])
    if rarely(draw, 60):
        fields.append(("X-Long", "x" * pick(draw, [8_000, 15_900, 16_200, 16_384, 40_000])))
    hosts = several(draw, HOSTS, 2) if rarely(draw, 10) else ["a"]
    where = pick(draw, [0, 0, len(fields)])
    return [*fields[:where], *(("Host", host) for host in hosts), *fields[where:]]


ODD_NAMES = {"Content_Length", "transfer_encoding", "Transfer-Encoding ", "X A", "", "X-\u00e9", "Host", "Upgrade", "Expect"}  # fmt: skip
SOUND_NAMES = [name for name in NAMES if name not in ODD_NAMES]
SOUND_VALUES = [v for v in VALUES if not {"\x01", "\x7f"} & set(v)]
ODD_LENGTHS = ["+{}", "{} ", "0{}", "{},{}", "-1", "", "0x{:x}", "{}.0", "99999999999999999999", "1" * 18, "{}a", "\u0661", " \t{}", "0" * 18, "0" * 19, "{}\x00", "{};"]  # fmt: skip
ODD_CODINGS = ["Chunked", "chunked ", "gzip, chunked", "chunked, chunked", "identity", "", "chunked;x=1", "xchunked", "chunked,", "\tchunked", "gzip", "chunked\x0b"]  # fmt: skip


def framing(draw: Draw, body: bytes) -> tuple[list[tuple[str, str]], bytes]:  # noqa: PLR0911 - one for each kind
    """The fields that delimit the body, and the body on the wire."""
    kind = pick(draw, ["sized"] * 8 + ["chunked"] * 6 + ["none", "odd", "wrong", "both", "twice"])
    length = ("Content-Length", str(len(body)))
    if kind == "sized":
        return [(mostly(draw, "Content-Length", ["content-LENGTH"]), str(len(body)))], body
    if kind == "chunked":
        coding = mostly(draw, "chunked", ODD_CODINGS, 12)
        return [("Transfer-Encoding", coding)], chunked(draw, body)
    if kind == "none":
        return [], b""
    if kind == "odd":
        text = pick(draw, ODD_LENGTHS)
        return [("Content-Length", text.format(len(body), len(body)))], body
    if kind == "wrong":
        return [("Content-Length", str(max(0, len(body) + pick(draw, [-2, -1, 1, 5]))))], body
    if kind == "twice":
        return [length, (length[0], pick(draw, [length[1], "0"]))], body
    both = ("Transfer-Encoding", pick(draw, ["chunked", "Chunked", "identity"]))
    pair = [length, both] if rarely(draw, 2) else [both, length]
    return pair, chunked(draw, body)


def request(draw: Draw) -> tuple[str, bytes]:
    """A method and the bytes of a request."""
    method = mostly(draw, "POST", METHODS, 3)
    if rarely(draw, 25):
        method = pick(draw, ODD_METHODS)
    target = mostly(draw, "/v1/chat/completions", BASE * 3 + PATHS, 2)
    if rarely(draw, 4):
        target += pick(draw, QUERIES)
    if rarely(draw, 80):
        target += "/" + "x" * pick(draw, [8_100, 8_192, 9_000, 16_400])
    version = "HTTP/1.0" if rarely(draw, 8) else "HTTP/1.1"
    version = mostly(draw, version, ODD_VERSIONS, 30)
    fields = head_fields(draw)
    bodyless = method in ("GET", "HEAD", "OPTIONS") and not rarely(draw, 10)
    body, kind = (b"", None) if bodyless else body_and_type(draw)
    delimiters, sent = ([], b"") if bodyless else framing(draw, body)
    where = upto(draw, len(fields))
    fields[where:where] = delimiters
    if kind:
        fields.append(("Content-Type", kind))
    head = lines(draw, f"{method} {target} {version}", fields)
    if rarely(draw, 20):
        head = spoilt(draw, head)
    empty = mostly(draw, b"", [b"\r\n", b"\r\n\r\n", b"\n", b" \r\n", b"\r"], 30)
    return method, empty + head + sent


@st.composite
def wires(draw: Draw) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """One to three requests on a connection, in pieces; and their methods."""
    requests = [request(draw) for _ in range(pick(draw, [1, 1, 1, 1, 2, 3]))]
    if rarely(draw, 12):
        requests.append(requests[-1])  # a head that comes again is read in a shorter way
    wire = b"".join(data for _, data in requests)
    if rarely(draw, 60):
        wire = wire[: 1 + upto(draw, len(wire) - 1)]
    return cut(draw, wire), tuple(method for method, _ in requests)
