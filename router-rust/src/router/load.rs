//! Per-engine load and traffic health: the only state that changes with every request.
//!
//! Load is counted where it arises: at dispatch, and released exactly once by the guard that
//! dispatch hands out, whatever the outcome. Traffic health ejects an engine after a run of its own
//! failures (never for a client's fault) for a time that doubles, then lets one request probe it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::router::table::Service;

/// Seconds of the first ejection; doubles up to `EJECTION_CAP`.
pub const EJECTION_BASE: f64 = 5.0;
pub const EJECTION_CAP: f64 = 60.0;
/// Time since the last one ended after which an ejection is the first again.
pub const EJECTIONS_FORGOTTEN_AFTER: Duration = Duration::from_mins(10);
pub const EJECTION_JITTER: f64 = 0.2;
/// Weight of the newest sample in the moving average of response times.
pub const LATENCY_DECAY: f64 = 0.1;
const MAX_DOUBLINGS: i32 = 16;

/// How an engine did with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// Connect, reset, invalid answer, 502/503/504, first byte late.
    EngineFault,
    /// Says nothing about the engine: client left, client's fault.
    Neutral,
}

/// Counters of one engine; they survive table changes, keyed by the service's name.
#[derive(Debug, Default)]
pub struct EngineLoad {
    pub in_flight: u32,
    pub request_count: u64,
    pub error_count: u64,
    /// Seconds to the first byte, moving average.
    pub response_time: f64,
    pub consecutive_failures: u32,
    pub ejected_until: Option<Instant>,
    pub ejections: i32,
    pub on_probation: bool,
}

impl EngineLoad {
    /// True while it must not get requests: ejected, or its one probation request is out.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until
            .is_some_and(|until| now < until || self.on_probation)
    }
}

/// What `/stats` and `/services` show of an engine's load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadView {
    pub in_flight: u32,
    pub request_count: u64,
    pub error_count: u64,
    pub response_time: f64,
    pub ejected: bool,
}

/// One request on one engine. `release` counts it out; dropping it does too, blaming nobody.
pub struct InFlight {
    book: Arc<LoadBook>,
    service: Arc<Service>,
    started: Instant,
    probation: bool,
    released: bool,
}

impl InFlight {
    /// The answer's head is here: record the time it took and what its status says.
    ///
    /// A long stream must not keep an engine on probation, so a good head counts at once.
    pub fn first_byte(&mut self, outcome: Outcome, now: Instant) {
        let elapsed = now.saturating_duration_since(self.started).as_secs_f64();
        let mut book = self.book.lock();
        if self.probation && outcome == Outcome::Ok {
            book.judge(&self.service, outcome, now, true);
            end_probation(&mut self.probation, &mut book, &self.service.name);
        }
        let load = book.of(&self.service.name);
        if load.response_time == 0.0 {
            load.response_time = elapsed;
        } else {
            load.response_time += LATENCY_DECAY * (elapsed - load.response_time);
        }
    }

    /// End of the request, seen from the engine.
    pub fn release(mut self, outcome: Outcome, now: Instant) {
        self.count_out(outcome, now);
    }

    fn count_out(&mut self, outcome: Outcome, now: Instant) {
        if std::mem::replace(&mut self.released, true) {
            return;
        }
        let mut book = self.book.lock();
        book.in_flight -= 1;
        book.of(&self.service.name).in_flight -= 1;
        let probation = self.probation;
        end_probation(&mut self.probation, &mut book, &self.service.name);
        book.judge(&self.service, outcome, now, probation);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.released {
            self.count_out(Outcome::Neutral, Instant::now());
        }
    }
}

fn end_probation(probation: &mut bool, book: &mut Book, name: &str) {
    if std::mem::take(probation) {
        book.of(name).on_probation = false;
    }
}

/// Keeps retries from multiplying load on a bad day (Envoy's retry budget, tower's `TpsBudget`).
///
/// Over a sliding window of 10 to 20 s, retries may be a fifth of the requests, or three a second.
#[derive(Debug, Default)]
pub struct RetryBudget {
    started: Option<Instant>,
    /// This window's, last window's.
    requests: [u64; 2],
    retries: [u64; 2],
}

impl RetryBudget {
    const WINDOW: Duration = Duration::from_secs(10);
    /// Retries are at most one in so many requests.
    const SHARE: u64 = 5;
    const FLOOR: u64 = 30;

    /// Count a request (not its retries).
    pub fn request(&mut self) {
        self.requests[0] += 1;
    }

    /// Count a retry and return true when the budget allows one more.
    pub fn take(&mut self, now: Instant) -> bool {
        let age = self
            .started
            .map(|started| now.saturating_duration_since(started));
        if age.is_none_or(|age| age >= Self::WINDOW) {
            let recent = age.is_some_and(|age| age < 2 * Self::WINDOW);
            self.requests = [0, if recent { self.requests[0] } else { 0 }];
            self.retries = [0, if recent { self.retries[0] } else { 0 }];
            self.started = Some(now);
        }
        let spent: u64 = self.retries.iter().sum();
        let requests: u64 = self.requests.iter().sum();
        if spent >= Self::FLOOR && Self::SHARE * spent >= requests {
            return false;
        }
        self.retries[0] += 1;
        true
    }
}

/// All engines' loads behind one lock, which is held for moments and never over an await.
pub struct LoadBook {
    book: Mutex<Book>,
}

/// What the lock of `LoadBook` guards.
pub struct Book {
    pub in_flight: u32,
    /// Whether `is_ejected` can be true for anyone.
    pub any_ejected: bool,
    pub retries: RetryBudget,
    /// Failures in a row that eject an engine, 0 = never.
    pub max_fails: u32,
    jitter: fn() -> f64,
    loads: HashMap<String, EngineLoad>,
    turns: HashMap<String, HashMap<String, f64>>,
    turns_any: HashMap<String, f64>,
}

impl LoadBook {
    /// An empty book; `max_fails` failures in a row eject an engine, 0 = never.
    pub fn new(max_fails: u32) -> Self {
        Self::with_jitter(max_fails, fastrand::f64)
    }

    /// The same with a source of numbers from 0 to 1.
    pub fn with_jitter(max_fails: u32, jitter: fn() -> f64) -> Self {
        Self {
            book: Mutex::new(Book {
                in_flight: 0,
                any_ejected: false,
                retries: RetryBudget::default(),
                max_fails,
                jitter,
                loads: HashMap::new(),
                turns: HashMap::new(),
                turns_any: HashMap::new(),
            }),
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

    /// The counters of one engine as they are now; zeros for one that had no request yet.
    pub fn view(&self, name: &str, now: Instant) -> LoadView {
        let book = self.lock();
        book.get(name)
            .map_or_else(LoadView::default, |load| LoadView {
                in_flight: load.in_flight,
                request_count: load.request_count,
                error_count: load.error_count,
                response_time: load.response_time,
                ejected: load.is_ejected(now),
            })
    }

    /// Count a request in; what is returned counts it out. `book` is this one, locked.
    pub fn begin(
        self: &Arc<Self>,
        book: &mut Book,
        service: &Arc<Service>,
        now: Instant,
    ) -> InFlight {
        InFlight {
            book: Arc::clone(self),
            service: Arc::clone(service),
            started: now,
            probation: book.count_in(&service.name),
            released: false,
        }
    }

    /// Drop the counters of engines that are gone and idle.
    pub fn forget_missing(&self, services: &[Arc<Service>]) {
        let names: HashSet<&str> = services.iter().map(|s| s.name.as_str()).collect();
        let mut book = self.lock();
        book.loads
            .retain(|name, load| names.contains(name.as_str()) || load.in_flight > 0);
        book.turns_any
            .retain(|name, _| names.contains(name.as_str()));
        book.turns.retain(|_, turns| {
            turns.retain(|name, _| names.contains(name.as_str()));
            !turns.is_empty()
        });
    }
}

impl Book {
    /// The counters of an engine, if it had a request.
    pub fn get(&self, name: &str) -> Option<&EngineLoad> {
        self.loads.get(name)
    }

    /// The counters of an engine, made on first use.
    pub fn of(&mut self, name: &str) -> &mut EngineLoad {
        entry(&mut self.loads, name)
    }

    /// Requests that an engine serves now.
    pub fn in_flight_of(&self, name: &str) -> u32 {
        self.get(name).map_or(0, |load| load.in_flight)
    }

    /// Smooth round-robin's current weights for `model`: service name -> weight.
    pub fn turns(&mut self, model: Option<&str>) -> &mut HashMap<String, f64> {
        let Some(model) = model else {
            return &mut self.turns_any;
        };
        entry(&mut self.turns, model)
    }

    /// Count a request in; true when it is the engine's probation request.
    fn count_in(&mut self, name: &str) -> bool {
        self.in_flight += 1;
        let load = self.of(name);
        load.in_flight += 1;
        load.request_count += 1;
        let probation = load.ejected_until.is_some();
        if probation {
            load.on_probation = true;
        }
        probation
    }

    /// Let the outcome of a request count for or against the engine.
    ///
    /// While it is ejected only its probation request counts: answers to older requests say how
    /// it was, not how it is.
    pub fn judge(&mut self, service: &Service, outcome: Outcome, now: Instant, probation: bool) {
        match outcome {
            Outcome::Neutral => {}
            Outcome::Ok => self.praise(&service.name, probation),
            Outcome::EngineFault => self.blame(service, now, probation),
        }
    }

    fn praise(&mut self, name: &str, probation: bool) {
        let load = self.of(name);
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
        }
    }

    fn blame(&mut self, service: &Service, now: Instant, probation: bool) {
        let limit = service.max_fails.unwrap_or(self.max_fails);
        let load = self.of(&service.name);
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
        let load = self.of(&service.name);
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

/// The value of `key`, made on first use. The key is copied then only: `entry` would always do so.
pub(crate) fn entry<'map, V: Default>(map: &'map mut HashMap<String, V>, key: &str) -> &'map mut V {
    if !map.contains_key(key) {
        return map.entry(key.to_owned()).or_default();
    }
    #[expect(clippy::expect_used, reason = "the line above has seen the key")]
    map.get_mut(key).expect("present")
}
