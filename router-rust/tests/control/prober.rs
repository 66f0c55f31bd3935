use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use infini_router::config::RouterConfig;
use infini_router::router::health::HealthProber;
use infini_router::router::table::{Service, TableStore};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::rig::{
    FakeServer, Running, engine, free_port, listed, metadata, quick, raw_server, read_head,
    running, until, with,
};

/// A prober at work, its table, and every change of verdict.
pub(crate) struct Probed {
    pub(crate) store: Arc<TableStore>,
    pub(crate) prober: Arc<HealthProber>,
    changes: Arc<Mutex<Vec<(String, bool)>>>,
    heard: Arc<AtomicBool>,
    _running: Running,
}

impl Probed {
    pub(crate) fn start(services: impl IntoIterator<Item = Service>, config: RouterConfig) -> Self {
        let store = Arc::new(TableStore::default());
        store.set_services(listed(services), true);
        let changes = Arc::<Mutex<Vec<(String, bool)>>>::default();
        let seen = Arc::clone(&changes);
        let on_change = move |service: &Service, up| {
            seen.lock().unwrap().push((service.name.clone(), up));
        };
        let heard = Arc::<AtomicBool>::default();
        let hearing = Arc::clone(&heard);
        let prober = Arc::new(HealthProber::new(
            Arc::new(config),
            Arc::clone(&store),
            Box::new(on_change),
            Box::new(move |_, _| hearing.load(Ordering::SeqCst)),
        ));
        let task = running(Arc::clone(&prober).run());
        Self {
            store,
            prober,
            changes,
            heard,
            _running: task,
        }
    }

    pub(crate) fn down(&self) -> Vec<String> {
        let mut down: Vec<_> = self.store.current().down.iter().cloned().collect();
        down.sort();
        down
    }

    pub(crate) fn count(&self, result: &str) -> u64 {
        let results = self.prober.view("a").results;
        results.get(result).copied().unwrap_or_default()
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.prober.view("a").down_reason
    }

    pub(crate) fn changes(&self) -> Vec<(String, bool)> {
        self.changes.lock().unwrap().clone()
    }
}

pub(crate) fn slow() -> RouterConfig {
    RouterConfig {
        health_interval: 60.0,
        ..quick()
    }
}

#[tokio::test]
async fn an_engine_goes_down_after_three_bad_probes_and_comes_back_after_two_good_ones() {
    let port = free_port().await;
    let sitter = FakeServer::start_at(port + 1).await;
    let results = [200, 503, 503, 200, 503, 503, 503, 200];
    sitter.answers(
        "/health",
        results
            .iter()
            .map(|&status| (status, "{}".to_owned()))
            .collect(),
    );
    let probed = Probed::start([engine("a", port, &[])], quick());
    until("down", || probed.down() == ["a"]).await;
    assert_eq!(sitter.heads().len(), 7);
    until("up", || probed.down().is_empty()).await;
    assert_eq!(sitter.heads().len(), 9);
    assert_eq!(
        probed.changes(),
        [("a".to_owned(), false), ("a".to_owned(), true)]
    );
}

#[tokio::test]
async fn a_new_engine_is_routable_at_once_and_out_when_its_first_probe_fails() {
    let probed = Probed::start([], slow());
    probed
        .store
        .set_services(listed([engine("dead", free_port().await, &[])]), true);
    assert_eq!(probed.store.current().healthy_engines.len(), 1);
    until("down", || probed.down() == ["dead"]).await;
    assert!(probed.prober.view("dead").last_check.is_some());
}

#[tokio::test]
async fn an_engine_that_does_not_answer_in_time_is_down() {
    let (url, _running) = raw_server(b"").await;
    let config = RouterConfig {
        health_timeout: 0.05,
        ..quick()
    };
    let probed = Probed::start([with(engine("a", 1, &[]), "health_url", url)], config);
    until("down", || probed.down() == ["a"]).await;
}

fn patient() -> RouterConfig {
    RouterConfig {
        health_fall: 10_000,
        health_timeout: 0.05,
        ..quick()
    }
}

#[tokio::test]
async fn an_engine_whose_port_refuses_is_out_at_once() {
    let port = free_port().await;
    let server = FakeServer::start_at(port).await;
    server.answer("/health", 200, "{}");
    let config = RouterConfig {
        health_timeout: 1.0,
        ..patient()
    };
    let probed = Probed::start([engine("a", port, &[])], config);
    until("probed", || probed.count("ok") > 0).await;
    drop(server);
    until("down", || probed.down() == ["a"]).await;
    assert!(probed.count("refused") > 0);
    let reason = format!("127.0.0.1:{port}: Connection refused");
    assert_eq!(probed.reason().unwrap(), reason);
}

#[tokio::test]
async fn a_refused_probe_at_another_address_is_one_failure_of_several() {
    let server = FakeServer::start().await;
    server.answer("/health", 200, "{}");
    let url = format!("{}/health", server.url());
    let other = with(engine("a", free_port().await, &[]), "health_url", url);
    let config = RouterConfig {
        health_timeout: 1.0,
        ..patient()
    };
    let probed = Probed::start([other], config);
    until("probed", || probed.count("ok") > 0).await;
    drop(server);
    until("failing", || probed.count("failed") >= 5).await;
    assert!(probed.down().is_empty());
    assert_eq!(probed.count("refused"), 0);
}

#[tokio::test]
async fn a_late_probe_counts_unless_requests_get_their_answers() {
    let (url, _running) = raw_server(b"").await;
    let config = RouterConfig {
        health_timeout: 0.05,
        ..quick()
    };
    let hanging = with(engine("a", 1, &[]), "health_url", url);
    let probed = Probed::start([], config);
    probed.heard.store(true, Ordering::SeqCst);
    probed.store.set_services(listed([hanging]), true);
    until("busy", || probed.count("busy") >= 4).await;
    assert_eq!((probed.down().len(), probed.reason()), (0, None));
    probed.heard.store(false, Ordering::SeqCst);
    until("down", || probed.down() == ["a"]).await;
    assert_eq!(probed.reason().unwrap(), "no answer within 0.05 s");
    probed.heard.store(true, Ordering::SeqCst);
    let seen = probed.count("busy");
    until("busy again", || probed.count("busy") >= seen + 3).await;
    assert_eq!(probed.down(), ["a"], "it neither helps nor harms");
}

#[tokio::test]
async fn the_reason_is_what_the_babysitter_says_until_all_is_well() {
    let port = free_port().await;
    let sitter = FakeServer::start_at(port + 1).await;
    let said = r#"{"status": "stalled", "liveness": "x"}"#;
    sitter.answer("/health", 503, said);
    let probed = Probed::start([engine("a", port, &[])], quick());
    until("down", || probed.reason().is_some()).await;
    let answered = format!("http://127.0.0.1:{}/health answered 503", port + 1);
    assert_eq!(probed.reason().unwrap(), format!("{answered} (stalled)"));
    sitter.answer("/health", 503, r#"{"status": "a\nforged line"}"#);
    until("another word", || probed.reason().unwrap() == answered).await;
    sitter.answer("/health", 200, "{}");
    until("up", || probed.down().is_empty()).await;
    until("no reason", || probed.reason().is_none()).await;
}

#[tokio::test]
async fn babysitters_are_not_probed() {
    let server = FakeServer::start().await;
    server.answer("/health", 200, "{}");
    let url = format!("{}/health", server.url());
    let sitter = Service {
        metadata: metadata(json!({ "type": "InfiniLM", "health_url": url })),
        ..engine("s", 1, &[])
    };
    let probed = Probed::start(
        [sitter, with(engine("a", 1, &[]), "health_url", url)],
        quick(),
    );
    until("probed", || server.heads().len() >= 3).await;
    assert_eq!(probed.prober.view("s").last_check, None);
}

#[tokio::test]
async fn one_probe_at_a_time_for_each_engine() {
    let (open, most, served) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let counts = Arc::new((open, most, served));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let here = Arc::clone(&counts);
    let _running = running(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let counts = Arc::clone(&here);
            tokio::spawn(async move {
                let now = counts.0.fetch_add(1, Ordering::SeqCst) + 1;
                counts.1.fetch_max(now, Ordering::SeqCst);
                read_head(&mut stream).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                counts.0.fetch_sub(1, Ordering::SeqCst);
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    .await;
                counts.2.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    let config = RouterConfig {
        health_interval: 0.01,
        ..quick()
    };
    let _probed = Probed::start([with(engine("a", 1, &[]), "health_url", url)], config);
    until("served", || counts.2.load(Ordering::SeqCst) >= 4).await;
    assert_eq!(counts.1.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_sync_does_not_bring_back_what_a_probe_took_out() {
    let dead = engine("a", free_port().await, &[]);
    let probed = Probed::start([dead.clone()], quick());
    until("down", || probed.down() == ["a"]).await;
    for weight in 0..6 {
        let changed = Service {
            weight: f64::from(weight),
            ..dead.clone()
        };
        probed.store.set_services(listed([changed]), true);
        assert_eq!(probed.down(), ["a"]);
    }
}

#[tokio::test]
async fn an_engine_that_moved_starts_with_a_clean_record() {
    let probed = Probed::start([engine("a", free_port().await, &[])], slow());
    until("down", || probed.down() == ["a"]).await;
    let port = free_port().await;
    let sitter = FakeServer::start_at(port + 1).await;
    sitter.answer("/health", 200, "{}");
    probed
        .store
        .set_services(listed([engine("a", port, &[])]), true);
    until("up", || {
        probed.down().is_empty() && !sitter.heads().is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_engine_that_left_is_not_probed_any_more() {
    let server = FakeServer::start().await;
    server.answer("/a", 200, "{}").answer("/b", 200, "{}");
    let probe = |name: &str| {
        with(
            engine(name, 1, &[]),
            "health_url",
            format!("{}/{name}", server.url()),
        )
    };
    let probed = Probed::start([probe("a"), probe("b")], quick());
    until("both", || {
        server.targets().iter().any(|target| target == "/b")
    })
    .await;
    probed.store.set_services(listed([probe("a")]), true);
    until("forgotten", || probed.prober.view("b").last_check.is_none()).await;
    let seen = server.targets().len();
    until("five more", || server.targets().len() >= seen + 5).await;
    assert!(
        server.targets()[seen + 1..]
            .iter()
            .all(|target| target == "/a")
    );
}

#[tokio::test]
async fn new_settings_count_from_the_next_probe_on() {
    let server = FakeServer::start().await;
    server.answers("/x", vec![(200, "{}".to_owned()), (503, "{}".to_owned())]);
    let url = format!("{}/x", server.url());
    let config = RouterConfig {
        health_fall: 10_000,
        ..quick()
    };
    let probed = Probed::start([with(engine("a", 1, &[]), "health_url", url)], config);
    until("probed", || server.heads().len() >= 5).await;
    assert!(probed.down().is_empty());
    probed.prober.configure(Arc::new(quick()));
    until("down", || probed.down() == ["a"]).await;
}
