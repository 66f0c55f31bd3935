//! Where probes go: to a babysitter, to the engine itself, or to what metadata names.

use infini_router::config::{RouterConfig, Secret};

use crate::prober::{Probed, slow};
use crate::rig::{FakeServer, engine, free_port, quick, until, with};

/// Who answers what, as (path, status), None = nobody listens; whether the engine is up then, and
/// who was asked for what.
type Answers<'a> = Option<&'a [(&'a str, u16)]>;

async fn probes_go(sitter: Answers<'_>, itself: Answers<'_>, up: bool, asked: &[&str]) {
    let port = free_port().await;
    let mut servers = Vec::new();
    for (who, answers, at) in [("sitter", sitter, port + 1), ("itself", itself, port)] {
        if let Some(answers) = answers {
            let server = FakeServer::start_at(at).await;
            for (path, status) in answers {
                server.answer(path, *status, "{}");
            }
            servers.push((who, server));
        }
    }
    let probed = Probed::start([engine("a", port, &[])], slow());
    until("probed", || probed.prober.view("a").last_check.is_some()).await;
    assert_eq!(probed.down().is_empty(), up, "{asked:?}");
    let found = |(who, server): &(&str, FakeServer)| -> Vec<String> {
        server
            .targets()
            .iter()
            .map(|target| format!("{who} {target}"))
            .collect()
    };
    assert_eq!(servers.iter().flat_map(found).collect::<Vec<_>>(), asked);
}

const HERE: (&str, u16) = ("/health", 200);
const LOADING: (&str, u16) = ("/health", 503);

#[tokio::test]
async fn a_babysitter_is_the_probe_where_there_is_one() {
    probes_go(Some(&[HERE]), Some(&[LOADING]), true, &["sitter /health"]).await;
    probes_go(Some(&[LOADING]), Some(&[HERE]), false, &["sitter /health"]).await;
    probes_go(
        Some(&[("/health", 302)]),
        Some(&[]),
        false,
        &["sitter /health"],
    )
    .await;
}

#[tokio::test]
async fn without_a_babysitter_the_engine_is_asked_itself_and_then_for_its_models() {
    probes_go(None, Some(&[HERE]), true, &["itself /health"]).await;
    let loading = [LOADING, ("/v1/models", 200)];
    probes_go(None, Some(&loading), false, &["itself /health"]).await;
    let two = ["itself /health", "itself /v1/models"];
    probes_go(None, Some(&[("/v1/models", 200)]), true, &two).await;
    probes_go(None, Some(&[("/v1/models", 401)]), true, &two).await;
    let three = ["itself /health", "itself /v1/models", "itself /models"];
    probes_go(None, Some(&[("/models", 200)]), true, &three).await;
    probes_go(None, Some(&[]), false, &three).await;
    probes_go(None, None, false, &[]).await;
}

#[tokio::test]
async fn metadata_names_another_probe_which_is_the_only_one_and_gets_no_key() {
    let port = free_port().await;
    let (other, itself) = (FakeServer::start().await, FakeServer::start_at(port).await);
    other.answer("/ready", 503, "{}");
    itself.answer("/health", 200, "{}");
    let key = Some(Secret::new("sk-canary".to_owned()));
    let config = RouterConfig {
        engine_api_key: key,
        ..quick()
    };
    let url = format!("{}/ready", other.url());
    let probed = Probed::start([with(engine("a", port, &[]), "health_url", url)], config);
    until("down", || probed.down() == ["a"]).await;
    assert!(itself.heads().is_empty());
    assert!(
        other
            .heads()
            .iter()
            .all(|head| !head.to_lowercase().contains("authorization"))
    );
}

#[tokio::test]
async fn a_probe_address_that_is_none_takes_the_engine_out_and_nothing_else() {
    for url in [
        "ftp://h/x",
        "nonsense",
        "http://\u{2603}.invalid./",
        "http://h:99999/",
    ] {
        let service = with(engine("a", 1, &[]), "health_url", url);
        let probed = Probed::start([service], quick());
        until("down", || probed.down() == ["a"]).await;
    }
}

#[tokio::test]
async fn an_engine_on_the_next_port_is_not_taken_for_a_babysitter() {
    let port = free_port().await;
    let (a, b) = (
        FakeServer::start_at(port).await,
        FakeServer::start_at(port + 1).await,
    );
    a.answer("/health", 200, "{}");
    b.answer("/health", 503, "{}");
    let probed = Probed::start(
        [engine("a", port, &[]), engine("b", port + 1, &[])],
        quick(),
    );
    until("down", || probed.down() == ["b"]).await;
    until("probed", || probed.prober.view("a").last_check.is_some()).await;
    assert_eq!(probed.changes(), [("b".to_owned(), false)]);
}

#[tokio::test]
async fn the_key_of_engines_goes_to_the_engine_and_not_to_its_babysitter() {
    let port = free_port().await;
    let key = || Some(Secret::new("sk-1".to_owned()));
    let itself = FakeServer::start_at(port).await;
    itself.answer("/health", 200, "{}");
    let start = || {
        let config = RouterConfig {
            engine_api_key: key(),
            ..quick()
        };
        Probed::start([engine("a", port, &[])], config)
    };
    let probed = start();
    until("asked", || !itself.heads().is_empty()).await;
    drop(probed);
    let sitter = FakeServer::start_at(port + 1).await;
    sitter.answer("/health", 200, "{}");
    let _probed = start();
    until("asked", || !sitter.heads().is_empty()).await;
    assert!(
        itself.heads()[0]
            .to_lowercase()
            .contains("\r\nauthorization: bearer sk-1\r\n")
    );
    assert!(!sitter.heads()[0].to_lowercase().contains("authorization"));
}
