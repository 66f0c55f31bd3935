//! Reads the list of services from the first registry that answers.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::registry::entries::service_from_registry;
use crate::router::table::Services;
use crate::utils::fetch::{FetchError, Question, fetch, parse_json};
use crate::utils::json::{general, quoted};

const MAX_LIST_BYTES: usize = 16 * 1024 * 1024;
/// Texts about unusable entries, remembered so that each is logged once.
const MAX_LOGGED: usize = 1000;
pub const TIMEOUT: f64 = 2.0;

/// No registry gave a usable answer; the text names each and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RegistryError(pub String);

/// A list of services; `revision` is None for registries that know no watch.
#[derive(Clone, Debug, PartialEq)]
pub struct RegistryAnswer {
    pub services: Services,
    pub revision: Option<u64>,
}

/// What a registry says to a question with a revision.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    List(RegistryAnswer),
    /// The list is still that of the revision asked about.
    NotModified,
}

/// Stays with the registry that answers and goes to the next one when it fails.
#[derive(Debug)]
pub struct RegistryClient {
    urls: Vec<String>,
    timeout: f64,
    current: AtomicUsize,
    logged: Mutex<HashSet<String>>,
}

impl RegistryClient {
    /// A client of these registries, each given `timeout` seconds.
    pub fn new(urls: &[String], timeout: f64) -> Self {
        Self {
            urls: urls.to_vec(),
            timeout,
            current: AtomicUsize::new(0),
            logged: Mutex::default(),
        }
    }

    /// The healthy services; with `since` only once the list is not that of this revision.
    ///
    /// The registry holds its answer back for up to `wait` seconds. A revision means something to
    /// the registry that gave it alone, so the others are asked without.
    pub async fn fetch(&self, since: Option<u64>, wait: f64) -> Result<Answer, RegistryError> {
        let query = "?healthy=true";
        match since {
            None => self.ask(query, query, wait).await,
            Some(revision) => {
                let watch = format!("{query}&since={revision}&wait={}", general(wait));
                self.ask(&watch, query, wait).await
            }
        }
    }

    /// All services, the unhealthy and draining ones too.
    pub async fn fetch_all(&self) -> Result<RegistryAnswer, RegistryError> {
        match self.ask("", "", 0.0).await? {
            Answer::List(answer) => Ok(answer),
            Answer::NotModified => {
                let reason = "304 to a question without a revision";
                Err(RegistryError(reason.to_owned()))
            }
        }
    }

    /// Ask the current registry `first`, then each of the others `others`.
    async fn ask(&self, first: &str, others: &str, wait: f64) -> Result<Answer, RegistryError> {
        let mut reasons = Vec::new();
        let current = self.current.load(Ordering::Relaxed);
        for attempt in 0..self.urls.len() {
            let index = (current + attempt) % self.urls.len();
            let (query, patience) = if attempt == 0 {
                (first, wait)
            } else {
                (others, 0.0)
            };
            match self.get(index, query, patience + self.timeout).await {
                Ok(answer) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => reasons.push(format!("{}: {error}", self.urls[index])),
            }
        }
        Err(RegistryError(reasons.join("; ")))
    }

    async fn get(&self, index: usize, query: &str, limit: f64) -> Result<Answer, FetchError> {
        let url = format!("{}/services{query}", self.urls[index]);
        let fetched = fetch(Question {
            url: &url,
            timeout: limit,
            limit: MAX_LIST_BYTES,
            authorization: None,
        })
        .await?;
        match fetched.status {
            200 => Ok(Answer::List(self.parse(&parse_json(&fetched.body)?)?)),
            304 if query.contains("since=") => Ok(Answer::NotModified),
            status => Err(FetchError::new(format!("answered {status}"))),
        }
    }

    fn parse(&self, content: &Value) -> Result<RegistryAnswer, FetchError> {
        let Some(entries) = content.get("services").and_then(Value::as_array) else {
            return Err(FetchError::new("the answer has no list of services"));
        };
        let mut services = Services::new();
        let mut names = HashSet::new();
        for entry in entries {
            match service_from_registry(entry) {
                Ok(service) => {
                    if names.insert(service.name.clone()) {
                        services.push(Arc::new(service));
                    }
                }
                Err(error) => self.log_once(error.0),
            }
        }
        let revision = content.get("revision").and_then(Value::as_u64);
        Ok(RegistryAnswer { services, revision })
    }

    fn log_once(&self, text: String) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() < MAX_LOGGED && !logged.contains(&text) {
            tracing::warn!("registry entry skipped reason={}", quoted(&text));
            logged.insert(text);
        }
    }
}
