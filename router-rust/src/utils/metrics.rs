//! What became of requests, counted; and the text in which Prometheus reads it (docs/METRICS.md).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{Display, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::router::load::entry;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
pub const OK: &str = "ok";
/// The label of what has no series of its own.
pub const OTHER: &str = "other";
/// Models, and kinds of failures, that have one.
pub const MAX_LABELS: usize = 1000;
pub const FIRST_BYTE_BOUNDS: [f64; 11] = [
    0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// What failed: at which engine ("" = none), in which phase, with which code.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    pub engine: String,
    pub phase: &'static str,
    pub code: &'static str,
}

impl Failure {
    fn at_other(&self) -> Self {
        Self {
            engine: OTHER.to_owned(),
            ..self.clone()
        }
    }
}

/// Seconds, counted between `FIRST_BYTE_BOUNDS`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    pub counts: [u64; FIRST_BYTE_BOUNDS.len() + 1],
    pub total: f64,
}

impl Histogram {
    /// Count one value; a bound belongs to what is below it.
    pub fn observe(&mut self, value: f64) {
        self.counts[FIRST_BYTE_BOUNDS.partition_point(|bound| *bound < value)] += 1;
        self.total += value;
    }

    fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.total += other.total;
    }
}

/// The counts of one model.
#[derive(Clone, Debug, Default)]
pub struct ModelCounts {
    /// By outcome.
    pub requests: BTreeMap<&'static str, u64>,
    pub first_byte: Histogram,
}

/// Counts since the router's start. Labels are models and engines that it knows, never more.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub models: HashMap<String, ModelCounts>,
    pub failures: BTreeMap<Failure, u64>,
    /// Attempts that failed, but not the request with them.
    pub retries: BTreeMap<Failure, u64>,
    pub bytes_sent: u64,
}

impl Counters {
    /// Count the one outcome of a request; `named` are the models that engines have named.
    pub fn ended(
        &mut self,
        model: Option<&str>,
        named: &HashSet<String>,
        failure: Option<Failure>,
        first_byte: Option<Duration>,
    ) {
        let counts = self.of(model.unwrap_or(OTHER), named);
        let outcome = failure.as_ref().map_or(OK, |failure| failure.code);
        *counts.requests.entry(outcome).or_default() += 1;
        if let Some(first_byte) = first_byte {
            counts.first_byte.observe(first_byte.as_secs_f64());
        }
        if let Some(failure) = failure {
            count(&mut self.failures, failure, 1);
        }
    }

    /// Count an attempt that failed and was not the last.
    pub fn retried(&mut self, failure: Failure) {
        count(&mut self.retries, failure, 1);
    }

    fn of(&mut self, model: &str, named: &HashSet<String>) -> &mut ModelCounts {
        let has_room = self.models.len() < MAX_LABELS && named.contains(model);
        let known = has_room || self.models.contains_key(model);
        entry(&mut self.models, if known { model } else { OTHER })
    }

    /// Requests that had their outcome.
    pub fn requests(&self) -> u64 {
        let outcomes = self
            .models
            .values()
            .flat_map(|counts| counts.requests.values());
        outcomes.sum()
    }

    /// Failed requests by code.
    pub fn by_code(&self) -> BTreeMap<&'static str, u64> {
        let mut found = BTreeMap::new();
        for (failure, count) in &self.failures {
            *found.entry(failure.code).or_default() += count;
        }
        found
    }

    fn add(&mut self, other: &Self) {
        for (model, more) in &other.models {
            let counts = entry(&mut self.models, model);
            for (outcome, more) in &more.requests {
                *counts.requests.entry(outcome).or_default() += more;
            }
            counts.first_byte.add(&more.first_byte);
        }
        for (failure, more) in &other.failures {
            count(&mut self.failures, failure.clone(), *more);
        }
        for (failure, more) in &other.retries {
            count(&mut self.retries, failure.clone(), *more);
        }
        self.bytes_sent += other.bytes_sent;
    }
}

fn count(counts: &mut BTreeMap<Failure, u64>, failure: Failure, more: u64) {
    let has_room = counts.len() < MAX_LABELS || counts.contains_key(&failure);
    let failure = if has_room {
        failure
    } else {
        failure.at_other()
    };
    *counts.entry(failure).or_default() += more;
}

/// The counters of all threads: each counts for itself, and readers add up.
#[derive(Debug, Default)]
pub struct AllCounters {
    threads: Mutex<Vec<Arc<Mutex<Counters>>>>,
}

impl AllCounters {
    /// Counters for one more thread.
    pub fn for_thread(&self) -> Arc<Mutex<Counters>> {
        let counters = Arc::default();
        locked(&self.threads).push(Arc::clone(&counters));
        counters
    }

    /// What all threads have counted.
    pub fn total(&self) -> Counters {
        let mut total = Counters::default();
        for counters in locked(&self.threads).iter() {
            total.add(&locked(counters));
        }
        total
    }
}

/// What a lock guards; counts are right after each single step, so a panic has broken nothing.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The counts, with engines that are gone under one name: theirs would pile up for ever.
pub fn at_known_engines(
    counts: &BTreeMap<Failure, u64>,
    is_known: impl Fn(&str) -> bool,
) -> BTreeMap<Failure, u64> {
    let mut found = BTreeMap::new();
    for (failure, count) in counts {
        let known = failure.engine.is_empty() || is_known(&failure.engine);
        let failure = if known {
            failure.clone()
        } else {
            failure.at_other()
        };
        *found.entry(failure).or_default() += count;
    }
    found
}

pub type Labels<'a> = &'a [(&'static str, &'a str)];

/// Metrics in Prometheus' text format, in the order in which they are added.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Begin a metric; its samples follow.
    pub fn begin(&mut self, name: &str, kind: &str, about: &str) {
        self.line(format_args!("# HELP {name} {about}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// One sample of the metric that was begun.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        let shown: Vec<String> = labels
            .iter()
            .map(|(key, text)| format!("{key}=\"{}\"", escaped(text)))
            .collect();
        if shown.is_empty() {
            self.line(format_args!("{name} {value}"));
        } else {
            self.line(format_args!("{name}{{{}}} {value}", shown.join(",")));
        }
    }

    /// The samples of a histogram of one model.
    pub fn histogram(&mut self, name: &str, model: &str, histogram: &Histogram) {
        let mut below = 0;
        let bounds = FIRST_BYTE_BOUNDS.iter().map(f64::to_string);
        let bounds = bounds.chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(histogram.counts) {
            below += count;
            let labels = [("model", model), ("le", bound.as_str())];
            self.sample(&format!("{name}_bucket"), &labels, below);
        }
        let labels = [("model", model)];
        self.sample(&format!("{name}_sum"), &labels, decimal(histogram.total));
        self.sample(&format!("{name}_count"), &labels, below);
    }

    /// All of it.
    pub fn into_text(self) -> String {
        self.text
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        let written = writeln!(self.text, "{line}");
        debug_assert!(written.is_ok(), "text can always be written to memory");
    }
}

/// A number with its fraction.
pub fn decimal(value: f64) -> String {
    format!("{value:.6}")
}

fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    text.replace('\n', "\\n")
}
