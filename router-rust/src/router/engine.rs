//! One engine's counters, and what its answers say of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::router::table::Service;

/// Weight of the newest sample in the average of response times.
pub const AVERAGE_SHARE: f64 = 0.1;
/// Seconds in which an estimate loses 63 % of its weight (linkerd).
pub const ESTIMATE_DECAY: f64 = 10.0;
/// Seconds that a failure counts as, or one that fails fast would draw load.
pub const FAILURE_PENALTY: f64 = 5.0;
/// Seconds for which an engine is spared that said 429 without Retry-After.
pub const BUSY_DEFAULT: f64 = 1.0;
pub const BUSY_CAP: f64 = 300.0;
/// Requests that a warming engine may save up.
pub const MAX_CREDIT: f64 = 2.0;

const fn is_engine_fault(status: u16) -> bool {
    matches!(status, 502..=504)
}

/// How an engine did with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// Connect, reset, invalid answer, 502/503/504, first byte late.
    EngineFault,
    /// It works, but has no room: 429, or 503 with Retry-After.
    Busy,
    /// Says nothing about the engine: client left, client's fault.
    Neutral,
}

/// What an answer's status says of its engine; `retry_after` is None where it says none.
pub fn verdict(status: u16, retry_after: Option<f64>) -> Outcome {
    if status == 429 || (status == 503 && retry_after.is_some()) {
        return Outcome::Busy;
    }
    if is_engine_fault(status) {
        Outcome::EngineFault
    } else {
        Outcome::Ok
    }
}

/// What holds for every engine that does not say otherwise itself.
///
/// Failures in a row that eject it (0 = never), requests at once, and the time over which it
/// takes up its share of the load when it comes (back).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_fails: u32,
    pub max_concurrency: u32,
    pub slow_start: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_fails: 3,
            max_concurrency: 256,
            slow_start: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// Requests that this engine takes at once.
    pub fn of(&self, service: &Service) -> u32 {
        service.max_concurrency().unwrap_or(self.max_concurrency)
    }
}

/// Counters of one engine; they survive table changes, keyed by the service's name.
///
/// `prefill_requests` and `prefill_bytes` count what was sent and has no first byte yet, and the
/// bytes of the prompts in it. `credit` is what a warming engine may still take, in requests.
#[derive(Debug)]
pub struct EngineLoad {
    pub limit: u32,
    pub in_flight: u32,
    pub prefill_requests: u32,
    pub prefill_bytes: u64,
    pub request_count: u64,
    pub error_count: u64,
    /// Seconds to the answer's head, moving average.
    pub response_time: f64,
    /// Seconds to the first byte, 0 = not known yet.
    pub estimate: f64,
    pub estimated_at: Option<Instant>,
    pub consecutive_failures: u32,
    pub ejected_until: Option<Instant>,
    pub ejections: i32,
    pub on_probation: bool,
    pub busy_until: Option<Instant>,
    pub warm_since: Option<Instant>,
    pub credit: f64,
    pub(crate) heard: Arc<LastHeard>,
}

impl EngineLoad {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            in_flight: 0,
            prefill_requests: 0,
            prefill_bytes: 0,
            request_count: 0,
            error_count: 0,
            response_time: 0.0,
            estimate: 0.0,
            estimated_at: None,
            consecutive_failures: 0,
            ejected_until: None,
            ejections: 0,
            on_probation: false,
            busy_until: None,
            warm_since: None,
            credit: 0.0,
            heard: Arc::default(),
        }
    }

    /// True while it must not get requests: ejected, or its one probation request is out.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until
            .is_some_and(|until| now < until || self.on_probation)
    }

    /// True when it serves as many requests as it may.
    pub fn is_full(&self) -> bool {
        self.in_flight >= self.limit
    }

    /// True while it asks for a pause.
    pub fn is_busy(&self, now: Instant) -> bool {
        self.busy_until.is_some_and(|until| now < until)
    }

    /// Seconds to the first byte as expected now; what nothing is heard of fades.
    pub fn latency(&self, now: Instant) -> f64 {
        self.estimate * self.kept(now)
    }

    /// Take in a time to the first byte: a longer one counts at once, shorter ones by and by.
    pub fn observe(&mut self, seconds: f64, now: Instant) {
        if seconds >= self.estimate {
            self.estimate = seconds;
        } else {
            let kept = self.kept(now);
            self.estimate = self.estimate * kept + seconds * (1.0 - kept);
        }
        self.estimated_at = Some(now);
    }

    /// What is left of the estimate's weight.
    fn kept(&self, now: Instant) -> f64 {
        let age = self.estimated_at.map(|at| seconds_since(at, now));
        (-age.unwrap_or(0.0) / ESTIMATE_DECAY).exp()
    }

    /// The part of its share of the load that it may take: 1, or less while it is new.
    pub fn warmth(&self, now: Instant, slow_start: Duration) -> f64 {
        let age = self.warm_since.map(|since| seconds_since(since, now));
        let whole = slow_start.as_secs_f64();
        age.filter(|age| *age < whole)
            .map_or(1.0, |age| age / whole)
    }
}

/// The time from then until now.
pub(crate) fn seconds_since(then: Instant, now: Instant) -> f64 {
    now.saturating_duration_since(then).as_secs_f64()
}

/// When the last byte of an answer came. Noted with each read, so without the book's lock.
#[derive(Debug)]
pub(crate) struct LastHeard {
    made_at: Instant,
    /// Microseconds from then on.
    at: AtomicU64,
}

impl Default for LastHeard {
    fn default() -> Self {
        Self {
            made_at: Instant::now(),
            at: AtomicU64::new(0),
        }
    }
}

impl LastHeard {
    pub(crate) fn note(&self, now: Instant) {
        self.at.store(self.micros(now), Ordering::Relaxed);
    }

    /// Whether one has come after `moment`.
    pub(crate) fn since(&self, moment: Instant) -> bool {
        self.at.load(Ordering::Relaxed) > self.micros(moment)
    }

    fn micros(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.made_at);
        since.as_secs() * 1_000_000 + u64::from(since.subsec_micros())
    }
}

/// What `/stats` and `/services` show of an engine's load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadView {
    pub in_flight: u32,
    pub max_concurrency: u32,
    pub prefill_requests: u32,
    pub prefill_bytes: u64,
    pub request_count: u64,
    pub error_count: u64,
    pub response_time: f64,
    pub ejected: bool,
    pub busy: bool,
    pub warming: bool,
}
