use std::sync::Arc;

use infini_router::config::{RouterConfig, Secret};
use infini_router::models::catalog::ModelCatalog;
use infini_router::models::learner::{ModelLearner, listed_models};
use infini_router::router::table::{Service, TableStore};
use serde_json::{Value, json};

use crate::rig::{FakeServer, Running, engine, free_port, listed, metadata, quick, running, until};

fn store(services: impl IntoIterator<Item = Service>) -> Arc<TableStore> {
    let store = Arc::new(TableStore::default());
    store.set_services(listed(services), true);
    store
}

fn objects(model: Value) -> Vec<serde_json::Map<String, Value>> {
    vec![metadata(model)]
}

fn data(catalog: &ModelCatalog) -> String {
    let text = String::from_utf8(catalog.list().to_vec()).unwrap();
    let inside = text.strip_prefix(r#"{"object":"list","data":["#).unwrap();
    inside.strip_suffix("]}").unwrap().to_owned()
}

#[test]
fn the_list_is_the_union_over_healthy_engines_and_the_first_object_wins() {
    let first = json!({ "id": "m", "object": "model", "created": 1, "owned_by": "a", "len": 9 });
    let store = store([
        engine("down", 1, &["gone"]),
        Service {
            models_list: objects(first),
            ..engine("a", 2, &["m", "plain"])
        },
        Service {
            models_list: objects(json!({ "id": "m", "owned_by": "b" })),
            ..engine("b", 3, &["m", "n"])
        },
        Service {
            status: "draining".to_owned(),
            ..engine("drain", 4, &["draining"])
        },
    ]);
    store.set_down("down", true);
    assert_eq!(
        data(&ModelCatalog::new(store)),
        [
            r#"{"id":"m","object":"model","created":1,"owned_by":"a","len":9}"#,
            r#"{"id":"plain","object":"model","created":0,"owned_by":"infinilm"}"#,
            r#"{"id":"n","object":"model","created":0,"owned_by":"infinilm"}"#,
        ]
        .join(",")
    );
}

#[test]
fn created_is_always_a_whole_number() {
    let large = "1000000000000000033998991713002824594943974719712898047713430714837875271723200833292741616380733445921308672";
    let cases = [
        (json!(1.9), "1"),
        (json!(-0.5), "0"),
        (Value::Null, "0"),
        (json!("x"), "0"),
        (json!(true), "0"),
        (json!(1e108), large),
    ];
    for (created, shown) in cases {
        let model = json!({ "id": "m", "created": created, "owned_by": 7, "meta": { "n": 1 } });
        let service = Service {
            models_list: objects(model),
            ..engine("a", 1, &["m"])
        };
        let list = data(&ModelCatalog::new(store([service])));
        let expected = format!(
            r#"{{"id":"m","created":{shown},"owned_by":"infinilm","meta":{{"n":1}},"object":"model"}}"#
        );
        assert_eq!(list, expected);
    }
}

#[test]
fn one_model_is_found_by_its_id_and_the_list_follows_the_table() {
    let store = store([]);
    let catalog = ModelCatalog::new(Arc::clone(&store));
    assert_eq!(data(&catalog), "");
    store.set_services(listed([engine("a", 1, &["org/name:tag@main"])]), true);
    let found = catalog.get("org/name:tag@main").unwrap();
    assert!(found.starts_with(br#"{"id":"org/name:tag@main","#));
    store.set_down("a", true);
    assert_eq!(catalog.get("org/name:tag@main"), None);
}

#[test]
fn a_models_answer_counts_when_it_lists_any() {
    type Case<'a> = (u16, &'a [u8], Option<&'a [&'a str]>);
    let cases: [Case<'_>; 6] = [
        (
            200,
            br#"{"data": [{"id": "a"}, {"id": "b/c"}, {"id": "a"}]}"#,
            Some(&["a", "b/c"]),
        ),
        (
            200,
            br#"{"data": [{"id": ""}, {"id": 3}, 4, {"id": "x\n"}]}"#,
            None,
        ),
        (200, br#"{"data": []}"#, None),
        (200, br#"{"data": {"id": "a"}}"#, None),
        (200, b"[]", None),
        (404, br#"{"data": [{"id": "a"}]}"#, None),
    ];
    for (status, body, expected) in cases {
        let found = listed_models(status, body).unwrap().map(|(ids, _)| ids);
        assert_eq!(
            found,
            expected.map(|ids| ids.iter().map(ToString::to_string).collect())
        );
    }
}

/// A learner at work, and its table.
struct Learning {
    store: Arc<TableStore>,
    learner: Arc<ModelLearner>,
    _running: Running,
}

impl Learning {
    fn start(services: impl IntoIterator<Item = Service>, config: RouterConfig) -> Self {
        let store = store(services);
        let learner = Arc::new(ModelLearner::new(Arc::new(config), Arc::clone(&store)));
        let task = running(Arc::clone(&learner).run());
        Self {
            store,
            learner,
            _running: task,
        }
    }

    fn models(&self, name: &str) -> Vec<String> {
        let table = self.store.current();
        table
            .services
            .iter()
            .find(|service| service.name == name)
            .unwrap()
            .models
            .clone()
    }
}

#[tokio::test]
async fn an_engine_without_models_is_asked_for_them_with_the_key() {
    for path in ["/v1/models", "/models"] {
        let server = FakeServer::start().await;
        server.answer(
            path,
            200,
            json!({ "data": [{ "id": "m", "owned_by": "x", "extra": 1 }] }),
        );
        let key = Some(Secret::new("sk-1".to_owned()));
        let config = RouterConfig {
            engine_api_key: key,
            ..quick()
        };
        let parts = Learning::start([engine("a", server.port, &[])], config);
        until("learned", || parts.models("a") == ["m"]).await;
        let table = parts.store.current();
        assert_eq!(table.services[0].models_list[0]["extra"], 1);
        assert!(table.named.contains("m"));
        let head = server.heads().remove(0).to_lowercase();
        assert!(
            head.contains("\r\nauthorization: bearer sk-1\r\n"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn asking_is_repeated_until_the_engine_answers() {
    let port = free_port().await;
    let parts = Learning::start([engine("a", port, &[])], quick());
    parts.learner.settled().await;
    assert!(parts.models("a").is_empty());
    let server = FakeServer::start_at(port).await;
    server.answers(
        "/v1/models",
        vec![
            (503, String::new()),
            (200, r#"{"data": [{"id": "m"}]}"#.into()),
        ],
    );
    until("learned", || parts.models("a") == ["m"]).await;
}

#[tokio::test]
async fn an_engine_that_came_back_is_asked_again() {
    let server = FakeServer::start().await;
    server.answer("/v1/models", 200, r#"{"data": [{"id": "old"}]}"#);
    let parts = Learning::start([engine("a", server.port, &[])], quick());
    until("learned", || parts.models("a") == ["old"]).await;
    server.answer("/v1/models", 200, r#"{"data": [{"id": "new"}]}"#);
    parts.store.set_down("a", true);
    // One thread: the learner runs, and sees this table, while the test stands back.
    tokio::task::yield_now().await;
    parts.store.set_down("a", false);
    until("learned anew", || parts.models("a") == ["new"]).await;
    let table = parts.store.current();
    assert!(table.named.contains("old") && table.named.contains("new"));
}

#[tokio::test]
async fn engines_that_declare_their_models_are_not_asked() {
    let server = FakeServer::start().await;
    server.answer("/v1/models", 200, r#"{"data": [{"id": "m"}]}"#);
    let engines = [
        engine("declared", server.port, &["own"]),
        engine("a", server.port, &[]),
    ];
    let parts = Learning::start(engines, quick());
    until("learned", || parts.models("a") == ["m"]).await;
    assert_eq!(parts.models("declared"), ["own"]);
    assert_eq!(server.targets(), ["/v1/models"]);
}

#[tokio::test]
async fn what_was_learned_belongs_to_the_address_and_yields_to_what_is_declared() {
    let server = FakeServer::start().await;
    server.answer("/v1/models", 200, r#"{"data": [{"id": "m"}]}"#);
    let bare = engine("a", server.port, &[]);
    let parts = Learning::start([bare.clone()], quick());
    until("learned", || parts.models("a") == ["m"]).await;
    let fill = |service: Service| parts.learner.fill(&Arc::new(service)).models.clone();
    assert_eq!(fill(bare.clone()), ["m"]);
    assert!(fill(engine("a", server.port + 2, &[])).is_empty());
    assert_eq!(fill(engine("a", server.port, &["own"])), ["own"]);
    assert!(fill(bare).is_empty());
}

#[tokio::test]
async fn what_was_learned_from_an_engine_that_is_gone_is_forgotten() {
    let server = FakeServer::start().await;
    server.answer("/v1/models", 200, r#"{"data": [{"id": "m"}]}"#);
    let pods = ["a", "b"].map(|name| engine(name, server.port, &[]));
    let parts = Learning::start(pods.clone(), quick());
    let knows = |pod: &Service| !parts.learner.fill(&Arc::new(pod.clone())).models.is_empty();
    until("learned", || pods.iter().all(knows)).await;
    let [gone, stays] = pods;
    let left = parts.learner.fill(&Arc::new(stays.clone()));
    parts.store.set_services(vec![left], true);
    until("forgotten", || !knows(&gone)).await;
    assert!(knows(&stays));
}

#[tokio::test]
async fn without_engines_to_ask_it_is_settled_at_once() {
    Learning::start([], quick()).learner.settled().await;
}
