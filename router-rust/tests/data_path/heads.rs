//! Heads follow docs/HTTP.md sections 1 and 5, whatever the bytes.

use std::rc::Rc;

use infini_router::proxy::fields::{line_ends_are_clean, line_ends_are_clean_from};
use infini_router::proxy::heads::{RequestHead, parse_request_head, parse_response_head};
use infini_router::proxy::memo::HeadMemo;
use infini_router::utils::errors::RouterError;

fn whole(line: &[u8], fields: &[&[u8]]) -> Vec<u8> {
    let mut head = line.to_vec();
    for field in fields {
        head.extend_from_slice(b"\r\n");
        head.extend_from_slice(field);
    }
    head.extend_from_slice(b"\r\n\r\n");
    head
}

fn request(line: &[u8], fields: &[&[u8]]) -> RequestHead {
    parse_request_head(&whole(line, fields)).unwrap()
}

fn refusal(line: &[u8], fields: &[&[u8]]) -> u16 {
    let error = parse_request_head(&whole(line, fields)).expect_err("refused");
    assert!(error.close);
    error.http_status()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_plain_head_is_taken_apart() {
    let fields: [&[u8]; 3] = [b"Host: h:1", b"Accept: */*", b"Content-Length: 5"];
    let head = request(b"POST /v1/x?a=1&b=2 HTTP/1.1", &fields);
    assert_eq!(
        (head.method.as_slice(), head.target.as_str()),
        (&b"POST"[..], "/v1/x?a=1&b=2")
    );
    assert_eq!((head.path(), head.query()), ("/v1/x", "a=1&b=2"));
    assert_eq!(head.host.as_deref(), Some(&b"h:1"[..]));
    assert_eq!(head.fields.content_length, Some(5));
    assert_eq!(text(&head.fields.passed), "Accept: */*\r\n");
    assert!(head.keep_alive());
}

#[test]
fn odd_request_lines_are_refused() {
    let long = [&b"GET /"[..], &[b'a'; 8192], b" HTTP/1.1"].concat();
    let lines: &[(&[u8], u16)] = &[
        (b"GET /", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET / HTTP/1.2", 505),
        (b"GET / HTTP/2.0", 505),
        (b"BREW / HTTP/1.1", 501),
        (b"get / HTTP/1.1", 501),
        (b"CONNECT h:1 HTTP/1.1", 501),
        (b"GET * HTTP/1.1", 400),
        (b"OPTIONS * HTTP/1.1", 400),
        (b"GET x HTTP/1.1", 400),
        (b"GET /a#b HTTP/1.1", 400),
        (b"GET /a\\b HTTP/1.1", 400),
        (b"GET /\xc3\xa4 HTTP/1.1", 400),
        (b"GET /../a HTTP/1.1", 400),
        (b"GET /a/.. HTTP/1.1", 400),
        (b"GET /a/./b HTTP/1.1", 400),
        (b"GET /a/%2e%2E/b HTTP/1.1", 400),
        (b"GET /a%2F..%2fb HTTP/1.1", 400),
        (b"GET /a%00b HTTP/1.1", 400),
        (&long, 414),
        (b"GET http://other/ HTTP/1.1", 400),
        (b"GET https://h/ HTTP/1.1", 400),
    ];
    for (line, status) in lines {
        assert_eq!(refusal(line, &[b"Host: h"]), *status, "{}", text(line));
    }
}

#[test]
fn harmless_paths_pass_as_they_are() {
    for path in [
        "/a..b",
        "/.well-known",
        "/a/%2Fb",
        "//a",
        "/a;x",
        "/a%20b",
        "/...",
    ] {
        let line = format!("GET {path} HTTP/1.1");
        assert_eq!(request(line.as_bytes(), &[b"Host: h"]).target, path);
    }
}

#[test]
fn an_absolute_target_becomes_its_origin_form() {
    assert_eq!(
        request(b"GET http://H:1/a?b HTTP/1.1", &[b"Host: h:1"]).target,
        "/a?b"
    );
    assert_eq!(request(b"GET http://h HTTP/1.1", &[b"Host: h"]).target, "/");
}

#[test]
fn bad_fields_are_refused() {
    let cases: &[(&[&[u8]], u16)] = &[
        (&[], 400),
        (&[b"Host: a", b"Host: a"], 400),
        (&[b"Host: a/b"], 400),
        (&[b"Host: a b"], 400),
        (&[b"Host : a"], 400),
        (&[b"Host: a", b"X: 1\r\n 2"], 400),
        (&[b"Host: a", b"X: \x01"], 400),
        (&[b"Host: a", b"X: 1\r2"], 400),
        (&[b"Host: a", b": x"], 400),
        (&[b"Host: a", b"X"], 400),
        (
            &[b"Host: a", b"Content-Length: 1", b"Content-Length: 1"],
            400,
        ),
        (&[b"Host: a", b"Content-Length: 1, 1"], 400),
        (&[b"Host: a", b"Content-Length: +1"], 400),
        (&[b"Host: a", b"Content-Length: 0x1"], 400),
        (&[b"Host: a", b"Content-Length:"], 400),
        (&[b"Host: a", b"Content-Length: 1111111111111111111"], 400),
        (
            &[
                b"Host: a",
                b"Content-Length: 1",
                b"Transfer-Encoding: chunked",
            ],
            400,
        ),
        (
            &[
                b"Host: a",
                b"Transfer-Encoding: chunked",
                b"Content-Length: 1",
            ],
            400,
        ),
        (&[b"Host: a", b"Transfer-Encoding: gzip, chunked"], 400),
        (&[b"Host: a", b"Transfer-Encoding: ,chunked"], 400),
        (
            &[
                b"Host: a",
                b"Transfer-Encoding: chunked",
                b"Transfer-Encoding: chunked",
            ],
            400,
        ),
        (&[b"Host: a", b"Content_Length: 1"], 400),
        (&[b"Host: a", b"Expect: magic"], 417),
        (
            &[b"Host: a", b"Connection: upgrade", b"Upgrade: websocket"],
            501,
        ),
    ];
    for (fields, status) in cases {
        let shown: Vec<_> = fields.iter().map(|field| text(field)).collect();
        assert_eq!(refusal(b"POST / HTTP/1.1", fields), *status, "{shown:?}");
    }
}

#[test]
fn a_hundred_fields_are_enough() {
    let many: Vec<Vec<u8>> = (0..100).map(|n| format!("X-{n}: 1").into_bytes()).collect();
    let mut fields: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    fields.push(b"Host: a");
    assert_eq!(refusal(b"GET / HTTP/1.1", &fields), 431);
    fields.remove(0);
    assert!(request(b"GET / HTTP/1.1", &fields).keep_alive());
}

#[test]
fn http_1_0_needs_no_host_and_knows_no_chunks() {
    assert!(!request(b"GET / HTTP/1.0", &[]).keep_alive());
    assert!(request(b"GET / HTTP/1.0", &[b"Connection: Keep-Alive"]).keep_alive());
    assert_eq!(
        refusal(b"POST / HTTP/1.0", &[b"Transfer-Encoding: chunked"]),
        400
    );
}

#[test]
fn fields_for_one_hop_are_not_passed_on_and_values_keep_their_blanks() {
    let fields: &[&[u8]] = &[
        b"Host: a",
        b"Connection: close, X-Own",
        b"x-own: 1",
        b"TE: trailers",
        b"Proxy-Anything: 1",
        b"Upgrade: h2c",
        b"X-Forwarded-For: 9.9.9.9",
        b"X-Kept:  1 \t",
    ];
    let head = request(b"GET / HTTP/1.1", fields);
    assert_eq!(text(&head.fields.passed), "X-Kept: 1 \t\r\n");
    assert!(!head.keep_alive());
    assert_eq!(
        head.forwarded,
        [(b"x-forwarded-for".to_vec(), b"9.9.9.9".to_vec())]
    );
}

#[test]
fn line_ends_are_judged() {
    assert!(line_ends_are_clean(b"a\r\nb\r\n\r\n"));
    assert!(!line_ends_are_clean(b"a\nb\r\n"));
    assert!(!line_ends_are_clean(b"a\0\r\n"));
    assert!(line_ends_are_clean_from(b"a\r\nb", 2));
    assert!(!line_ends_are_clean_from(b"ab\nb", 2));
}

#[test]
fn a_request_id_is_taken_only_when_it_is_safe() {
    let id = |field: &[u8]| request(b"GET / HTTP/1.1", &[b"Host: a", field]).request_id;
    assert_eq!(id(b"X-Request-Id: a.b-1").as_deref(), Some("a.b-1"));
    assert_eq!(id(b"X-Request-Id: a b"), None);
}

type Read = Result<(Rc<RequestHead>, Option<u64>), RouterError>;

fn read(memo: &mut HeadMemo<RequestHead>, head: &str) -> Read {
    memo.read(head.as_bytes(), parse_request_head)
}

fn with_length(value: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\ncontent-length: {value}\r\nX: 1\r\n\r\n")
}

#[test]
fn the_memo_knows_a_head_again_whatever_its_length_says() {
    let mut memo = HeadMemo::default();
    let (first, length) = read(&mut memo, &with_length("7")).unwrap();
    let (again, other) = read(&mut memo, &with_length("12345")).unwrap();
    assert_eq!((length, other), (Some(7), Some(12345)));
    assert!(Rc::ptr_eq(&first, &again));
}

#[test]
fn the_memo_lets_no_bad_length_pass() {
    for value in [
        "1 2",
        "-1",
        "+1",
        "0x1",
        "1,1",
        "",
        "1111111111111111111",
        "\u{b2}",
    ] {
        let mut memo = HeadMemo::default();
        read(&mut memo, &with_length("7")).unwrap();
        assert!(read(&mut memo, &with_length(value)).is_err(), "{value}");
    }
    let mut memo = HeadMemo::default();
    read(
        &mut memo,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n",
    )
    .unwrap();
    let twice = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\n";
    assert!(read(&mut memo, twice).is_err());
}

#[test]
fn the_memo_tells_heads_without_length_apart() {
    let mut memo = HeadMemo::default();
    let (first, length) = read(&mut memo, "GET /a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(length, None);
    let (again, _) = read(&mut memo, "GET /a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(Rc::ptr_eq(&first, &again));
    let (other, _) = read(&mut memo, "GET /b HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(other.path(), "/b");
}

#[test]
fn an_engines_head_is_passed_on_without_its_framing() {
    let head = parse_response_head(
        b"HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nConnection: close\r\nSet-Cookie: b\r\n\
          Content-Type: text/event-stream; charset=utf-8\r\nX-Request-Id: theirs\r\n\r\n",
    )
    .unwrap();
    assert_eq!(
        text(&head.fields.passed),
        "HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
         Content-Type: text/event-stream; charset=utf-8\r\n"
    );
    assert!(head.event_stream);
    assert!(!head.keep_alive());
}

#[test]
fn a_compressed_stream_is_none_that_can_be_read() {
    let cases = [
        ("gzip", false),
        ("BR", false),
        ("identity, zstd", false),
        ("Identity", true),
        ("", true),
    ];
    for (encoding, is_stream) in cases {
        let kind = "Content-Type: text/event-stream\r\n";
        let encoded = format!("Content-Encoding: {encoding}\r\n");
        for fields in [kind.to_owned() + &encoded, encoded.clone() + kind] {
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            let head = parse_response_head(head.as_bytes()).unwrap();
            assert_eq!(head.event_stream, is_stream, "{fields}");
            assert!(text(&head.fields.passed).ends_with(&fields));
        }
    }
}

#[test]
fn an_engines_bad_head_is_broken() {
    let heads: &[&[u8]] = &[
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/1.1 600 High\r\n\r\n",
        b"HTTP/1.1 200 a\x01b\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX y: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n\r\n",
        b"hello\r\n\r\n",
    ];
    for head in heads {
        assert!(parse_response_head(head).is_err(), "{}", text(head));
    }
}
