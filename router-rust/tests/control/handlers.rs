use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use infini_router::config::RouterConfig;
use infini_router::handlers::context::{Context, LocalAnswer, iso_time};
use infini_router::handlers::find_handler;
use infini_router::handlers::routes::ROUTES;
use infini_router::models::catalog::ModelCatalog;
use infini_router::router::engine::Outcome;
use infini_router::router::health::HealthProber;
use infini_router::router::load::{InFlight, LoadBook};
use infini_router::router::queue::WaitingRoom;
use infini_router::router::selection::Request;
use infini_router::router::table::{Service, TableStore};
use infini_router::utils::errors::{Code, RouterError};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::rig::{engine, listed, metadata, quick, with};

/// The state that the endpoints show, without anything running.
pub(crate) struct Router {
    pub(crate) context: Context,
    draining: Arc<AtomicBool>,
}

impl Router {
    pub(crate) fn new(config: RouterConfig) -> Self {
        let (config, store) = (Arc::new(config), Arc::new(TableStore::default()));
        store.set_services(Vec::new(), true);
        let unheard = Box::new(|_: &Service, _| {});
        let silent = Box::new(|_: &str, _| false);
        let prober = HealthProber::new(Arc::clone(&config), Arc::clone(&store), unheard, silent);
        let draining = Arc::<AtomicBool>::default();
        let flag = Arc::clone(&draining);
        let load = Arc::<LoadBook>::default();
        let context = Context {
            config,
            catalog: ModelCatalog::new(Arc::clone(&store)),
            room: WaitingRoom::new(Arc::clone(&store), Arc::clone(&load)),
            store,
            load,
            prober: Arc::new(prober),
            counters: Arc::default(),
            connections: Arc::default(),
            draining: Box::new(move || flag.load(Ordering::Relaxed)),
            started_at: 0.0,
        };
        Self { context, draining }
    }

    /// Two engines up, one down, one draining, one babysitter.
    fn mixed() -> Self {
        let urls = ["http://a:1", "http://b:2"].map(str::to_owned);
        let router = Self::new(RouterConfig {
            registry_urls: urls.to_vec(),
            ..quick()
        });
        let a = with(engine("a", 9000, &["m"]), "models", vec!["m"]);
        let sitter = metadata(json!({ "type": "InfiniLM" }));
        router.context.store.set_services(
            listed([
                Service { weight: 2.0, ..a },
                engine("b", 9002, &["n"]),
                engine("sick", 9004, &["sick-only"]),
                Service {
                    status: "draining".to_owned(),
                    ..engine("drain", 9006, &["m"])
                },
                Service {
                    metadata: sitter,
                    ..engine("sitter", 9001, &[])
                },
            ]),
            true,
        );
        router.context.store.set_down("sick", true);
        router
    }

    fn ask(&self, path: &str) -> Result<LocalAnswer, RouterError> {
        find_handler(path.as_bytes())
            .unwrap()
            .answer(&self.context, path.as_bytes())
    }

    fn get(&self, path: &str) -> LocalAnswer {
        self.ask(path).unwrap()
    }

    fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.content_type, "application/json");
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn begin(&self, index: usize) -> InFlight {
        let table = self.context.store.current();
        let mut book = self.context.load.lock();
        self.context
            .load
            .begin(&mut book, &table.services[index], Instant::now(), 700)
    }
}

#[test]
fn health_counts_engines_and_not_babysitters() {
    let router = Router::mixed();
    let mut content = router.json("/health");
    let timestamp = content
        .as_object_mut()
        .unwrap()
        .remove("timestamp")
        .unwrap();
    assert_eq!(
        timestamp.as_str().unwrap().len(),
        "1970-01-01T00:00:00.000+00:00".len()
    );
    assert_eq!(
        content.to_string(),
        json!({
            "status": "healthy", "router": "running", "healthy_services": "2/4",
            "registry_url": "http://a:1,http://b:2", "message": null,
        })
        .to_string()
    );
    assert_eq!(router.json("/status")["status"], "running");
}

#[test]
fn health_stays_200_without_engines_and_says_so() {
    let router = Router::new(quick());
    assert_eq!(router.get("/health").status, 200);
    let content = router.json("/health");
    assert_eq!(content["healthy_services"], "0/0");
    assert_eq!(content["message"], "No healthy services available");
    assert_eq!(content["registry_url"], Value::Null);
}

#[test]
fn a_draining_router_is_not_ready() {
    let router = Router::mixed();
    router.draining.store(true, Ordering::Relaxed);
    for path in ["/health", "/status"] {
        let answer = router.get(path);
        assert_eq!(
            (answer.status, answer.headers),
            (503, vec![("Retry-After", "1")])
        );
        assert_eq!(router.json(path)["status"], "draining");
    }
    assert_eq!(router.json("/stats")["draining"], true);
}

#[tokio::test(start_paused = true)]
async fn stats_show_what_traffic_did_to_each_service() {
    let router = Router::mixed();
    let mut running = router.begin(0);
    tokio::time::advance(Duration::from_millis(250)).await;
    running.answered(200, None, true, Instant::now());
    for _ in 0..3 {
        router
            .begin(1)
            .release(Outcome::EngineFault, Instant::now());
    }
    let mut content = router.json("/stats");
    let services = content.as_object_mut().unwrap().remove("services").unwrap();
    assert_eq!(
        content.to_string(),
        json!({
            "total_services": 5, "healthy_services": 3,
            "registry_url": "http://a:1,http://b:2", "in_flight": 1, "requests": 0,
            "failures": {}, "retries": 0, "queued": 0, "queues": [], "draining": false,
            "panic": true, "started_at": "1970-01-01T00:00:00.000+00:00",
        })
        .to_string()
    );
    assert_eq!(
        services[0].to_string(),
        json!({
            "name": "a", "host": "127.0.0.1", "port": 9000, "url": "http://127.0.0.1:9000",
            "babysitter_url": "http://127.0.0.1:9001", "healthy": true, "status": "running",
            "down_reason": null, "source": "registry", "backup": false, "ejected": false, "busy": false,
            "warming": false, "in_flight": 1, "max_concurrency": 256, "prefill_requests": 1,
            "prefill_bytes": 700, "request_count": 1, "error_count": 0, "response_time": 0.25, "last_check": null,
            "weight": 2.0, "metadata": { "type": "openai-api", "models": ["m"] },
        })
        .to_string()
    );
    assert_eq!(
        (&services[1]["error_count"], &services[1]["ejected"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(
        (&services[2]["healthy"], &services[3]["healthy"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(services[3]["status"], "draining");
    running.release(Outcome::Ok, Instant::now());
    assert_eq!(router.json("/stats")["in_flight"], 0);
}

#[test]
fn what_waits_for_any_model_is_counted_with_a_model_of_that_name() {
    let router = Router::new(quick());
    let full = with(engine("a", 1, &["other", "m"]), "max_concurrency", 1);
    let context = &router.context;
    context.store.set_services(listed([full]), true);
    let _place = router.begin(0);
    let ask = |model: Option<&str>| {
        let model = model.map(str::to_owned);
        let request = Request {
            model,
            ..Request::default()
        };
        context.room.ask(&request, 1, Instant::now())
    };
    let _waiting = [Some("other"), Some("m"), None, None].map(ask);
    let text = String::from_utf8(router.get("/metrics").body.to_vec()).unwrap();
    let queued: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("infinilm_router_queued"))
        .collect();
    assert_eq!(queued, [r#"{model="m"} 1"#, r#"{model="other"} 3"#]);
}

#[test]
fn services_are_listed_with_their_models() {
    let content = Router::mixed().json("/services");
    assert_eq!(
        (&content["total"], &content["registry_url"]),
        (&json!(5), &json!("http://a:1,http://b:2"))
    );
    let shown = content["services"].as_array().unwrap().iter();
    let shown: Vec<_> = shown
        .map(|service| json!([service["name"], service["models"]]))
        .collect();
    let expected = json!([
        ["a", ["m"]],
        ["b", ["n"]],
        ["sick", ["sick-only"]],
        ["drain", ["m"]],
        ["sitter", []]
    ]);
    assert_eq!(json!(shown), expected);
}

#[test]
fn both_models_paths_give_the_same_list() {
    let router = Router::mixed();
    let list = router.json("/models");
    assert_eq!(
        (&list["data"][0]["id"], &list["data"][1]["id"]),
        (&json!("m"), &json!("n"))
    );
    assert_eq!(router.get("/models"), router.get("/v1/models"));
}

#[test]
fn a_model_is_found_with_slashes_plain_or_escaped_and_unescaped_once_only() {
    let router = Router::new(quick());
    let models = ["org/x:q4@main", "a%2Fb"];
    router
        .context
        .store
        .set_services(listed([engine("a", 1, &models)]), true);
    for id in ["org/x:q4@main", "org%2Fx:q4@main", "org%2fx%3Aq4@main"] {
        assert_eq!(router.json(&format!("/v1/models/{id}"))["id"], models[0]);
    }
    assert_eq!(router.json("/v1/models/a%252Fb")["id"], models[1]);
}

#[test]
fn a_model_that_nobody_serves_is_an_error_of_the_closed_set() {
    let router = Router::mixed();
    for (model, code) in [
        ("absent", Code::ModelNotFound),
        ("", Code::ModelNotFound),
        ("%ff", Code::ModelNotFound),
        ("%", Code::ModelNotFound),
        ("sick-only", Code::NoHealthyEngine),
    ] {
        assert_eq!(
            router.ask(&format!("/v1/models/{model}")).unwrap_err().code,
            code,
            "{model}"
        );
    }
    router.context.store.set_services(Vec::new(), false);
    assert_eq!(
        router.ask("/v1/models/any").unwrap_err().code,
        Code::NoHealthyEngine
    );
}

#[test]
fn only_the_exact_paths_are_local() {
    assert!(ROUTES.iter().all(|(path, _)| find_handler(path).is_some()));
    for path in [
        "/",
        "/Health",
        "/health/",
        "//health",
        "/%68ealth",
        "/v1",
        "/models/x",
    ] {
        assert!(find_handler(path.as_bytes()).is_none(), "{path}");
    }
}

#[test]
fn wall_time_is_shown_in_utc_with_milliseconds() {
    assert_eq!(iso_time(1_700_000_000.0), "2023-11-14T22:13:20.000+00:00");
}
