use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use infini_router::config::RouterConfig;
use infini_router::models::learner::ModelLearner;
use infini_router::registry::client::RegistryClient;
use infini_router::registry::saved::SavedList;
use infini_router::registry::sync::RegistrySync;
use infini_router::router::table::{Service, Source, TableStore};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fake_registry::{HEALTHY, Registry};
use crate::rig::{
    FakeServer, Folder, Running, engine, free_port, listed, names, quick, raw_server, registration,
    running, until,
};

/// A table, and the sync that fills it.
struct System {
    store: Arc<TableStore>,
    learner: Arc<ModelLearner>,
    sync: Arc<RegistrySync>,
    _running: Running,
}

impl System {
    fn start(url: &str, config: RouterConfig) -> Self {
        let store = Arc::new(TableStore::default());
        let learner = ModelLearner::new(Arc::new(config.clone()), Arc::clone(&store));
        let learner = Arc::new(learner);
        let client = RegistryClient::new(&[url.to_owned()], 2.0);
        let sync = RegistrySync::new(&config, client, Arc::clone(&store), Arc::clone(&learner));
        let sync = Arc::new(sync);
        let task = running(Arc::clone(&sync).run());
        Self {
            store,
            learner,
            sync,
            _running: task,
        }
    }

    fn names(&self) -> String {
        names(&self.store.current().services).join(",")
    }

    fn status(&self, name: &str) -> String {
        let table = self.store.current();
        table
            .services
            .iter()
            .find(|service| service.name == name)
            .unwrap()
            .status
            .clone()
    }
}

fn rare() -> RouterConfig {
    RouterConfig {
        registry_sync_interval: 60.0,
        ..quick()
    }
}

fn entries(letters: &str) -> Vec<Value> {
    let entry = |letter: char| registration(&letter.to_string(), 8100, Some(&["m"]));
    letters.chars().map(entry).collect()
}

#[tokio::test]
async fn a_new_engine_does_not_wait_for_the_next_poll() {
    let registry = Registry::start(&[]).await;
    let parts = System::start(&registry.url, rare());
    until("watched", || {
        registry.targets().iter().any(|t| t.contains("since="))
    })
    .await;
    assert!(parts.store.current().known);
    registry.publish(&entries("a"));
    until("added", || parts.names() == "a").await;
    assert_eq!(registry.count(HEALTHY), 1);
}

#[tokio::test]
async fn beside_the_watch_the_list_is_polled() {
    let registry = Registry::start(&[]).await;
    let config = RouterConfig {
        registry_sync_interval: 0.05,
        ..quick()
    };
    let _parts = System::start(&registry.url, config);
    until("polled", || registry.count(HEALTHY) >= 4).await;
    assert!(
        registry
            .targets()
            .iter()
            .filter(|t| t.contains("since="))
            .count()
            >= 2
    );
}

#[tokio::test]
async fn a_registry_without_watch_is_polled() {
    let old = FakeServer::start().await;
    old.answer("/services", 200, json!({ "services": entries("a") }));
    let config = RouterConfig {
        registry_sync_interval: 0.02,
        ..quick()
    };
    let parts = System::start(&old.url(), config);
    until("one", || parts.names() == "a").await;
    old.answer("/services", 200, json!({ "services": entries("ab") }));
    until("two", || parts.names() == "a,b").await;
    assert!(old.targets().iter().all(|target| target == HEALTHY));
}

#[tokio::test]
async fn a_registry_that_ignores_waiting_is_not_asked_without_pause() {
    let hasty = FakeServer::start().await;
    hasty.answer("/services", 200, json!({ "services": [], "revision": 3 }));
    let started = Instant::now();
    let config = RouterConfig {
        registry_sync_interval: 0.2,
        ..quick()
    };
    let _parts = System::start(&hasty.url(), config);
    until("asked", || hasty.heads().len() >= 6).await;
    assert!(started.elapsed() > Duration::from_millis(300));
}

#[tokio::test]
async fn an_engine_gone_from_the_registry_is_kept_for_grace_and_then_removed() {
    let registry = Registry::start(&entries("ab")).await;
    let config = RouterConfig {
        service_removal_grace_period: 0.3,
        ..quick()
    };
    let parts = System::start(&registry.url, config);
    until("both", || parts.names() == "a,b").await;
    let started = Instant::now();
    registry.publish(&entries("a"));
    until("removed", || parts.names() == "a").await;
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_registry_that_comes_back_empty_takes_no_engine_along() {
    let registry = Registry::start(&entries("ab")).await;
    let config = RouterConfig {
        service_removal_grace_period: 0.0,
        ..quick()
    };
    let parts = System::start(&registry.url, config);
    until("both", || parts.names() == "a,b").await;
    registry.publish(&[]);
    until("seen empty", || registry.count("/services") >= 3).await;
    assert_eq!(parts.names(), "a,b");
    parts.store.set_down("b", true);
    until("removed", || parts.names() == "a").await;
}

#[tokio::test]
async fn a_draining_engine_is_taken_out_at_once_and_stays_named() {
    let registry = Registry::start(&entries("ab")).await;
    let parts = System::start(&registry.url, rare());
    until("both", || parts.names() == "a,b").await;
    let mut all = entries("ab");
    (all[1]["status"], all[1]["is_healthy"]) = (json!("draining"), json!(false));
    registry.publish(&all);
    until("draining", || parts.status("b") == "draining").await;
    let table = parts.store.current();
    assert_eq!(names(&table.candidates(Some("m")).up), ["a"]);
    assert_eq!(names(&table.by_model["m"]), ["a", "b"]);
}

#[tokio::test]
async fn static_services_always_stay_and_win_over_registered_ones_of_the_same_name() {
    let registry = Registry::start(&entries("f")).await;
    let fixed = Service {
        source: Source::Static,
        ..engine("f", 9100, &["m"])
    };
    let config = RouterConfig {
        static_services: listed([fixed]),
        ..quick()
    };
    let parts = System::start(&registry.url, config);
    until("known", || parts.store.current().known).await;
    let table = parts.store.current();
    assert_eq!(
        (names(&table.services), table.services[0].port),
        (vec!["f"], 9100)
    );
    registry.publish(&entries("a"));
    until("added", || parts.names() == "f,a").await;
}

#[tokio::test]
async fn new_static_services_count_at_once() {
    let registry = Registry::start(&entries("a")).await;
    let parts = System::start(&registry.url, rare());
    until("registered", || parts.names() == "a").await;
    let fixed = engine("f", 9100, &["m"]);
    parts.sync.configure(&RouterConfig {
        static_services: listed([fixed]),
        ..rare()
    });
    assert_eq!(parts.names(), "f,a");
}

#[tokio::test]
async fn before_the_first_answer_nothing_is_known_and_statics_serve() {
    let fixed = engine("f", 9100, &["m"]);
    let config = RouterConfig {
        static_services: listed([fixed]),
        ..quick()
    };
    let parts = System::start(&format!("http://127.0.0.1:{}", free_port().await), config);
    until("static", || parts.names() == "f").await;
    assert!(!parts.store.current().known);
}

#[tokio::test]
async fn an_unreachable_registry_changes_nothing_and_is_read_again_when_it_answers() {
    let registry = Registry::start(&entries("a")).await;
    let config = RouterConfig {
        registry_sync_interval: 0.02,
        ..quick()
    };
    let parts = System::start(&registry.url, config);
    until("one", || parts.names() == "a").await;
    let before = parts.store.current();
    registry.misbehave(500);
    let count = registry.targets().len();
    until("asked", || registry.targets().len() > count + 4).await;
    assert!(Arc::ptr_eq(&parts.store.current(), &before));
    registry.misbehave(200);
    registry.publish(&entries("ab"));
    until("two", || parts.names() == "a,b").await;
}

fn saved(folder: &Folder) -> PathBuf {
    folder.0.join("router_last_services_8080.json")
}

fn keeping(folder: &Folder) -> RouterConfig {
    RouterConfig {
        state_dir: Some(folder.0.clone()),
        ..quick()
    }
}

#[tokio::test]
async fn a_router_started_without_registry_serves_from_the_last_list() {
    let folder = Folder::new();
    let mut all = entries("a");
    all[0]["metadata"]["max_concurrency"] = json!(3);
    let registry = Registry::start(&all).await;
    let parts = System::start(&registry.url, keeping(&folder));
    until("saved", || saved(&folder).exists()).await;
    drop(parts);
    let dead = format!("http://127.0.0.1:{}", free_port().await);
    let later = System::start(&dead, keeping(&folder));
    until("restored", || later.names() == "a").await;
    let table = later.store.current();
    assert!(table.known);
    assert_eq!(
        table.candidates(Some("m")).up[0].metadata["max_concurrency"],
        3
    );
}

#[tokio::test]
async fn an_empty_first_answer_does_not_empty_the_saved_list() {
    let folder = Folder::new();
    SavedList::new(&folder.0, 8080).save(&listed([engine("a", 8100, &["m"])]));
    let registry = Registry::start(&[]).await;
    let parts = System::start(&registry.url, keeping(&folder));
    until("restored", || parts.names() == "a").await;
    until("polled again", || registry.count(HEALTHY) >= 2).await;
    assert_eq!(SavedList::new(&folder.0, 8080).load().len(), 1);
}

#[tokio::test]
async fn a_silent_registry_does_not_hold_the_last_list_back() {
    let folder = Folder::new();
    SavedList::new(&folder.0, 8080).save(&listed([engine("a", 8100, &[])]));
    let (url, _running) = raw_server(b"").await;
    let parts = System::start(&url, keeping(&folder));
    until("restored", || parts.names() == "a").await;
}

#[tokio::test]
async fn models_learned_from_an_engine_survive_the_next_sync() {
    let server = FakeServer::start().await;
    server.answer("/v1/models", 200, r#"{"data": [{"id": "found"}]}"#);
    let entry = |name: &str, models| registration(name, server.port, models);
    let registry = Registry::start(&[entry("a", None)]).await;
    let parts = System::start(&registry.url, quick());
    let _learning = running(Arc::clone(&parts.learner).run());
    let serves = |model: &str| !parts.store.current().candidates(Some(model)).up.is_empty();
    until("learned", || serves("found")).await;
    registry.publish(&[entry("a", None), entry("b", Some(&["n"]))]);
    until("two", || parts.names() == "a,b").await;
    assert!(serves("found"));
    registry.publish(&[entry("a", Some(&["declared"])), entry("b", Some(&["n"]))]);
    until("declared", || serves("declared")).await;
    assert!(!serves("found"));
}
