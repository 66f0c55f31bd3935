//! The client sees the whole answer, or sees that it is not whole.

use std::rc::Rc;

use infini_router::proxy::heads::{parse_request_head, parse_response_head};
use infini_router::proxy::relay::{After, PING, Relay};
use infini_router::utils::errors::{Code, RouterError};

const STREAM: &str = "Content-Type: text/event-stream\r\n";

fn relay(version: &str) -> Relay {
    let text = format!("POST /v1/chat/completions HTTP/{version}\r\nHost: a\r\n\r\n");
    Relay::new(Rc::new(parse_request_head(text.as_bytes()).unwrap()), true)
}

fn start(relay: &mut Relay, fields: &str, length: Option<u64>) -> String {
    let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    let mut out = Vec::new();
    relay.start(
        &parse_response_head(head.as_bytes()).unwrap(),
        length,
        b"own: 1\r\n",
        &mut out,
    );
    String::from_utf8(out).unwrap()
}

fn feed(relay: &mut Relay, payload: &str) -> String {
    let mut out = Vec::new();
    let framed = relay.feed(payload.as_bytes(), &mut out);
    out.extend_from_slice(framed.payload);
    out.extend_from_slice(framed.after);
    String::from_utf8(out).unwrap()
}

fn break_off(relay: &mut Relay) -> (String, After) {
    let mut out = Vec::new();
    let error = RouterError::new(Code::UpstreamReset, "gone");
    let after = relay.break_off(&error, "id", &mut out);
    (String::from_utf8(out).unwrap(), after)
}

#[test]
fn an_answer_of_known_length_keeps_it() {
    let mut relay = relay("1.1");
    let head = start(&mut relay, "", Some(3));
    assert_eq!(
        head,
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nown: 1\r\n\r\n"
    );
    assert_eq!(feed(&mut relay, "abc"), "abc");
    assert_eq!((relay.end(), relay.after()), (&b""[..], After::KeepAlive));
}

#[test]
fn another_one_goes_out_in_chunks_and_to_http_1_0_until_the_end_of_the_connection() {
    let mut chunked = relay("1.1");
    assert!(start(&mut chunked, "", None).contains("Transfer-Encoding: chunked\r\n"));
    assert_eq!(feed(&mut chunked, "abcdefghijk"), "b\r\nabcdefghijk\r\n");
    assert_eq!(chunked.end(), b"0\r\n\r\n");
    let mut plain = relay("1.0");
    assert!(start(&mut plain, "", None).ends_with("Connection: close\r\n\r\n"));
    assert_eq!(feed(&mut plain, "abc"), "abc");
    assert_eq!((plain.end(), plain.after()), (&b""[..], After::Close));
}

#[test]
fn a_stream_is_complete_when_it_shows_its_end() {
    let ends = [
        ("data: [DONE]\n\n", true),
        ("data: {\"finish_reason\": \"stop\"}\n\n", true),
        ("data: {\"finish_reason\":null}\n\n", false),
        ("data: {}\n\n", false),
    ];
    for (last, complete) in ends {
        let mut relay = relay("1.1");
        start(&mut relay, STREAM, None);
        feed(&mut relay, &"data: x\n\n".repeat(5000));
        feed(&mut relay, last);
        assert_eq!(relay.looks_complete(), complete, "{last}");
    }
}

#[test]
fn an_end_that_lies_far_back_does_not_count() {
    let mut relay = relay("1.1");
    start(&mut relay, STREAM, None);
    feed(&mut relay, "data: [DONE]\n\n");
    feed(&mut relay, &"x".repeat(5000));
    assert!(!relay.looks_complete());
}

#[test]
fn a_broken_stream_gets_one_error_event_on_a_line_of_its_own_and_no_last_chunk() {
    let mut relay = relay("1.1");
    start(&mut relay, STREAM, None);
    feed(&mut relay, "data: {\"half");
    let (sent, after) = break_off(&mut relay);
    assert_eq!(after, After::Close);
    assert!(sent.contains("\r\n\n\ndata: {\"error\":{"), "{sent}");
    assert!(sent.contains("\"code\":\"upstream_reset\"") && sent.contains("\"request_id\":\"id\""));
    assert!(!sent.ends_with("0\r\n\r\n") && !sent.contains("[DONE]"));
}

#[test]
fn other_broken_answers_are_cut_visibly() {
    let mut sized = relay("1.1");
    start(&mut sized, "", Some(10));
    assert_eq!(break_off(&mut sized), (String::new(), After::Close));
    let mut until_close = relay("1.0");
    start(&mut until_close, "", None);
    assert_eq!(break_off(&mut until_close), (String::new(), After::Reset));
}

#[test]
fn an_answer_without_body_is_complete_and_nothing_is_written_in_place_of_one() {
    let head = b"HEAD /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut relay = Relay::new(Rc::new(parse_request_head(head).unwrap()), true);
    start(&mut relay, STREAM, None);
    assert!(relay.event_stream && relay.looks_complete());
    assert_eq!(feed(&mut relay, "data: x\n\n"), "");
    assert_eq!((relay.end(), relay.after()), (&b""[..], After::KeepAlive));
    assert_eq!(break_off(&mut relay), (String::new(), After::Close));
}

#[test]
fn comments_go_out_between_events_only() {
    let mut relay = relay("1.1");
    start(&mut relay, STREAM, None);
    assert!(relay.between_events());
    feed(&mut relay, "data: 1\n");
    assert!(!relay.between_events());
    feed(&mut relay, "\n");
    assert!(relay.between_events());
    feed(&mut relay, std::str::from_utf8(PING).unwrap());
    assert!(relay.between_events());
}

#[test]
fn waiting_can_be_made_visible_before_the_engines_head() {
    let mut relay = relay("1.1");
    let mut out = Vec::new();
    relay.start_early(b"own: 1\r\n", &mut out);
    let head = String::from_utf8(out).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"));
    assert!(head.contains("Transfer-Encoding: chunked\r\nown: 1\r\n\r\n"));
    assert_eq!(feed(&mut relay, ":\n\n"), "3\r\n:\n\n\r\n");
}
