//! Keeps the table equal to what the registry says: watches it, and polls it beside that.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::config::RouterConfig;
use crate::models::learner::ModelLearner;
use crate::registry::client::{Answer, RegistryAnswer, RegistryClient, RegistryError};
use crate::registry::membership::Membership;
use crate::registry::saved::SavedList;
use crate::router::table::{Service, Services, TableStore};
use crate::utils::json::quoted;

/// How long the saved list waits for a first answer.
const STARTUP_PATIENCE: Duration = Duration::from_secs(1);
/// Between attempts while no registry answers, at most.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Between two answers of a watch, at least.
const PACE: Duration = Duration::from_millis(20);
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
/// Names of models in one log line.
const MAX_LOGGED_MODELS: usize = 8;

/// The one writer of the table's list of services. Static services always stay in it.
pub struct RegistrySync {
    client: RegistryClient,
    store: Arc<TableStore>,
    learner: Arc<ModelLearner>,
    saved: Option<Arc<SavedList>>,
    state: Mutex<State>,
}

/// What the sync knows; held for moments, never over an await.
struct State {
    statics: Services,
    interval: Duration,
    membership: Membership,
    known: bool,
    /// None: not asked yet.
    reachable: Option<bool>,
    revision: Option<u64>,
    polled_at: Instant,
}

/// What to do next.
enum Step {
    Retry,
    Poll,
    Sleep(Duration),
    Watch(u64, Duration),
}

impl RegistrySync {
    /// A sync that has not begun; `run` does the work.
    pub fn new(
        config: &RouterConfig,
        client: RegistryClient,
        store: Arc<TableStore>,
        learner: Arc<ModelLearner>,
    ) -> Self {
        let saved = |folder: &Path| Arc::new(SavedList::new(folder, config.router_port));
        let mut state = State {
            statics: Vec::new(),
            interval: Duration::ZERO,
            membership: Membership::new(Duration::ZERO),
            known: false,
            reachable: None,
            revision: None,
            polled_at: Instant::now(),
        };
        state.read(config);
        Self {
            client,
            store,
            learner,
            saved: config.state_dir.as_deref().map(saved),
            state: Mutex::new(state),
        }
    }

    /// Follow the registry by these settings, and with these static services, from now on.
    pub fn configure(&self, config: &RouterConfig) {
        self.state().read(config);
        self.publish();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follow the registry until dropped.
    pub async fn run(self: Arc<Self>) {
        self.first_answer().await;
        loop {
            let step = self.state().next_step();
            match step {
                Step::Retry => {
                    let interval = self.state().interval;
                    sleep(interval.min(RETRY_INTERVAL)).await;
                    self.poll().await;
                }
                Step::Poll => self.poll().await,
                Step::Sleep(left) => sleep(left).await,
                Step::Watch(revision, wait) => self.watch(revision, wait).await,
            }
        }
    }

    async fn first_answer(&self) {
        self.publish();
        if timeout(STARTUP_PATIENCE, self.poll()).await.is_err() {
            let seconds = STARTUP_PATIENCE.as_secs();
            let error = RegistryError(format!("no answer within {seconds} s"));
            self.state().failed(&error);
        }
        let known = self.state().known;
        if !known && self.restore() {
            self.state().known = true;
            self.publish();
        }
    }

    /// Begin with the saved list; whether there is one.
    fn restore(&self) -> bool {
        let services = self.saved.as_ref().map(|saved| saved.load());
        let services = services.unwrap_or_default();
        let any = !services.is_empty();
        if any {
            let count = services.len();
            tracing::warn!("starting from the saved list services={count}");
            self.state().membership.restore(services);
        }
        any
    }

    /// Fetch the list as it is.
    async fn poll(&self) {
        self.state().polled_at = Instant::now();
        let taken = match self.client.fetch(None, 0.0).await {
            Ok(answer) => self.take(answer).await,
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            self.state().failed(&error);
        }
    }

    /// Wait for the list to change; ends after `wait` without a change.
    async fn watch(&self, revision: u64, wait: Duration) {
        let started = Instant::now();
        let answer = self.client.fetch(Some(revision), wait.as_secs_f64()).await;
        let (unchanged, taken) = match answer {
            Ok(answer) => (is_unchanged(&answer, revision), self.take(answer).await),
            Err(error) => (false, Err(error)),
        };
        if let Err(error) = taken {
            self.state().failed(&error);
            return;
        }
        if unchanged {
            // A registry that does not hold answers back must not be asked without pause.
            let left = (started + wait).saturating_duration_since(Instant::now());
            sleep(left.min(RETRY_INTERVAL)).await;
        }
        sleep(PACE).await;
    }

    /// Bring an answer into the table: what is new at once, then what is gone.
    async fn take(&self, answer: Answer) -> Result<(), RegistryError> {
        if let Answer::List(answer) = answer {
            self.take_list(answer).await?;
        }
        let table = self.store.current();
        let services = {
            let mut state = self.state();
            for name in state.membership.expire(Instant::now(), &table.down) {
                tracing::info!("service removed name={name}");
            }
            state.answered();
            state.membership.services().clone()
        };
        self.publish();
        if let Some(saved) = self.saved.clone().filter(|_| !services.is_empty()) {
            // The file system may be slow; a fault of it is logged there.
            let _ = tokio::task::spawn_blocking(move || saved.save(&services)).await;
        }
        Ok(())
    }

    async fn take_list(&self, answer: RegistryAnswer) -> Result<(), RegistryError> {
        let known = self.state().known;
        if !known && !answer.services.iter().any(|service| service.is_engine()) {
            self.restore(); // router and registry started together: engines are on their way
        }
        {
            let mut state = self.state();
            state.revision = answer.revision;
            state.membership.healthy(&answer.services, Instant::now());
            state.known = true;
        }
        self.publish();
        if self.state().membership.any_missing() {
            let all = self.client.fetch_all().await?;
            self.state().membership.listed(&all.services);
        }
        Ok(())
    }

    /// Publish static and registered services, if anything changed.
    fn publish(&self) {
        let (declared, known) = {
            let state = self.state();
            (state.declared(), state.known)
        };
        let filled = declared.iter().map(|service| self.learner.fill(service));
        let services: Services = filled.collect();
        let before = self.store.current();
        if services == before.services && known == before.known {
            return;
        }
        log_changes(&before.services, &services);
        self.store.set_services(services, known);
    }
}

impl State {
    fn read(&mut self, config: &RouterConfig) {
        let grace = config.service_removal_grace_period;
        self.statics.clone_from(&config.static_services);
        self.interval = Duration::from_secs_f64(config.registry_sync_interval);
        self.membership.grace = Duration::from_secs_f64(grace);
    }

    fn next_step(&self) -> Step {
        let next_poll = self.polled_at + self.interval;
        let left = next_poll.saturating_duration_since(Instant::now());
        match self.revision {
            _ if self.reachable != Some(true) => Step::Retry,
            _ if left.is_zero() => Step::Poll,
            None => Step::Sleep(left),
            Some(revision) => Step::Watch(revision, left.max(SHORTEST_WAIT)),
        }
    }

    /// Static services, then the registered ones that have no name of theirs.
    fn declared(&self) -> Services {
        let names: HashSet<&str> = self.statics.iter().map(|s| s.name.as_str()).collect();
        let registered = self.membership.services().iter();
        let registered = registered.filter(|service| !names.contains(service.name.as_str()));
        self.statics.iter().chain(registered).cloned().collect()
    }

    fn answered(&mut self) {
        if self.reachable == Some(false) {
            tracing::info!("registry answers again");
        }
        self.reachable = Some(true);
    }

    /// Go on with what is known; the next success starts from a whole list.
    fn failed(&mut self, error: &RegistryError) {
        if self.reachable != Some(false) {
            let reason = quoted(&error.0);
            tracing::warn!("registry unreachable, going on with what is known reason={reason}");
        }
        self.reachable = Some(false);
        self.revision = None;
    }
}

fn is_unchanged(answer: &Answer, revision: u64) -> bool {
    match answer {
        Answer::NotModified => true,
        Answer::List(list) => list.revision == Some(revision),
    }
}

fn log_changes(before: &[Arc<Service>], after: &[Arc<Service>]) {
    let named = before
        .iter()
        .map(|service| (service.name.as_str(), service));
    let old: HashMap<&str, &Arc<Service>> = named.collect();
    for service in after {
        let (name, (host, port)) = (&service.name, service.address());
        let Some(previous) = old.get(name.as_str()) else {
            let shown: Vec<_> = service
                .models
                .iter()
                .take(MAX_LOGGED_MODELS)
                .cloned()
                .collect();
            let models = if shown.is_empty() {
                "-".to_owned()
            } else {
                shown.join(",")
            };
            tracing::info!("service added name={name} address={host}:{port} models={models}");
            continue;
        };
        if previous.status != service.status || previous.address() != service.address() {
            let status = &service.status;
            tracing::info!("service changed name={name} address={host}:{port} status={status}");
        }
    }
}
