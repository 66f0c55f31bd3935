//! The one scan finds what a JSON parser would find, and builds nothing.

use infini_router::proxy::heads::{RequestHead, parse_request_head};
use infini_router::proxy::request::{MAX_MEMBERS, read_request, scan};
use infini_router::router::selection::Request;
use infini_router::utils::errors::RouterError;
use serde_json::{Value, json};

fn head(query: &str, fields: &str) -> RequestHead {
    let text = format!("POST /v1/x?{query} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    parse_request_head(text.as_bytes()).unwrap()
}

fn try_asked(body: &[u8]) -> Result<Request, RouterError> {
    read_request(&head("", ""), body, "127.0.0.1")
}

fn asked(body: &[u8]) -> Request {
    try_asked(body).unwrap()
}

fn asked_by_form(content_type: &str, body: &[u8]) -> Request {
    let head = head("", &format!("Content-Type: {content_type}\r\n"));
    read_request(&head, body, "127.0.0.1").unwrap()
}

/// A random JSON value.
fn value(random: &mut fastrand::Rng, depth: u32) -> Value {
    match random.u8(..if depth > 3 { 5 } else { 7 }) {
        0 => Value::Null,
        1 => json!(random.bool()),
        2 => json!(random.i32(..)),
        3 => json!(random.f64()),
        4 => {
            let parts = ["a", "\"", "\\", "{", "]", "\u{e4}", "\n", "model", ":"];
            json!(
                (0..random.usize(..9))
                    .map(|_| random.choice(parts).unwrap())
                    .collect::<String>()
            )
        }
        5 => (0..random.usize(..4))
            .map(|_| value(random, depth + 1))
            .collect(),
        _ => (0..random.usize(..4))
            .map(|n| (format!("model{n}\""), value(random, depth + 1)))
            .collect(),
    }
}

#[test]
fn the_scan_finds_the_values_that_a_parser_finds() {
    let mut random = fastrand::Rng::with_seed(3);
    let keys = [
        "model", "stream", "messages", "prompt", "user", "x", "a\"b", "mod\\el", "\u{e4}",
    ];
    for _ in 0..3000 {
        let members: Vec<(&str, Value)> = (0..random.usize(..8))
            .map(|_| (random.choice(keys).unwrap(), value(&mut random, 0)))
            .collect();
        let blank = random.choice(["", "\n  "]).unwrap();
        let texts: Vec<String> = members
            .iter()
            .map(|(key, value)| format!("{blank}{}:{blank}{value}", json!(key)))
            .collect();
        let body = format!("{{{}{blank}}}", texts.join(","));
        let found = scan(body.as_bytes()).unwrap();
        let spans = [
            ("model", found.model),
            ("stream", found.stream),
            ("messages", found.messages),
            ("prompt", found.prompt),
            ("user", found.user),
        ];
        for (key, span) in spans {
            let found = span.map(|span| serde_json::from_str::<Value>(&body[span]).unwrap());
            let last = members.iter().rev().find(|(name, _)| *name == key);
            assert_eq!(
                found.as_ref(),
                last.map(|(_, value)| value),
                "{key} in {body}"
            );
        }
    }
}

#[test]
fn no_bytes_make_the_scan_fail_in_another_way_than_it_says() {
    let mut random = fastrand::Rng::with_seed(4);
    let parts = [
        &b"{"[..],
        b"}",
        b"[",
        b"]",
        b"\"",
        b"\\",
        b":",
        b",",
        b" ",
        b"\"model\":",
        b"1",
        b"\xff",
        b"\0",
    ];
    for _ in 0..20_000 {
        let body: Vec<u8> = (0..random.usize(..20))
            .flat_map(|_| random.choice(parts).unwrap().to_vec())
            .collect();
        if let Some(span) = scan(&body).unwrap().model {
            assert!(span.start < span.end && span.end <= body.len());
        }
        if let Err(error) = try_asked(&body) {
            assert_eq!(error.param, Some("model"));
        }
    }
}

#[test]
fn the_model_is_found() {
    let deep = [
        &b"{\"x\":"[..],
        &b"[".repeat(50_000),
        &b"]".repeat(50_000),
        b",\"model\":\"deep\"}",
    ];
    let escapes = [
        &b"{\"x\":\""[..],
        &b"\\\\".repeat(20_000),
        b"\",\"model\":\"escapes\"}",
    ];
    let cases: &[(&[u8], Option<&str>)] = &[
        (br#"{"model":"a"}"#, Some("a")),
        (
            b" \n{ \"x\" : {\"model\":\"no\"} , \"model\" : \"a\" }",
            Some("a"),
        ),
        (br#"{"model":"a","model":"b"}"#, Some("b")),
        (br#"{"mod\u0065l":"a"}"#, Some("a")),
        (br#"{"model":"a\u002fb"}"#, Some("a/b")),
        ("{\"model\":\"m\u{f6}del\"}".as_bytes(), Some("m\u{f6}del")),
        (
            br#"{"messages":[{"content":"\"model\":\"no\""}],"model":"a"}"#,
            Some("a"),
        ),
        (br#"{"model":null}"#, None),
        (br#"{"model":""}"#, None),
        (br#"{"model":"a""#, Some("a")),
        (br#"{"model":"a","messages":[}"#, Some("a")),
        (br#"{"model":"a"} trailing"#, Some("a")),
        (br#"{"messages":["#, None),
        (br#"["model"]"#, None),
        (b"", None),
        (b"model=a", None),
        (b"\xef\xbb\xbf{\"model\":\"a\"}", None),
        (&deep.concat(), Some("deep")),
        (&escapes.concat(), Some("escapes")),
        (br#"{"model":"\ud83d"}"#, Some("\u{fffd}")),
        (br#"{"model":"\ud83d\ude00"}"#, Some("\u{1f600}")),
    ];
    for (body, model) in cases {
        assert_eq!(
            asked(body).model.as_deref(),
            *model,
            "{}",
            String::from_utf8_lossy(body)
        );
    }
}

#[test]
fn a_model_that_is_no_string_is_the_clients_mistake() {
    for value in ["1", "true", "[\"a\"]", "{\"a\":1}", "\"\\x\""] {
        let error = try_asked(format!("{{\"model\":{value}}}").as_bytes()).expect_err("refused");
        assert_eq!(error.param, Some("model"), "{value}");
    }
}

#[test]
fn a_string_that_does_not_end_names_no_model_and_ends_the_scan() {
    let bodies: [&[u8]; 6] = [
        b"{\"model\":\"m",
        b"{\"model\":\"",
        b"{\"a\":[\"x",
        b"{\"a\":{\"b\":\"x",
        b"{\"a\":\"x",
        b"{\"a\":[\"\\",
    ];
    for body in bodies {
        assert_eq!(asked(body).model, None);
    }
}

#[test]
fn more_members_than_any_client_sends_are_refused() {
    let members = |count| format!("{{{}}}", vec!["\"a\":1"; count].join(","));
    assert!(try_asked(members(MAX_MEMBERS + 1).as_bytes()).is_err());
    assert!(try_asked(members(MAX_MEMBERS).as_bytes()).is_ok());
}

#[test]
fn the_facts_of_a_chat_request() {
    let found =
        asked(br#"{"messages":[{"role":"user"}],"stream":true,"user":"u","prompt_cache_key":"k"}"#);
    assert!(found.stream);
    assert_eq!(found.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(found.prompt, br#"[{"role":"user"}]"#);
    assert_eq!(found.prompt_bytes, 17);
    assert!(!asked(br#"{"stream":"true"}"#).stream);
    assert!(!asked(br#"{"stream":false}"#).stream);
}

#[test]
fn a_session_header_goes_before_the_body() {
    let head = head("", "x-session-id: s\r\nx-infinilm-session: first\r\n");
    let found = read_request(&head, br#"{"user":"u"}"#, "").unwrap();
    assert_eq!(found.key.as_deref(), Some(&b"first"[..]));
}

#[test]
fn the_model_of_a_form_is_its_field() {
    let body = b"--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\
        Content-Type: audio/wav\r\n\r\nRIFF\x00\xff\r\n\
        --X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--X--\r\n";
    let found = asked_by_form("multipart/form-data; boundary=X", body);
    assert_eq!(found.model.as_deref(), Some("whisper-1"));
    for name in ["name=\"model\"", "name=model", "name=\"model\"; x=\"y\""] {
        let body =
            format!("--a b\r\nContent-Disposition: form-data; {name}\r\n\r\nm1\r\n--a b--\r\n");
        let found = asked_by_form("multipart/form-data; boundary=\"a b\"", body.as_bytes());
        assert_eq!(found.model.as_deref(), Some("m1"), "{name}");
    }
}

#[test]
fn a_file_that_is_called_model_is_not_the_model() {
    let body = b"--X\r\nContent-Disposition: form-data; name=\"f\"; filename=\"model\"\r\n\r\nno\r\n\
        --X\r\nContent-Disposition: form-data; name=\"f\"\r\n\r\n name=\"model\"\r\n\r\nno\r\n--X--";
    assert_eq!(
        asked_by_form("multipart/form-data; boundary=X", body).model,
        None
    );
}

#[test]
fn the_query_names_the_model_when_the_body_does_not() {
    let by = |query: &str, body: &[u8]| read_request(&head(query, ""), body, "").unwrap().model;
    assert_eq!(
        by("a=1&model=local%2Fm+x", b"").as_deref(),
        Some("local/m x")
    );
    assert_eq!(
        by("model=query", br#"{"model":"body"}"#).as_deref(),
        Some("body")
    );
    assert_eq!(by("model=&model=m", b""), None);
}
