//! Probes engines: three bad answers in a row take one out, two good ones bring it back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use crate::config::RouterConfig;
use crate::router::table::{Service, ServiceTable, TableStore};
use crate::utils::fetch::{FetchError, Question, authorization, fetch};
use crate::utils::json::quoted;
use crate::utils::tasks::TaskSet;

/// Of the interval, so that many routers and engines do not probe in step.
const JITTER: f64 = 0.1;
/// Seconds, at most, while the verdict is changing.
const FAST_INTERVAL: f64 = 1.0;
/// A models list may be the probe.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
const NOT_HERE: [u16; 3] = [404, 405, 501];
const NEEDS_KEY: [u16; 2] = [401, 403];

/// A service's name and where it is probed: at another address it is another engine.
type Key = (String, Vec<String>);

/// Turns single results into a verdict. The first result of all counts by itself.
#[derive(Clone, Copy, Debug)]
pub struct RiseFall {
    fall: u32,
    rise: u32,
    pub up: bool,
    /// Results in a row that speak against the verdict.
    streak: u32,
    judged: bool,
}

impl RiseFall {
    /// Up until the first result.
    pub fn new(fall: u32, rise: u32) -> Self {
        Self {
            fall,
            rise,
            up: true,
            streak: 0,
            judged: false,
        }
    }

    /// Take in a result; true when it changed the verdict.
    pub fn count(&mut self, good: bool) -> bool {
        let first = !std::mem::replace(&mut self.judged, true);
        if good == self.up {
            self.streak = 0;
            return false;
        }
        self.streak += 1;
        let needed = match (first, self.up) {
            (true, _) => 1,
            (false, true) => self.fall,
            (false, false) => self.rise,
        };
        if self.streak < needed {
            return false;
        }
        (self.up, self.streak) = (good, 0);
        true
    }

    /// True while results speak against the verdict: the next one is worth having soon.
    pub fn changing(&self) -> bool {
        self.streak > 0
    }
}

type OnChange = Box<dyn Fn(&Service, bool) + Send + Sync>;

/// One task and at most one probe in flight for each engine.
///
/// A new engine is up until its first probe, at once, says otherwise. Only `down` of the table is
/// written here: what the registry says and what traffic shows are kept apart (D5).
pub struct HealthProber {
    config: ArcSwap<RouterConfig>,
    store: Arc<TableStore>,
    on_change: OnChange,
    last_checks: Mutex<HashMap<String, f64>>,
}

impl HealthProber {
    /// A prober that has not begun; `on_change` hears of each change: the engine, and whether it is up.
    pub fn new(config: Arc<RouterConfig>, store: Arc<TableStore>, on_change: OnChange) -> Self {
        Self {
            config: ArcSwap::new(config),
            store,
            on_change,
            last_checks: Mutex::default(),
        }
    }

    /// Probe by these settings from now on.
    pub fn configure(&self, config: Arc<RouterConfig>) {
        self.config.store(config);
    }

    /// Wall time of the last finished probe, None before the first.
    pub fn last_check(&self, name: &str) -> Option<f64> {
        self.last_checks().get(name).copied()
    }

    fn last_checks(&self) -> MutexGuard<'_, HashMap<String, f64>> {
        self.last_checks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep a probe task for each engine, until dropped.
    pub async fn run(self: Arc<Self>) {
        let mut tasks = TaskSet::default();
        loop {
            let table = self.store.current();
            tasks.keep(wanted(&table), |engine| Arc::clone(&self).watch(engine));
            self.forget(&table);
            self.store.changed(&table).await;
        }
    }

    fn forget(&self, table: &ServiceTable) {
        let names: HashSet<&str> = table.engines.iter().map(|e| e.name.as_str()).collect();
        self.last_checks()
            .retain(|name, _| names.contains(name.as_str()));
    }

    /// Probe one engine for ever.
    async fn watch(self: Arc<Self>, engine: Arc<Service>) {
        let config = self.config.load_full();
        let mut verdict = RiseFall::new(config.health_fall, config.health_rise);
        self.store.set_down(&engine.name, false); // said of the engine that had the name before
        loop {
            let fault = self.probe(&engine).await;
            self.last_checks().insert(engine.name.clone(), wall_time());
            if verdict.count(fault.is_none()) {
                self.change(&engine, fault.as_deref());
            }
            let config = self.config.load_full();
            (verdict.fall, verdict.rise) = (config.health_fall, config.health_rise);
            let mut interval = config.health_interval;
            if verdict.changing() || !verdict.up {
                interval = interval.min(FAST_INTERVAL);
            }
            let jitter = 1.0 - JITTER + 2.0 * JITTER * fastrand::f64();
            tokio::time::sleep(Duration::from_secs_f64(interval * jitter)).await;
        }
    }

    fn change(&self, engine: &Service, fault: Option<&str>) {
        let name = &engine.name;
        match fault {
            None => tracing::info!("engine up name={name}"),
            Some(fault) => tracing::warn!("engine down name={name} reason={}", quoted(fault)),
        }
        self.store.set_down(name, fault.is_some());
        (self.on_change)(engine, fault.is_none());
    }

    /// One probe: None when the engine is well, else what is wrong.
    async fn probe(&self, engine: &Service) -> Option<String> {
        self.ask(engine)
            .await
            .unwrap_or_else(|error| Some(error.reason))
    }

    async fn ask(&self, engine: &Service) -> Result<Option<String>, FetchError> {
        let urls = engine.health_urls();
        let (first, own) = match urls.as_slice() {
            [only] => return Ok(verdict(only, self.status(only, None).await?)),
            [first, own @ ..] => (first, own),
            [] => return Ok(None),
        };
        if !self.has_neighbour(engine) {
            match self.status(first, None).await {
                Ok(status) => return Ok(verdict(first, status)),
                Err(error) if error.refused => {}
                Err(error) => return Err(error),
            }
        }
        self.ask_itself(own).await
    }

    /// Whether the next port belongs to another engine, and so not to a babysitter.
    fn has_neighbour(&self, engine: &Service) -> bool {
        let after = (engine.host.as_str(), engine.port.saturating_add(1));
        self.store
            .current()
            .engines
            .iter()
            .any(|other| other.address() == after)
    }

    /// An engine without a babysitter: its health call, or its models list where it has none.
    async fn ask_itself(&self, urls: &[String]) -> Result<Option<String>, FetchError> {
        // For the engine itself only: a `health_url` may lead anywhere.
        let authorization = authorization(&self.config.load());
        let mut answered = 0;
        for (index, url) in urls.iter().enumerate() {
            answered = self.status(url, authorization.as_deref()).await?;
            if NOT_HERE.contains(&answered) {
                continue;
            }
            // It asks for a key that only its clients have: it is there and works.
            let works = index > 0 && NEEDS_KEY.contains(&answered);
            return Ok(if works { None } else { verdict(url, answered) });
        }
        let (first, last) = (urls.first(), urls.last());
        let (first, last) = (
            first.map_or("", String::as_str),
            last.map_or("", String::as_str),
        );
        Ok(Some(format!(
            "{first} and {last} answered {answered}; set metadata.health_url"
        )))
    }

    async fn status(&self, url: &str, authorization: Option<&str>) -> Result<u16, FetchError> {
        let question = Question {
            url,
            timeout: self.config.load().health_timeout,
            limit: MAX_ANSWER_BYTES,
            authorization,
        };
        Ok(fetch(question).await?.status)
    }
}

fn wanted(table: &ServiceTable) -> Vec<(Key, Arc<Service>)> {
    let keyed = |engine: &Arc<Service>| {
        (
            (engine.name.clone(), engine.health_urls()),
            Arc::clone(engine),
        )
    };
    table.engines.iter().map(keyed).collect()
}

fn verdict(url: &str, status: u16) -> Option<String> {
    (!(200..=299).contains(&status)).then(|| format!("{url} answered {status}"))
}

/// Seconds since 1970.
pub fn wall_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
