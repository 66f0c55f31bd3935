use std::sync::{Arc, Mutex};

use infini_router::registry::client::{Answer, RegistryAnswer, RegistryClient};
use serde_json::{Value, json};

use crate::rig::{FakeServer, free_port, raw_server, registration};

fn client(urls: &[String]) -> RegistryClient {
    RegistryClient::new(urls, 2.0)
}

async fn list(client: &RegistryClient) -> RegistryAnswer {
    match client.fetch(None, 0.0).await.unwrap() {
        Answer::List(list) => list,
        Answer::NotModified => panic!("nothing was asked about a revision"),
    }
}

async fn of(content: Value) -> RegistryAnswer {
    let server = FakeServer::start().await;
    server.answer("/services", 200, content);
    let answer = list(&client(&[server.url()])).await;
    assert_eq!(server.targets(), ["/services?healthy=true"]);
    answer
}

#[tokio::test]
async fn an_answer_becomes_services_with_models_weight_and_status() {
    let mut entry = registration("a", 8100, None);
    entry["weight"] = json!(2.5);
    entry["metadata"]["models_list"] = json!([{ "id": "m", "owned_by": "x" }]);
    let answer = of(json!({ "services": [entry], "total": 1, "revision": 7 })).await;
    let [service] = answer.services.as_slice() else {
        panic!("one")
    };
    assert_eq!(answer.revision, Some(7));
    assert_eq!(
        (service.name.as_str(), service.address()),
        ("a", ("127.0.0.1", 8100))
    );
    assert!((service.weight - 2.5).abs() < 1e-9);
    assert_eq!(service.models, ["m"]);
    assert_eq!(service.models_list[0]["owned_by"], "x");
    assert!(service.is_engine());
}

#[tokio::test]
async fn a_registry_of_the_earlier_version_is_understood() {
    let entry =
        json!({ "name": "a", "host": "h", "port": 1, "status": "running", "metadata": null });
    let answer = of(json!({ "services": [entry] })).await;
    assert_eq!(answer.revision, None);
    assert!((answer.services[0].weight - 1.0).abs() < 1e-9);
    assert!(answer.services[0].models.is_empty());
}

#[tokio::test]
async fn entries_that_cannot_be_used_are_skipped() {
    let good = registration("good", 8100, None);
    let change = |changes: &[(&str, Value)]| {
        let mut entry = good.clone();
        for (key, value) in changes {
            entry[*key] = value.clone();
        }
        entry
    };
    let mut deep = json!(1);
    for _ in 0..40 {
        deep = json!([deep]);
    }
    let odd = [
        ("name", json!("odd")),
        ("weight", json!(-3)),
        ("status", json!(5)),
    ];
    let entries = json!([
        7,
        {},
        change(&[("name", json!("x\r\ny"))]),
        change(&[("name", json!("p")), ("port", json!(65535))]),
        change(&[("name", json!("q")), ("port", json!(true))]),
        change(&[("name", json!("h")), ("host", json!("http://h"))]),
        change(&[
            ("name", json!("deep")),
            ("metadata", json!({ "deep": deep }))
        ]),
        change(&odd),
        good,
        change(&[("port", json!(9))]),
    ]);
    let answer = of(json!({ "services": entries })).await;
    let shown: Vec<_> = answer
        .services
        .iter()
        .map(|s| (s.name.as_str(), s.port, s.status.as_str()))
        .collect();
    assert_eq!(shown, [("odd", 8100, "running"), ("good", 8100, "running")]);
    assert!(answer.services[0].weight.abs() < 1e-9);
}

#[tokio::test]
async fn it_goes_to_the_next_registry_and_stays_there() {
    let (broken, works) = (FakeServer::start().await, FakeServer::start().await);
    let content = json!({ "services": [], "revision": 1 });
    broken.answer("/services", 500, "{}");
    works.answer("/services", 200, &content);
    let nobody = format!("http://127.0.0.1:{}", free_port().await);
    let client = client(&[nobody, broken.url(), works.url()]);
    list(&client).await;
    list(&client).await;
    assert_eq!((broken.heads().len(), works.heads().len()), (1, 2));
    works.answer("/services", 503, "{}");
    broken.answer("/services", 200, &content);
    list(&client).await;
    assert_eq!(broken.heads().len(), 2);
}

#[tokio::test]
async fn a_revision_is_shown_to_the_registry_that_gave_it_only() {
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let content = json!({ "services": [], "revision": 5 });
    first.answer("/services", 200, &content);
    second.answer("/services", 200, &content);
    let client = client(&[first.url(), second.url()]);
    list(&client).await;
    first.answer("/services", 500, "{}");
    client.fetch(Some(5), 1.5).await.unwrap();
    assert_eq!(
        first.targets()[1],
        "/services?healthy=true&since=5&wait=1.5"
    );
    assert_eq!(second.targets(), ["/services?healthy=true"]);
}

#[tokio::test]
async fn an_unchanged_list_is_told_from_a_new_one() {
    let server = FakeServer::start().await;
    server.answer("/services", 304, "");
    let answer = client(&[server.url()]).fetch(Some(5), 0.01).await.unwrap();
    assert_eq!(answer, Answer::NotModified);
}

#[tokio::test]
async fn other_answers_are_failures_and_redirects_are_not_followed() {
    for (status, body, reason) in [
        (302, r#"{"services": []}"#.to_owned(), "answered 302"),
        (304, String::new(), "answered 304"),
        (200, "<html>".to_owned(), "not JSON"),
        (200, "[".repeat(100_000), "not JSON"),
        (200, "[]".to_owned(), "no list of services"),
        (200, r#"{"services": {}}"#.to_owned(), "no list of services"),
    ] {
        let server = FakeServer::start().await;
        server.answer("/services", status, body);
        let error = client(&[server.url()]).fetch(None, 0.0).await.unwrap_err();
        assert!(error.0.contains(reason), "{error}");
        assert_eq!(server.heads().len(), 1);
    }
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_a_failure_after_the_time_limit() {
    let (url, _running) = raw_server(b"").await;
    let error = RegistryClient::new(&[url], 0.05)
        .fetch(None, 0.0)
        .await
        .unwrap_err();
    assert!(error.0.contains("no answer within 0.05 s"), "{error}");
}

/// What is logged while it lives, on this thread.
struct Logged {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Logged {
    fn new() -> Self {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let sink = Arc::clone(&text);
        let subscriber = tracing_subscriber::fmt().with_writer(move || Sink(Arc::clone(&sink)));
        let guard = tracing::subscriber::set_default(subscriber.finish());
        Self {
            text,
            _guard: guard,
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
    }
}

struct Sink(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_entry_that_cannot_be_used_is_logged_once() {
    let logged = Logged::new();
    let server = FakeServer::start().await;
    server.answer(
        "/services",
        200,
        json!({ "services": [{ "name": "x\r\ny" }] }),
    );
    let client = client(&[server.url()]);
    list(&client).await;
    list(&client).await;
    let text = logged.text();
    let skipped: Vec<_> = text
        .lines()
        .filter(|line| line.contains("skipped"))
        .collect();
    assert_eq!(skipped.len(), 1, "{text}");
    assert!(
        skipped[0].contains("registry entry skipped reason="),
        "{text}"
    );
}
