//! Asks engines that were registered without models for their list.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::RouterConfig;
use crate::registry::entries::{Models, model_objects, unique};
use crate::router::table::{Service, TableStore};
use crate::utils::fetch::{FetchError, Question, authorization, fetch, parse_json};
use crate::utils::json::quoted;
use crate::utils::metrics::locked;
use crate::utils::tasks::TaskSet;

const MAX_LIST_BYTES: usize = 8 * 1024 * 1024;
/// Doubles up to `LAST_RETRY`.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// After this an engine that stayed up is asked again.
const REFRESH: Duration = Duration::from_mins(1);
/// Most engines have only the first, some only the second.
const PATHS: [&str; 2] = ["/v1/models", "/models"];
/// Names of models in one log line.
const MAX_LOGGED_MODELS: usize = 8;

/// Name, host and port: what was learned belongs to the engine at this address.
type Key = (String, String, u16);

/// One task for each engine whose models nobody declared.
pub struct ModelLearner {
    config: ArcSwap<RouterConfig>,
    store: Arc<TableStore>,
    learned: Mutex<HashMap<Key, Models>>,
    /// Engines known at the start that were not asked yet; None before the start.
    unsettled: watch::Sender<Option<HashSet<Key>>>,
    /// Engines that were asked, with any outcome.
    asked: Mutex<HashSet<Key>>,
}

impl ModelLearner {
    /// A learner that has not begun; `run` does the work.
    pub fn new(config: Arc<RouterConfig>, store: Arc<TableStore>) -> Self {
        Self {
            config: ArcSwap::new(config),
            store,
            learned: Mutex::default(),
            unsettled: watch::Sender::new(None),
            asked: Mutex::default(),
        }
    }

    /// Ask by these settings from now on.
    pub fn configure(&self, config: Arc<RouterConfig>) {
        self.config.store(config);
    }

    /// Returns when every engine known at the start has been asked once, with any outcome.
    pub async fn settled(&self) {
        let mut unsettled = self.unsettled.subscribe();
        // The sender lives as long as this borrow of it.
        let _ = unsettled
            .wait_for(|left| left.as_ref().is_some_and(HashSet::is_empty))
            .await;
    }

    /// Whether the engine's models are known, or it was asked for them at least.
    pub fn has_asked(&self, engine: &Service) -> bool {
        !engine.models.is_empty() || locked(&self.asked).contains(&key_of(engine))
    }

    /// A service as it was declared -> with the models learned from it, if it names none.
    pub fn fill(&self, declared: &Arc<Service>) -> Arc<Service> {
        let (key, mut learned) = (key_of(declared), self.learned());
        if !declared.models.is_empty() {
            learned.remove(&key);
        }
        let Some((models, models_list)) = learned.get(&key) else {
            return Arc::clone(declared);
        };
        Arc::new(Service {
            models: models.clone(),
            models_list: models_list.clone(),
            ..Service::clone(declared)
        })
    }

    /// Keep a task for each engine that needs one, until dropped.
    pub async fn run(self: Arc<Self>) {
        let mut tasks = TaskSet::default();
        let at_start = self.wanted().into_iter().map(|(key, _)| key).collect();
        self.unsettled.send_replace(Some(at_start));
        loop {
            let table = self.store.current();
            let wanted = self.wanted();
            let keys: HashSet<&Key> = wanted.iter().map(|(key, _)| key).collect();
            locked(&self.asked).retain(|key| keys.contains(key));
            // Lists of engines that are gone would pile up where each comes under a new name.
            self.learned().retain(|key, _| keys.contains(key));
            tasks.keep(wanted, |engine| Arc::clone(&self).learn(engine));
            self.store.changed(&table).await;
        }
    }

    fn learned(&self) -> MutexGuard<'_, HashMap<Key, Models>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self) -> Vec<(Key, Arc<Service>)> {
        let (table, learned) = (self.store.current(), self.learned());
        let keyed = table
            .engines
            .iter()
            .map(|engine| (key_of(engine), Arc::clone(engine)));
        keyed
            .filter(|(key, engine)| engine.models.is_empty() || learned.contains_key(key))
            .collect()
    }

    /// Ask until there is an answer, and again when the engine came back or time has passed.
    async fn learn(self: Arc<Self>, engine: Arc<Service>) {
        let mut pause = FIRST_RETRY;
        loop {
            let models = self.ask(&engine).await;
            let key = key_of(&engine);
            self.settle(&key);
            locked(&self.asked).insert(key);
            if let Some(models) = models {
                self.publish(&engine, &models);
                self.back_up(&engine.name, REFRESH).await;
                pause = FIRST_RETRY;
                continue;
            }
            let jitter = 0.8 + 0.4 * fastrand::f64();
            self.back_up(&engine.name, pause.mul_f64(jitter)).await;
            pause = LAST_RETRY.min(2 * pause);
        }
    }

    fn settle(&self, key: &Key) {
        self.unsettled
            .send_if_modified(|left| left.as_mut().is_some_and(|left| left.remove(key)));
    }

    /// The models that the engine lists; None when it lists none.
    async fn ask(&self, engine: &Service) -> Option<Models> {
        let mut reasons = Vec::new();
        for path in PATHS {
            match self.ask_at(&format!("{}{path}", engine.url)).await {
                Ok((_, Some(models))) => return Some(models),
                Ok((status, None)) => {
                    reasons.push(format!("{path}: status {status}, no models listed"));
                }
                Err(error) => {
                    reasons.push(format!("{path}: {error}"));
                    if error.refused {
                        break;
                    }
                }
            }
        }
        let (name, reason) = (&engine.name, quoted(&reasons.join("; ")));
        tracing::debug!("models not learned name={name} reason={reason}");
        None
    }

    async fn ask_at(&self, url: &str) -> Result<(u16, Option<Models>), FetchError> {
        let config = self.config.load_full();
        let authorization = authorization(&config);
        let question = Question {
            url,
            timeout: config.health_timeout,
            limit: MAX_LIST_BYTES,
            authorization: authorization.as_deref(),
        };
        let answer = fetch(question).await?;
        Ok((answer.status, listed_models(answer.status, &answer.body)?))
    }

    fn publish(&self, engine: &Service, models: &Models) {
        let key = key_of(engine);
        if self.learned().get(&key) == Some(models) {
            return;
        }
        self.learned().insert(key, models.clone());
        let (ids, objects) = models;
        let shown: Vec<_> = ids
            .iter()
            .take(MAX_LOGGED_MODELS)
            .map(String::as_str)
            .collect();
        tracing::info!(
            "models learned name={} models={}",
            engine.name,
            shown.join(",")
        );
        let table = self.store.current();
        let mut current = table
            .services
            .iter()
            .filter(|service| service.name == engine.name);
        if let Some(service) = current.next().filter(|s| s.address() == engine.address()) {
            self.store.replace_service(Service {
                models: ids.clone(),
                models_list: objects.clone(),
                ..Service::clone(service)
            });
        }
    }

    /// Wait until the engine, being or going down, is up again; `limit` at most.
    async fn back_up(&self, name: &str, limit: Duration) {
        let came_back = async {
            let mut table = self.store.current();
            loop {
                let was_down = table.down.contains(name);
                table = self.store.changed(&table).await;
                if was_down && !table.down.contains(name) {
                    return;
                }
            }
        };
        // Elapsed or not: the engine is asked again.
        let _ = timeout(limit, came_back).await;
    }
}

fn key_of(service: &Service) -> Key {
    (service.name.clone(), service.host.clone(), service.port)
}

/// The models of an answer to a models call; None when it is not a list with any.
pub fn listed_models(status: u16, body: &[u8]) -> Result<Option<Models>, FetchError> {
    if status != 200 {
        return Ok(None);
    }
    let objects = model_objects(parse_json(body)?.get("data"));
    let ids = objects
        .iter()
        .filter_map(|object| object.get("id").and_then(Value::as_str));
    let ids = unique(ids.map(str::to_owned));
    Ok((!ids.is_empty()).then_some((ids, objects)))
}
