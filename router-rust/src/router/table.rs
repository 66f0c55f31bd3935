//! The service table: an immutable snapshot of all engines, with one writer and many readers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use serde_json::{Map, Value};
use tokio::sync::Notify;

use crate::utils::headers::push_decimal;

pub const ENGINE_TYPE: &str = "openai-api";
pub const MAX_NAMED_MODELS: usize = 10_000;
/// What metadata may say at most.
pub const MAX_CONCURRENCY: u32 = 1_000_000;

/// Where a service is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Static,
    Registry,
}

impl Source {
    /// Its word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Registry => "registry",
        }
    }
}

/// One entry of the registry or of a static file; immutable.
///
/// `models` are the ids it serves, `models_list` the full `OpenAI` model objects where known.
/// `status` is the registry's word for it ("running" is the only one that takes requests).
/// `max_fails` failures in a row eject it for `fail_timeout` seconds (None: the router's default).
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub name: String,
    pub host: String,
    pub port: u16,
    pub url: String,
    pub weight: f64,
    pub models: Vec<String>,
    pub models_list: Vec<Map<String, Value>>,
    pub metadata: Map<String, Value>,
    pub source: Source,
    pub status: String,
    pub backup: bool,
    pub max_fails: Option<u32>,
    pub fail_timeout: Option<f64>,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            name: String::new(),
            host: String::new(),
            port: 0,
            url: String::new(),
            weight: 1.0,
            models: Vec::new(),
            models_list: Vec::new(),
            metadata: Map::new(),
            source: Source::Registry,
            status: "running".to_owned(),
            backup: false,
            max_fails: None,
            fail_timeout: None,
        }
    }
}

impl Service {
    /// True for services that take inference requests; babysitters never do.
    pub fn is_engine(&self) -> bool {
        self.metadata.get("type").and_then(Value::as_str) == Some(ENGINE_TYPE)
    }

    /// Requests that it takes at once, if its metadata says so in a way that can be used.
    pub fn max_concurrency(&self) -> Option<u32> {
        let limit = u32::try_from(self.metadata.get("max_concurrency")?.as_u64()?).ok()?;
        (1..=MAX_CONCURRENCY).contains(&limit).then_some(limit)
    }

    /// Where requests go: (host, port).
    pub fn address(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// The value of the `Host` field in requests to it.
    pub fn host_field(&self) -> String {
        self.netloc(u32::from(self.port))
    }

    /// The same, written behind what is there.
    pub fn push_host_field(&self, out: &mut Vec<u8>) {
        if self.host.contains(':') {
            out.extend_from_slice(self.host_field().as_bytes());
            return;
        }
        out.extend_from_slice(self.host.as_bytes());
        out.push(b':');
        push_decimal(out, u64::from(self.port));
    }

    /// Where to probe, in the order to try: see `router::health`.
    pub fn health_urls(&self) -> Vec<String> {
        if let Some(url) = self.metadata.get("health_url").and_then(Value::as_str) {
            return vec![url.to_owned()];
        }
        let own = format!("http://{}", self.netloc(u32::from(self.port)));
        let neighbour = self.netloc(u32::from(self.port) + 1);
        vec![
            format!("http://{neighbour}/health"),
            format!("{own}/health"),
            format!("{own}/v1/models"),
            format!("{own}/models"),
        ]
    }

    /// `host:port`, with IPv6 addresses in brackets.
    pub fn netloc(&self, port: u32) -> String {
        if self.host.contains(':') {
            format!("[{}]:{port}", self.host)
        } else {
            format!("{}:{port}", self.host)
        }
    }
}

pub type Services = Vec<Arc<Service>>;

/// What is known of all services at one moment.
///
/// `known` is false until a registry (or the saved last list) answered for the first time; with
/// static services only it is true from the start. `down` names the services whose probes failed.
/// `named` holds every model id that any engine has ever named. The rest is derived from these.
#[derive(Debug, Default)]
pub struct ServiceTable {
    pub services: Services,
    pub known: bool,
    pub down: HashSet<String>,
    pub named: Arc<HashSet<String>>,
    /// All services of type openai-api, in table order.
    pub engines: Services,
    /// Model id -> engines that serve it, up or down, in table order.
    pub by_model: HashMap<String, Services>,
    /// The engines that are up.
    pub healthy_engines: Services,
    candidates: HashMap<String, Candidates>,
    candidates_any: Candidates,
}

/// The engines of one model that the registry calls running: `known`, and what probes say.
///
/// `up` are those whose probes are well, `preferred` those of `up` that take requests while all is
/// well. `panic` is true when probes leave less than half of `known`: the fault is then more likely
/// common to all of them (a network, the babysitters), and trying beats refusing.
#[derive(Debug, Default)]
pub struct Candidates {
    pub known: Services,
    pub up: Services,
    pub preferred: Services,
    pub panic: bool,
}

static NOBODY: Candidates = Candidates {
    known: Vec::new(),
    up: Vec::new(),
    preferred: Vec::new(),
    panic: false,
};

impl ServiceTable {
    /// The table of these services with all that is derived from them.
    pub fn new(
        services: Services,
        known: bool,
        down: HashSet<String>,
        named: Arc<HashSet<String>>,
    ) -> Self {
        let engines: Services = services.iter().filter(|s| s.is_engine()).cloned().collect();
        let mut table = Self {
            services,
            known,
            down,
            named,
            by_model: by_model(&engines),
            engines,
            ..Self::default()
        };
        table.candidates_any = table.sorted_out(&table.engines);
        table.healthy_engines = table.candidates_any.up.clone();
        table.candidates = table
            .by_model
            .iter()
            .map(|(model, services)| (model.clone(), table.sorted_out(services)))
            .collect();
        table
    }

    fn sorted_out(&self, services: &[Arc<Service>]) -> Candidates {
        let is_running = |s: &&Arc<Service>| s.status == "running";
        let known: Services = services.iter().filter(is_running).cloned().collect();
        let up: Services = known.iter().filter(|s| self.is_up(s)).cloned().collect();
        Candidates {
            panic: 2 * up.len() < known.len(),
            preferred: preferred(&up),
            known,
            up,
        }
    }

    /// True when registry and probe both say that it takes requests.
    pub fn is_up(&self, service: &Service) -> bool {
        service.status == "running" && !self.down.contains(&service.name)
    }

    /// The engines that could serve `model`; None means any model.
    pub fn candidates(&self, model: Option<&str>) -> &Candidates {
        match model {
            None => &self.candidates_any,
            Some(model) => self.candidates.get(model).unwrap_or(&NOBODY),
        }
    }

    /// Whether probes leave less than half of some model's engines.
    pub fn panic(&self) -> bool {
        self.candidates_any.panic || self.candidates.values().any(|found| found.panic)
    }
}

fn by_model(engines: &[Arc<Service>]) -> HashMap<String, Services> {
    let mut found: HashMap<String, Services> = HashMap::new();
    for engine in engines {
        for model in &engine.models {
            let serving = found.entry(model.clone()).or_default();
            if !serving.last().is_some_and(|last| Arc::ptr_eq(last, engine)) {
                serving.push(Arc::clone(engine));
            }
        }
    }
    found
}

/// The first group that is not empty: weighted services, backups, those of weight 0.
pub fn preferred(services: &[Arc<Service>]) -> Services {
    let group = |wanted: fn(&Service) -> bool| -> Services {
        services.iter().filter(|s| wanted(s)).cloned().collect()
    };
    let groups = [
        group(|s| s.weight > 0.0 && !s.backup),
        group(|s| s.weight > 0.0),
    ];
    groups
        .into_iter()
        .find(|found| !found.is_empty())
        .unwrap_or_else(|| services.to_vec())
}

type OnChange = Box<dyn Fn(&ServiceTable, &ServiceTable) + Send + Sync>;

/// Holds the current table. Writers take turns; readers take `current` once.
///
/// `on_change` is called with the last table and the new one.
pub struct TableStore {
    current: ArcSwap<ServiceTable>,
    on_change: Option<OnChange>,
    writing: Mutex<()>,
    changed: Notify,
}

impl Default for TableStore {
    fn default() -> Self {
        Self::new(None)
    }
}

impl TableStore {
    /// A store with an empty table that knows nothing.
    pub fn new(on_change: Option<OnChange>) -> Self {
        Self {
            current: ArcSwap::from_pointee(ServiceTable::default()),
            on_change,
            writing: Mutex::new(()),
            changed: Notify::new(),
        }
    }

    /// The table as it is now.
    pub fn current(&self) -> Arc<ServiceTable> {
        self.current.load_full()
    }

    /// The same without counting the reference: for uses that end before the next await.
    pub fn peek(&self) -> arc_swap::Guard<Arc<ServiceTable>> {
        self.current.load()
    }

    /// The current table, as soon as it is another one than `seen`.
    pub async fn changed(&self, seen: &Arc<ServiceTable>) -> Arc<ServiceTable> {
        loop {
            let mut notified = std::pin::pin!(self.changed.notified());
            notified.as_mut().enable();
            let current = self.current();
            if !Arc::ptr_eq(&current, seen) {
                return current;
            }
            notified.await;
        }
    }

    fn publish(&self, table: ServiceTable) {
        let table = Arc::new(table);
        let last = self.current.swap(Arc::clone(&table));
        if let Some(on_change) = &self.on_change {
            on_change(&last, &table);
        }
        self.changed.notify_waiters();
    }

    fn write(&self) -> std::sync::MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publish a new list of services; what probes said of those that remain is kept.
    pub fn set_services(&self, services: Services, known: bool) {
        let _writing = self.write();
        self.publish_services(services, known);
    }

    fn publish_services(&self, services: Services, known: bool) {
        let current = self.current();
        let down = services
            .iter()
            .filter(|s| current.down.contains(&s.name))
            .map(|s| s.name.clone())
            .collect();
        let named = all_named(&current.named, &services);
        self.publish(ServiceTable::new(services, known, down, named));
    }

    /// Publish the probes' verdict on one service.
    pub fn set_down(&self, name: &str, down: bool) {
        let _writing = self.write();
        let current = self.current();
        if current.down.contains(name) == down {
            return;
        }
        let mut all = current.down.clone();
        if down {
            all.insert(name.to_owned());
        } else {
            all.remove(name);
        }
        let named = Arc::clone(&current.named);
        self.publish(ServiceTable::new(
            current.services.clone(),
            current.known,
            all,
            named,
        ));
    }

    /// Publish a service that changed (for example its learned models); ignored when gone.
    pub fn replace_service(&self, service: Service) {
        let _writing = self.write();
        let current = self.current();
        let mut services = current.services.clone();
        let service = Arc::new(service);
        let mut found = false;
        for old in services.iter_mut().filter(|s| s.name == service.name) {
            *old = Arc::clone(&service);
            found = true;
        }
        if found {
            self.publish_services(services, current.known);
        }
    }
}

/// The models named until now, bounded: a flood of names must not fill memory.
fn all_named(before: &Arc<HashSet<String>>, services: &[Arc<Service>]) -> Arc<HashSet<String>> {
    let now: HashSet<&String> = services
        .iter()
        .filter(|s| s.is_engine())
        .flat_map(|s| &s.models)
        .collect();
    if now.iter().all(|model| before.contains(*model)) {
        return Arc::clone(before);
    }
    let mut named: HashSet<String> = now.iter().map(|&model| model.clone()).collect();
    if before.union(&named).count() <= MAX_NAMED_MODELS {
        named.extend(before.iter().cloned());
    }
    Arc::new(named)
}
