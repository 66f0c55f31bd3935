//! Which engine serves a request: candidates first, then a policy. No network, clock or lock.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use crate::router::load::Book;
use crate::router::policies::{Policy, round_robin, warm_enough};
use crate::router::table::{Candidates, Service, ServiceTable, preferred};
use crate::utils::errors::{Code, RouterError};

/// Characters of a model's name in an error.
const MAX_SHOWN: usize = 200;

pub(crate) type Engines<'a> = Cow<'a, [Arc<Service>]>;

/// What selection knows of a request.
///
/// `model` None means that any engine will do; `key` groups requests that should meet the same
/// engine (None: no such wish); `prompt` is the prompt's first 1,024 bytes as they stand in the
/// body, `prompt_bytes` its size; `client` is the address of who asks; `tried` names the engines
/// that were tried without success.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub model: Option<String>,
    pub stream: bool,
    pub key: Option<Vec<u8>>,
    pub prompt: Vec<u8>,
    pub prompt_bytes: usize,
    pub client: String,
    pub tried: Vec<String>,
}

/// The engine, and why it was chosen (the texts make the value of `x-infinilm-policy`).
///
/// In `panic` it was chosen although probes say that most engines of its model are down.
#[derive(Clone, Debug)]
pub struct Choice {
    pub service: Arc<Service>,
    pub policy: &'static str,
    pub why: &'static str,
    pub panic: bool,
}

impl Choice {
    /// What stands last in `x-infinilm-policy`.
    pub const fn suffix(&self) -> &'static str {
        if self.panic { "; panic" } else { "" }
    }
}

/// Why there is no choice: all that could serve were tried already, or have no room now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nobody {
    Tried,
    Full,
}

pub type Chosen = Result<Choice, Nobody>;

/// The settings of selection: the policy and the prompt size (bytes) that parts tiers.
///
/// `last_choice` takes engines too that asked for a pause, rather than refusing the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    pub policy: Policy,
    pub cache_type_threshold: u64,
    pub last_choice: bool,
}

/// Choose an engine.
///
/// # Errors
///
/// `model_not_found` or `no_healthy_engine`.
pub fn choose(
    table: &ServiceTable,
    request: &Request,
    book: &mut Book,
    now: Instant,
    rules: Rules,
) -> Result<Chosen, RouterError> {
    let group = table.candidates(request.model.as_deref());
    if group.known.is_empty() {
        return Err(nobody_up(table, request.model.as_deref()));
    }
    let candidates = match candidates(group, request, book, now, rules.last_choice) {
        Ok(candidates) => candidates,
        Err(nobody) => return Ok(Err(nobody)),
    };
    let candidates = cache_tier(candidates, request.prompt_bytes, rules.cache_type_threshold);
    let (service, why) = pick(candidates, request, book, now, rules.policy);
    Ok(Ok(Choice {
        service,
        policy: rules.policy.name(),
        why,
        panic: group.panic,
    }))
}

fn pick(
    candidates: Engines<'_>,
    request: &Request,
    book: &mut Book,
    now: Instant,
    policy: Policy,
) -> (Arc<Service>, &'static str) {
    let uneven = candidates.len() > 1 && !policy.is_by_key() && book.may_be_uneven(now);
    let candidates = if uneven {
        warm_enough(candidates, book, now)
    } else {
        candidates
    };
    if candidates.len() > 1 {
        let (service, why) = policy.pick(&candidates, request, book, now);
        return (Arc::clone(service), why);
    }
    // Its turn is counted all the same, or it would be owed a burst when others return.
    if policy == Policy::RoundRobin {
        round_robin(&candidates, request, book);
    }
    (Arc::clone(&candidates[0]), "; only candidate")
}

/// The engines that may serve the request now, at least one.
fn candidates<'a>(
    group: &'a Candidates,
    request: &Request,
    book: &Book,
    now: Instant,
    last_choice: bool,
) -> Result<Engines<'a>, Nobody> {
    if book.is_even(now) && request.tried.is_empty() && !group.panic {
        return Ok(Cow::Borrowed(&group.preferred));
    }
    let up = worth_trying(group, book);
    let ejected = |s: &Service| book.get(&s.name).is_some_and(|load| load.is_ejected(now));
    let mut free: Vec<_> = up.iter().filter(|s| !ejected(s)).cloned().collect();
    // Ejection protects requests from a few bad engines. When it would take more than half of a
    // model's engines, the cause is more likely to be common to all, and trying beats refusing.
    if 2 * free.len() < up.len() {
        free = up.to_vec();
    }
    if !request.tried.is_empty() {
        free.retain(|s| !request.tried.contains(&s.name));
        if free.is_empty() {
            free = up.to_vec();
            free.retain(|s| !request.tried.contains(&s.name));
        }
    }
    if free.is_empty() {
        return Err(Nobody::Tried);
    }
    let busy = |s: &Arc<Service>| book.get(&s.name).is_some_and(|load| load.is_busy(now));
    if !last_choice && !free.iter().all(busy) {
        free.retain(|s| !busy(s));
    }
    free.retain(|s| book.get(&s.name).is_none_or(|load| !load.is_full()));
    let preferred = preferred(&free);
    if preferred.is_empty() {
        return Err(Nobody::Full);
    }
    Ok(Cow::Owned(preferred))
}

/// Those that are up; in panic also those that have not failed a request since they last served one.
fn worth_trying<'a>(group: &'a Candidates, book: &Book) -> Engines<'a> {
    if !group.panic {
        return Cow::Borrowed(&group.up);
    }
    let unfailing = |s: &Service| {
        let load = book.get(&s.name);
        load.is_none_or(|load| load.consecutive_failures == 0)
    };
    let is_up = |s: &Arc<Service>| group.up.iter().any(|up| Arc::ptr_eq(up, s));
    let hopeful = group.known.iter().filter(|s| is_up(s) || unfailing(s));
    let hopeful: Vec<_> = hopeful.cloned().collect();
    if hopeful.is_empty() {
        return Cow::Borrowed(&group.known);
    }
    Cow::Owned(hopeful)
}

/// Why no engine can serve `model`.
pub fn nobody_up(table: &ServiceTable, model: Option<&str>) -> RouterError {
    let Some(model) = model else {
        return RouterError::new(Code::NoHealthyEngine, "No OpenAI API services available");
    };
    if !table.known || table.named.contains(model) {
        let text = format!("No healthy services available for model '{}'", shown(model));
        return RouterError::new(Code::NoHealthyEngine, text).with_param("model");
    }
    let model = shown(model);
    let text = format!("The model '{model}' does not exist; GET /v1/models lists what is served");
    RouterError::new(Code::ModelNotFound, text).with_param("model")
}

/// A name as an error tells it: what a client makes up may be as long as its body.
fn shown(model: &str) -> Cow<'_, str> {
    match model.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => Cow::Owned(format!("{}…", &model[..end])),
        None => Cow::Borrowed(model),
    }
}

/// The error to tell of a request that was sent in panic.
///
/// A connection that fails only confirms what probes said, unless an engine is up and untried.
pub fn explain(error: RouterError, table: &ServiceTable, request: &Request) -> RouterError {
    let model = request.model.as_deref();
    let mut up = table.candidates(model).up.iter();
    if error.code == Code::ConnectFailed && up.all(|s| request.tried.contains(&s.name)) {
        return nobody_up(table, model);
    }
    error
}

/// Long prompts prefer engines with a static cache, others those with a paged one.
fn cache_tier(candidates: Engines<'_>, prompt_bytes: usize, threshold: u64) -> Engines<'_> {
    if !candidates
        .iter()
        .any(|s| s.metadata.contains_key("cache_type"))
    {
        return candidates;
    }
    let long = u64::try_from(prompt_bytes).is_ok_and(|bytes| bytes > threshold);
    let wanted = if long { "static" } else { "paged" };
    let is_wanted =
        |s: &Service| s.metadata.get("cache_type").and_then(Value::as_str) == Some(wanted);
    let tier: Vec<_> = candidates
        .iter()
        .filter(|s| is_wanted(s))
        .cloned()
        .collect();
    if tier.is_empty() {
        return candidates;
    }
    Cow::Owned(tier)
}
