use infini_router::utils::fetch::{FetchError, Fetched, Question, fetch, parse_json};
use serde_json::json;

use crate::rig::{FakeServer, free_port, raw_server};

async fn get(url: &str, limit: usize) -> Result<Fetched, FetchError> {
    fetch(Question {
        url,
        timeout: 2.0,
        limit,
        authorization: None,
    })
    .await
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told_from_other_failures() {
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("http://{host}:{}/", free_port().await);
        assert!(get(&url, 100).await.unwrap_err().refused, "{url}");
    }
}

#[tokio::test]
async fn addresses_that_lead_nowhere_are_failures_but_not_refusals() {
    let urls = [
        "http://no-such-host.invalid/",
        "ftp://h/",
        "https://h/",
        "http://h:99999/",
        "x",
    ];
    for url in urls {
        assert!(!get(url, 100).await.unwrap_err().refused, "{url}");
    }
}

#[tokio::test]
async fn an_answer_over_the_limit_is_refused() {
    let server = FakeServer::start().await;
    server.answer("/x", 200, "x".repeat(5_000_000));
    let error = get(&format!("{}/x", server.url()), 1000).await.unwrap_err();
    assert_eq!(error.reason, "answer larger than 1000 bytes");
}

#[tokio::test]
async fn a_redirect_is_an_answer() {
    let server = FakeServer::start().await;
    server.answer("/x", 307, "{}");
    let url = format!("{}/x?a=b", server.url());
    assert_eq!(get(&url, 10).await.unwrap().status, 307);
    assert_eq!(server.targets(), ["/x?a=b"]);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_failure() {
    let short = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab";
    for answer in [short.as_slice(), b"junk", b"HTTP/1.1 2"] {
        let (url, _running) = raw_server(answer).await;
        assert!(get(&url, 100).await.is_err());
    }
}

#[tokio::test]
async fn a_body_without_length_ends_with_the_connection() {
    let (url, _running) = raw_server(b"HTTP/1.0 200 OK\r\n\r\nall of it").await;
    assert_eq!(get(&url, 100).await.unwrap().body, "all of it");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left_after_the_time_limit() {
    let (url, _running) = raw_server(b"").await;
    let question = Question {
        url: &url,
        timeout: 0.05,
        limit: 100,
        authorization: None,
    };
    let error = fetch(question).await.unwrap_err();
    assert_eq!(error.reason, "no answer within 0.05 s");
}

#[test]
fn numbers_that_json_does_not_have_become_null() {
    let read = parse_json(b"[NaN, Infinity, 1e999, 1.5]").unwrap();
    assert_eq!(read.to_string(), json!([null, null, null, 1.5]).to_string());
    assert!(
        parse_json(b"\xff")
            .unwrap_err()
            .reason
            .starts_with("not JSON: ")
    );
    assert_eq!(parse_json(b"\xef\xbb\xbf[]").unwrap(), json!([]));
}
