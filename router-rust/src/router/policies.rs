//! Policies: whom of several candidates a request goes to. No network, clock or lock.

use std::borrow::Cow;
use std::sync::Arc;

use tokio::time::Instant;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::router::engine::MAX_CREDIT;
use crate::router::load::{Book, entry};
use crate::router::selection::{Engines, Request};
use crate::router::table::Service;

/// `consistent_hash`: no engine above this multiple of the mean in flight.
const BOUNDED_LOAD: f64 = 1.25;

/// How to choose among candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    #[default]
    RoundRobin,
    LeastLoaded,
    PowerOfTwo,
    ConsistentHash,
    IpHash,
    Random,
}

impl Policy {
    /// The policy of this name; names are checked with the configuration.
    pub fn named(name: &str) -> Self {
        match name {
            "least_loaded" => Self::LeastLoaded,
            "power_of_two" => Self::PowerOfTwo,
            "consistent_hash" => Self::ConsistentHash,
            "ip_hash" => Self::IpHash,
            "random" => Self::Random,
            _ => Self::RoundRobin,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastLoaded => "least_loaded",
            Self::PowerOfTwo => "power_of_two",
            Self::ConsistentHash => "consistent_hash",
            Self::IpHash => "ip_hash",
            Self::Random => "random",
        }
    }

    /// Whether an engine's keys are its share.
    pub(crate) const fn is_by_key(self) -> bool {
        matches!(self, Self::ConsistentHash | Self::IpHash)
    }

    pub(crate) fn pick<'a>(
        self,
        candidates: &'a [Arc<Service>],
        request: &Request,
        book: &mut Book,
        now: Instant,
    ) -> (&'a Arc<Service>, &'static str) {
        match self {
            Self::RoundRobin => (round_robin(candidates, request, book), "; its turn"),
            Self::LeastLoaded => (
                least_loaded(candidates, request, book),
                "; fewest in flight",
            ),
            Self::PowerOfTwo => (
                power_of_two(candidates, book, now),
                "; the less loaded of two",
            ),
            Self::ConsistentHash => consistent_hash(candidates, request, book),
            Self::IpHash => (
                rendezvous(request.client.as_bytes(), candidates, book),
                "; client address",
            ),
            Self::Random => (by_lot(candidates), "; by lot"),
        }
    }
}

/// The weight to divide and to add by: 0 means "only when nobody else is left".
fn weight(service: &Service) -> f64 {
    if service.weight == 0.0 {
        1.0
    } else {
        service.weight
    }
}

/// Those that may take a request now: engines that have just come take up their share slowly.
///
/// While one is new it earns credit with each request that it might have got, a growing part of
/// its fair share, and is a candidate only with credit for a whole one.
pub(crate) fn warm_enough<'a>(
    candidates: Engines<'a>,
    book: &mut Book,
    now: Instant,
) -> Engines<'a> {
    let slow_start = book.limits.slow_start;
    let total: f64 = candidates.iter().map(|s| weight(s)).sum();
    let mut ready = Vec::with_capacity(candidates.len());
    for service in candidates.iter() {
        let load = book.of(service);
        let warmth = load.warmth(now, slow_start);
        let is_new = warmth < 1.0;
        if is_new {
            let share = weight(service) / total;
            load.credit = MAX_CREDIT.min(load.credit + warmth * share);
        }
        if !is_new || load.credit >= 1.0 {
            ready.push(Arc::clone(service));
        }
    }
    if ready.is_empty() {
        return candidates;
    }
    Cow::Owned(ready)
}

/// Smooth weighted round-robin, as nginx interleaves: 5:1:1 gives a a b a c a a.
pub(crate) fn round_robin<'a>(
    candidates: &'a [Arc<Service>],
    request: &Request,
    book: &mut Book,
) -> &'a Arc<Service> {
    let turns = book.turns(request.model.as_deref());
    let (mut best, mut best_turn, mut total) = (&candidates[0], f64::NEG_INFINITY, 0.0);
    for service in candidates {
        let weight = weight(service);
        total += weight;
        let turn = entry(turns, &service.name);
        *turn += weight;
        if *turn > best_turn {
            (best, best_turn) = (service, *turn);
        }
    }
    *entry(turns, &best.name) -= total;
    best
}

fn least_loaded<'a>(
    candidates: &'a [Arc<Service>],
    request: &Request,
    book: &mut Book,
) -> &'a Arc<Service> {
    let least = candidates
        .iter()
        .map(|s| load(s, book))
        .fold(f64::INFINITY, f64::min);
    let is_least = |s: &&Arc<Service>| load(s, book) <= least;
    let equal: Vec<_> = candidates.iter().filter(is_least).cloned().collect();
    let chosen = Arc::clone(round_robin(&equal, request, book));
    candidates
        .iter()
        .find(|s| Arc::ptr_eq(s, &chosen))
        .unwrap_or(&candidates[0])
}

fn load(service: &Service, book: &Book) -> f64 {
    f64::from(book.in_flight_of(&service.name)) / weight(service)
}

/// Of two engines the one where waiting is expected to be shorter (linkerd's peak EWMA).
fn power_of_two<'a>(candidates: &'a [Arc<Service>], book: &Book, now: Instant) -> &'a Arc<Service> {
    let first = fastrand::usize(..candidates.len());
    let other = (first + fastrand::usize(1..candidates.len())) % candidates.len();
    let (first, other) = (&candidates[first], &candidates[other]);
    let is_known = |s: &Service| book.get(&s.name).is_some_and(|load| load.estimate > 0.0);
    let timed = is_known(first) && is_known(other);
    if wait(other, book, now, timed) < wait(first, book, now, timed) {
        other
    } else {
        first
    }
}

/// What one more request costs there; not `timed`, requests count alone.
fn wait(service: &Service, book: &Book, now: Instant, timed: bool) -> f64 {
    let latency = |name| book.get(name).map_or(0.0, |load| load.latency(now));
    let latency = if timed { latency(&service.name) } else { 1.0 };
    (f64::from(book.in_flight_of(&service.name)) + 1.0) * latency / weight(service)
}

fn by_lot(candidates: &[Arc<Service>]) -> &Arc<Service> {
    let total: f64 = candidates.iter().map(|s| weight(s)).sum();
    let mut lot = fastrand::f64() * total;
    for service in candidates {
        lot -= weight(service);
        if lot < 0.0 {
            return service;
        }
    }
    &candidates[candidates.len() - 1]
}

fn consistent_hash<'a>(
    candidates: &'a [Arc<Service>],
    request: &Request,
    book: &Book,
) -> (&'a Arc<Service>, &'static str) {
    let key = request.key.as_deref();
    let why = match key {
        Some(key) if !key.is_empty() => "; affinity key",
        _ => "; prompt head",
    };
    (
        rendezvous(key.unwrap_or(&request.prompt), candidates, book),
        why,
    )
}

/// Highest random weight (Thaler and Ravishankar, 1998) with bounded load.
///
/// The order of engines for a key depends on their names only, so it is the same in every
/// replica; an engine that holds more than `BOUNDED_LOAD` times the mean in flight is passed over.
pub fn rendezvous<'a>(key: &[u8], candidates: &'a [Arc<Service>], book: &Book) -> &'a Arc<Service> {
    let in_flight = |s: &Service| f64::from(book.in_flight_of(&s.name));
    let total: f64 = candidates.iter().map(|s| in_flight(s)).sum::<f64>() + 1.0;
    #[expect(clippy::cast_precision_loss, reason = "a count of engines is small")]
    let bound = BOUNDED_LOAD * total / candidates.len() as f64;
    let rank = |s: &Arc<Service>| (xxh3_64_with_seed(key, engine_id(&s.name)), s.name.clone());
    let free = candidates.iter().filter(|s| in_flight(s) < bound);
    free.max_by_key(|s| rank(s))
        .or_else(|| candidates.iter().max_by_key(|s| rank(s)))
        .unwrap_or(&candidates[0])
}

fn engine_id(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}
