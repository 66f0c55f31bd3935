//! Engines, tables and choices that the tests share.

use std::collections::HashSet;
use std::sync::Arc;

use infini_router::router::engine::{Limits, Outcome};
use infini_router::router::load::{InFlight, LoadBook};
use infini_router::router::policies::Policy;
use infini_router::router::selection::{Request, Rules, choose};
use infini_router::router::table::{Service, ServiceTable};
use serde_json::json;
use tokio::time::Instant;

pub(crate) fn engine(name: &str, weight: f64) -> Service {
    Service {
        name: name.to_owned(),
        host: "127.0.0.1".to_owned(),
        port: 1,
        weight,
        models: vec!["m".to_owned()],
        metadata: json!({"type": "openai-api"}).as_object().unwrap().clone(),
        ..Service::default()
    }
}

pub(crate) fn plain(names: &str) -> Vec<Service> {
    names
        .chars()
        .map(|name| engine(&name.to_string(), 1.0))
        .collect()
}

pub(crate) fn table(services: Vec<Service>, down: &str) -> ServiceTable {
    let named = Arc::new(HashSet::from(["m".to_owned()]));
    let down = down.chars().map(String::from).collect();
    ServiceTable::new(
        services.into_iter().map(Arc::new).collect(),
        true,
        down,
        named,
    )
}

pub(crate) fn request(model: Option<&str>) -> Request {
    Request {
        model: model.map(str::to_owned),
        client: "10.0.0.1".to_owned(),
        ..Request::default()
    }
}

pub(crate) fn rules(policy: &str) -> Rules {
    Rules {
        policy: Policy::named(policy),
        cache_type_threshold: 100,
        last_choice: false,
    }
}

pub(crate) fn book() -> Arc<LoadBook> {
    Arc::new(LoadBook::new(Limits::default(), || 0.5))
}

pub(crate) fn pick(
    table: &ServiceTable,
    request: &Request,
    book: &LoadBook,
    policy: &str,
) -> Option<String> {
    let chosen = choose(
        table,
        request,
        &mut book.lock(),
        Instant::now(),
        rules(policy),
    );
    chosen
        .unwrap()
        .ok()
        .map(|choice| choice.service.name.clone())
}

/// The names chosen by so many requests that end at once.
pub(crate) fn picks(table: &ServiceTable, count: usize, policy: &str, book: &LoadBook) -> String {
    (0..count)
        .map(|_| pick(table, &request(Some("m")), book, policy).unwrap())
        .collect()
}

pub(crate) fn fail(book: &Arc<LoadBook>, service: &Arc<Service>, times: usize) {
    for _ in 0..times {
        let now = Instant::now();
        let guard = book.begin(&mut book.lock(), service, now, 0);
        guard.release(Outcome::EngineFault, now);
    }
}

pub(crate) fn letters(text: &str) -> HashSet<char> {
    text.chars().collect()
}

/// So many requests that stay at an engine.
pub(crate) fn hold(book: &Arc<LoadBook>, service: &Arc<Service>, count: usize) -> Vec<InFlight> {
    let begin = |_| book.begin(&mut book.lock(), service, Instant::now(), 0);
    (0..count).map(begin).collect()
}
