//! Per-engine load and traffic health: the only state that changes with every request.
//!
//! Load is counted where it arises: at dispatch, and released exactly once by the guard that
//! dispatch hands out, whatever the outcome. Traffic health ejects an engine after a run of its own
//! failures (never for a client's fault) for a time that doubles, then lets one request probe it.

mod in_flight;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use self::in_flight::Begun;
pub use self::in_flight::InFlight;
use crate::router::engine::{BUSY_CAP, BUSY_DEFAULT, EngineLoad, Limits, LoadView, Outcome};
use crate::router::queue::Queues;
use crate::router::retries::RetryBudget;
use crate::router::table::{Service, ServiceTable};

/// Seconds of the first ejection; doubles up to `EJECTION_CAP`.
pub const EJECTION_BASE: f64 = 5.0;
pub const EJECTION_CAP: f64 = 60.0;
/// Time since the last one ended after which an ejection is the first again.
pub const EJECTIONS_FORGOTTEN_AFTER: Duration = Duration::from_mins(10);
pub const EJECTION_JITTER: f64 = 0.2;
const MAX_DOUBLINGS: i32 = 16;

type OnFree = Box<dyn Fn(&mut Book, Instant) + Send + Sync>;

/// All engines' loads behind one lock, which is held for moments and never over an await.
///
/// `on_free` is called when a request has left its engine, and only while others wait for that.
#[derive(Default)]
pub struct LoadBook {
    book: Mutex<Book>,
    on_free: OnceLock<OnFree>,
}

/// What the lock of `LoadBook` guards.
///
/// While nothing is special (nobody `full`, `any_ejected`, busy or warming: those end by
/// `uneven_until`) selection need not look at single engines.
pub struct Book {
    pub limits: Limits,
    pub in_flight: u32,
    /// Engines at their limit.
    pub full: usize,
    /// Whether `is_ejected` can be true for anyone.
    pub any_ejected: bool,
    pub uneven_until: Option<Instant>,
    pub retries: RetryBudget,
    /// Requests that wait for a place at an engine.
    pub(crate) queues: Queues,
    jitter: fn() -> f64,
    loads: HashMap<String, EngineLoad>,
    turns: HashMap<String, HashMap<String, f64>>,
    turns_any: HashMap<String, f64>,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            in_flight: 0,
            full: 0,
            any_ejected: false,
            uneven_until: None,
            retries: RetryBudget::default(),
            queues: Queues::default(),
            jitter: fastrand::f64,
            loads: HashMap::new(),
            turns: HashMap::new(),
            turns_any: HashMap::new(),
        }
    }
}

impl LoadBook {
    /// An empty book with these limits and a source of numbers from 0 to 1.
    pub fn new(limits: Limits, jitter: fn() -> f64) -> Self {
        let book = Book {
            limits,
            jitter,
            ..Book::default()
        };
        Self {
            book: Mutex::new(book),
            on_free: OnceLock::new(),
        }
    }

    /// The book itself, locked.
    pub fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests at engines now.
    pub fn in_flight(&self) -> u32 {
        self.lock().in_flight
    }

    /// Requests that wait for an engine now.
    pub fn waiting(&self) -> usize {
        self.lock().waiting()
    }

    /// Call this when a request has left its engine; what was set first counts.
    pub(crate) fn set_on_free(&self, on_free: OnFree) {
        // There is one waiting room for a book.
        let _ = self.on_free.set(on_free);
    }

    fn freed(&self, book: &mut Book, now: Instant) {
        if let Some(on_free) = self.on_free.get() {
            on_free(book, now);
        }
    }

    /// The counters of one engine as they are now; zeros for one that had no request yet.
    pub fn view(&self, service: &Service, now: Instant) -> LoadView {
        let mut book = self.lock();
        let slow_start = book.limits.slow_start;
        let load = book.of(service);
        LoadView {
            in_flight: load.in_flight,
            max_concurrency: load.limit,
            prefill_requests: load.prefill_requests,
            prefill_bytes: load.prefill_bytes,
            request_count: load.request_count,
            error_count: load.error_count,
            response_time: load.response_time,
            ejected: load.is_ejected(now),
            busy: load.is_busy(now),
            warming: load.warmth(now, slow_start) < 1.0,
        }
    }

    /// Whether a byte of an answer has come from the engine after `moment`.
    pub fn heard_since(&self, name: &str, moment: Instant) -> bool {
        let book = self.lock();
        book.get(name).is_some_and(|load| load.heard.since(moment))
    }

    /// Count a request in; what is returned counts it out. `book` is this one, locked.
    pub fn begin(
        self: &Arc<Self>,
        book: &mut Book,
        service: &Arc<Service>,
        now: Instant,
        prompt_bytes: usize,
    ) -> InFlight {
        let bytes = prompt_bytes as u64;
        let begun = book.count_in(service, bytes);
        InFlight::new(Arc::clone(self), Arc::clone(service), bytes, begun, now)
    }

    /// Go by these limits from now on.
    pub fn configure(&self, limits: Limits, table: &ServiceTable) {
        let mut book = self.lock();
        book.limits = limits;
        book.set_limits(table);
    }

    /// The table has changed: who comes takes up load slowly, who is gone is forgotten.
    pub fn follow(&self, last: &ServiceTable, new: &ServiceTable, now: Instant) {
        let mut book = self.lock();
        for service in newcomers(last, new) {
            book.warm(service, now);
        }
        book.set_limits(new);
        book.forget_missing(new);
    }
}

impl Book {
    /// The counters of an engine, if it had a request.
    pub fn get(&self, name: &str) -> Option<&EngineLoad> {
        self.loads.get(name)
    }

    /// The counters of an engine, made on first use.
    pub fn of(&mut self, service: &Service) -> &mut EngineLoad {
        let limits = self.limits;
        entry_with(&mut self.loads, &service.name, || {
            EngineLoad::new(limits.of(service))
        })
    }

    /// Requests that an engine serves now.
    pub fn in_flight_of(&self, name: &str) -> u32 {
        self.get(name).map_or(0, |load| load.in_flight)
    }

    /// Requests that wait for an engine now.
    pub fn waiting(&self) -> usize {
        self.queues.waiting
    }

    /// Whether no engine is special at this time.
    pub fn is_even(&self, now: Instant) -> bool {
        self.full == 0 && !self.any_ejected && !self.may_be_uneven(now)
    }

    /// Whether an engine may be busy or warming.
    pub fn may_be_uneven(&self, now: Instant) -> bool {
        self.uneven_until.is_some_and(|until| now < until)
    }

    /// Smooth round-robin's current weights for `model`: service name -> weight.
    pub fn turns(&mut self, model: Option<&str>) -> &mut HashMap<String, f64> {
        let Some(model) = model else {
            return &mut self.turns_any;
        };
        entry(&mut self.turns, model)
    }

    /// Count a request in.
    fn count_in(&mut self, service: &Service, prompt_bytes: u64) -> Begun {
        self.in_flight += 1;
        let load = self.of(service);
        load.in_flight += 1;
        load.prefill_requests += 1;
        load.prefill_bytes += prompt_bytes;
        load.request_count += 1;
        if load.credit > 0.0 {
            load.credit = (load.credit - 1.0).max(0.0);
        }
        let probation = load.ejected_until.is_some();
        if probation {
            load.on_probation = true;
        }
        let heard = Arc::clone(&load.heard);
        let is_full = load.in_flight == load.limit;
        self.full += usize::from(is_full);
        Begun { probation, heard }
    }

    /// Let an engine take up its share of the load slowly, from now on.
    pub fn warm(&mut self, service: &Service, now: Instant) {
        let end = now + self.limits.slow_start;
        let load = self.of(service);
        load.warm_since = Some(now);
        load.credit = 0.0;
        self.uneven_until = self.uneven_until.max(Some(end));
    }

    /// The engine asks for a pause of so many seconds.
    fn spare(&mut self, service: &Service, retry_after: Option<f64>, now: Instant) {
        let pause = retry_after.map_or(BUSY_DEFAULT, |seconds| seconds.min(BUSY_CAP));
        let end = Some(now + Duration::from_secs_f64(pause));
        let load = self.of(service);
        load.busy_until = load.busy_until.max(end);
        self.uneven_until = self.uneven_until.max(end);
    }

    fn set_limits(&mut self, table: &ServiceTable) {
        for service in &table.services {
            if let Some(load) = self.loads.get_mut(&service.name) {
                load.limit = self.limits.of(service);
            }
        }
        self.full = self.loads.values().filter(|load| load.is_full()).count();
    }

    /// Drop the counters of engines that are gone and idle.
    fn forget_missing(&mut self, table: &ServiceTable) {
        let names: HashSet<&str> = table.services.iter().map(|s| s.name.as_str()).collect();
        self.loads
            .retain(|name, load| names.contains(name.as_str()) || load.in_flight > 0);
        self.turns_any
            .retain(|name, _| names.contains(name.as_str()));
        self.turns.retain(|_, turns| {
            turns.retain(|name, _| names.contains(name.as_str()));
            !turns.is_empty()
        });
    }

    /// Let the outcome of a request count for or against the engine.
    ///
    /// While it is ejected only its probation request counts: answers to older requests say how
    /// it was, not how it is.
    pub fn judge(&mut self, service: &Service, outcome: Outcome, now: Instant, probation: bool) {
        match outcome {
            Outcome::Neutral | Outcome::Busy => {}
            Outcome::Ok => self.praise(service, now, probation),
            Outcome::EngineFault => self.blame(service, now, probation),
        }
    }

    fn praise(&mut self, service: &Service, now: Instant, probation: bool) {
        let load = self.of(service);
        if load.ejected_until.is_some() && !probation {
            return;
        }
        load.consecutive_failures = 0;
        if load.ejected_until.take().is_some() {
            load.ejections = 0;
            self.any_ejected = self
                .loads
                .values()
                .any(|other| other.ejected_until.is_some());
            self.warm(service, now);
        }
    }

    fn blame(&mut self, service: &Service, now: Instant, probation: bool) {
        let limit = service.max_fails.unwrap_or(self.limits.max_fails);
        let load = self.of(service);
        load.error_count += 1;
        if load.ejected_until.is_some() && !probation {
            return;
        }
        load.consecutive_failures = load.consecutive_failures.saturating_add(1);
        if limit > 0 && (load.consecutive_failures >= limit || probation) {
            self.eject(service, now);
        }
    }

    fn eject(&mut self, service: &Service, now: Instant) {
        let jitter = 1.0 + EJECTION_JITTER * (2.0 * (self.jitter)() - 1.0);
        let base = service.fail_timeout.unwrap_or(EJECTION_BASE);
        let load = self.of(service);
        let since = load
            .ejected_until
            .map(|end| now.saturating_duration_since(end));
        if since.is_some_and(|time| time > EJECTIONS_FORGOTTEN_AFTER) {
            load.ejections = 0;
        }
        let span = EJECTION_CAP.min(base * 2.0_f64.powi(load.ejections));
        load.ejected_until = Some(now + Duration::from_secs_f64(span * jitter));
        load.ejections = (load.ejections + 1).min(MAX_DOUBLINGS);
        self.any_ejected = true;
    }
}

/// The engines that begin to serve a model which others serve already.
fn newcomers<'a>(
    last: &'a ServiceTable,
    new: &'a ServiceTable,
) -> impl Iterator<Item = &'a Arc<Service>> {
    let before = last.healthy_engines.iter();
    let served: HashSet<&str> = before
        .filter(|s| !s.models.is_empty())
        .map(|s| s.name.as_str())
        .collect();
    let is_served = |model: &String| !last.candidates(Some(model)).up.is_empty();
    new.healthy_engines.iter().filter(move |service| {
        !served.contains(service.name.as_str()) && service.models.iter().any(is_served)
    })
}

/// The value of `key`, made on first use. The key is copied then only: `entry` would always do so.
pub(crate) fn entry<'map, V: Default>(map: &'map mut HashMap<String, V>, key: &str) -> &'map mut V {
    entry_with(map, key, V::default)
}

fn entry_with<'map, V>(
    map: &'map mut HashMap<String, V>,
    key: &str,
    make: impl FnOnce() -> V,
) -> &'map mut V {
    if !map.contains_key(key) {
        return map.entry(key.to_owned()).or_insert_with(make);
    }
    #[expect(clippy::expect_used, reason = "the line above has seen the key")]
    map.get_mut(key).expect("present")
}
