//! Keeps the table equal to what the registry says: watches it, and polls it beside that.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
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
    statics: Services,
    interval: Duration,
    client: RegistryClient,
    store: Arc<TableStore>,
    learner: Arc<ModelLearner>,
    membership: Membership,
    saved: Option<Arc<SavedList>>,
    known: bool,
    /// None: not asked yet.
    reachable: Option<bool>,
    revision: Option<u64>,
    polled_at: Instant,
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
        Self {
            statics: config.static_services.clone(),
            interval: Duration::from_secs_f64(config.registry_sync_interval),
            client,
            store,
            learner,
            membership: Membership::new(Duration::from_secs_f64(
                config.service_removal_grace_period,
            )),
            saved: config.state_dir.as_deref().map(saved),
            known: false,
            reachable: None,
            revision: None,
            polled_at: Instant::now(),
        }
    }

    /// Follow the registry until dropped.
    pub async fn run(mut self) {
        self.first_answer().await;
        loop {
            let left = (self.polled_at + self.interval).saturating_duration_since(Instant::now());
            match self.revision {
                _ if self.reachable != Some(true) => {
                    sleep(self.interval.min(RETRY_INTERVAL)).await;
                    self.poll().await;
                }
                _ if left.is_zero() => self.poll().await,
                None => sleep(left).await,
                Some(revision) => self.watch(revision, left.max(SHORTEST_WAIT)).await,
            }
        }
    }

    async fn first_answer(&mut self) {
        self.publish();
        if timeout(STARTUP_PATIENCE, self.poll()).await.is_err() {
            let seconds = STARTUP_PATIENCE.as_secs();
            self.failed(&RegistryError(format!("no answer within {seconds} s")));
        }
        if !self.known && self.restore() {
            self.known = true;
            self.publish();
        }
    }

    /// Begin with the saved list; whether there is one.
    fn restore(&mut self) -> bool {
        let services = self
            .saved
            .as_ref()
            .map(|saved| saved.load())
            .unwrap_or_default();
        let any = !services.is_empty();
        if any {
            tracing::warn!("starting from the saved list services={}", services.len());
            self.membership.restore(services);
        }
        any
    }

    /// Fetch the list as it is.
    async fn poll(&mut self) {
        self.polled_at = Instant::now();
        let taken = match self.client.fetch(None, 0.0).await {
            Ok(answer) => self.take(answer).await,
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            self.failed(&error);
        }
    }

    /// Wait for the list to change; ends after `wait` without a change.
    async fn watch(&mut self, revision: u64, wait: Duration) {
        let started = Instant::now();
        let answer = self.client.fetch(Some(revision), wait.as_secs_f64()).await;
        let (unchanged, taken) = match answer {
            Ok(answer) => (is_unchanged(&answer, revision), self.take(answer).await),
            Err(error) => (false, Err(error)),
        };
        if let Err(error) = taken {
            return self.failed(&error);
        }
        if unchanged {
            // A registry that does not hold answers back must not be asked without pause.
            let left = (started + wait).saturating_duration_since(Instant::now());
            sleep(left.min(RETRY_INTERVAL)).await;
        }
        sleep(PACE).await;
    }

    /// Bring an answer into the table: what is new at once, then what is gone.
    async fn take(&mut self, answer: Answer) -> Result<(), RegistryError> {
        if let Answer::List(answer) = answer {
            self.take_list(answer).await?;
        }
        let table = self.store.current();
        for name in self.membership.expire(Instant::now(), &table.down) {
            tracing::info!("service removed name={name}");
        }
        self.answered();
        self.publish();
        if let Some(saved) = self.saved.clone()
            && !self.membership.services().is_empty()
        {
            let services = self.membership.services().clone();
            // The file system may be slow; a fault of it is logged there.
            let _ = tokio::task::spawn_blocking(move || saved.save(&services)).await;
        }
        Ok(())
    }

    async fn take_list(&mut self, answer: RegistryAnswer) -> Result<(), RegistryError> {
        self.revision = answer.revision;
        if !self.known && !answer.services.iter().any(|service| service.is_engine()) {
            self.restore(); // router and registry started together: engines are on their way
        }
        self.membership.healthy(&answer.services, Instant::now());
        self.known = true;
        self.publish();
        if self.membership.any_missing() {
            let all = self.client.fetch_all().await?;
            self.membership.listed(&all.services);
        }
        Ok(())
    }

    /// Publish static and registered services, if anything changed.
    fn publish(&self) {
        let names: HashSet<&str> = self.statics.iter().map(|s| s.name.as_str()).collect();
        let registered = self.membership.services().iter();
        let registered = registered.filter(|service| !names.contains(service.name.as_str()));
        let declared = self.statics.iter().chain(registered);
        let services: Services = declared.map(|service| self.learner.fill(service)).collect();
        let before = self.store.current();
        if services == before.services && self.known == before.known {
            return;
        }
        log_changes(&before.services, &services);
        self.store.set_services(services, self.known);
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
    let old: HashMap<&str, &Arc<Service>> = before
        .iter()
        .map(|service| (service.name.as_str(), service))
        .collect();
    for service in after {
        let (name, (host, port)) = (&service.name, service.address());
        match old.get(name.as_str()) {
            None => {
                let shown = service.models.iter().take(MAX_LOGGED_MODELS);
                let models = shown.map(String::as_str).collect::<Vec<_>>().join(",");
                let models = if models.is_empty() { "-" } else { &models };
                tracing::info!("service added name={name} address={host}:{port} models={models}");
            }
            Some(previous)
                if previous.status != service.status || previous.address() != service.address() =>
            {
                let status = &service.status;
                tracing::info!("service changed name={name} address={host}:{port} status={status}");
            }
            Some(_) => {}
        }
    }
}
