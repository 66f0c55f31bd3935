//! Which of a registry's services stay in the table: decided from its answers, probes and time.
//!
//! A service that left the healthy list may be gone, draining or only late with its heartbeat. A
//! registry that lost its memory must not take the engines with it. No network and no clock here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::router::table::{Service, Services};

pub const RUNNING: &str = "running";
/// Our word for: the registry lists it, but not as healthy, for too long.
pub const UNHEALTHY: &str = "unhealthy";

/// Of all engines, removed per answer after most were lost at once: three in ten, at least one.
fn guarded_quota(services: usize) -> usize {
    (3 * services / 10).max(1)
}

/// A service that is not in the healthy list, and since when.
#[derive(Clone, Debug)]
struct Missing {
    name: String,
    since: Instant,
    /// It was lost together with most others, so the registry is the likelier culprit.
    guarded: bool,
    /// The registry still has it, though not as healthy.
    listed: bool,
}

/// The services that a registry has named and that are not removed yet.
#[derive(Debug)]
pub struct Membership {
    /// How long a service that is gone stays.
    pub grace: Duration,
    services: Services,
    missing: Vec<Missing>,
}

impl Membership {
    /// No services; those that go are kept for `grace`.
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            services: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// All of them, the missing ones too, in the order in which they came.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Whether the last answer left out any.
    pub fn any_missing(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Start from a saved list; the first answer decides what is missing.
    pub fn restore(&mut self, services: Services) {
        self.services = services;
    }

    /// Take in an answer: the list of healthy services at time `now`.
    pub fn healthy(&mut self, services: &[Arc<Service>], now: Instant) {
        let present = by_name(services);
        let absent: HashSet<&str> = self.missing.iter().map(|m| m.name.as_str()).collect();
        let before: Vec<_> = self
            .services
            .iter()
            .filter(|s| !absent.contains(s.name.as_str()))
            .collect();
        let gone = |service: &Service| !present.contains_key(service.name.as_str());
        let guarded = lost_most(&before, gone);
        let lost: Vec<_> = before
            .into_iter()
            .filter(|service| gone(service))
            .map(|service| Missing {
                name: service.name.clone(),
                since: now,
                guarded,
                listed: false,
            })
            .collect();
        self.missing
            .retain(|missing| !present.contains_key(missing.name.as_str()));
        self.missing.extend(lost);
        self.update(services);
    }

    /// Replace the services that are known, in their places, and append the others.
    fn update(&mut self, services: &[Arc<Service>]) {
        let present = by_name(services);
        let mut known = HashSet::new();
        for service in &mut self.services {
            known.insert(service.name.clone());
            if let Some(new) = present.get(service.name.as_str()) {
                *service = Arc::clone(new);
            }
        }
        let new = services
            .iter()
            .filter(|service| !known.contains(&service.name));
        self.services.extend(new.cloned());
    }

    /// Take in the full list: what the registry says of those missing from the healthy one.
    ///
    /// A status other than running counts at once: a draining engine gets no new request.
    pub fn listed(&mut self, services: &[Arc<Service>]) {
        let full = by_name(services);
        for missing in &mut self.missing {
            let entry = full.get(missing.name.as_str());
            missing.listed = entry.is_some();
            let place = self
                .services
                .iter_mut()
                .find(|service| service.name == missing.name);
            if let (Some(entry), Some(place)) = (entry, place)
                && entry.status != RUNNING
            {
                *place = Arc::clone(entry);
            }
        }
    }

    /// Remove what has been missing for the grace period; the names of what was removed.
    ///
    /// `down` names the services whose probes fail.
    pub fn expire(&mut self, now: Instant, down: &HashSet<String>) -> Vec<String> {
        let mut quota = guarded_quota(self.services.len());
        let mut removed = Vec::new();
        for missing in std::mem::take(&mut self.missing) {
            let over = now.saturating_duration_since(missing.since) >= self.grace;
            let mut goes = over && !self.stays(&missing, down);
            if goes && missing.guarded {
                goes = quota > 0;
                quota = quota.saturating_sub(1);
            }
            if goes {
                removed.push(missing.name);
            } else {
                self.missing.push(missing);
            }
        }
        self.services
            .retain(|service| !removed.contains(&service.name));
        removed
    }

    /// Whether a service stays although its grace period is over.
    fn stays(&mut self, missing: &Missing, down: &HashSet<String>) -> bool {
        let place = self
            .services
            .iter_mut()
            .find(|service| service.name == missing.name);
        let Some(service) = place else { return false };
        if service.metadata.get("static") == Some(&Value::Bool(true)) {
            return true;
        }
        let running = service.status == RUNNING;
        if running && missing.guarded && service.is_engine() && !down.contains(&missing.name) {
            return true;
        }
        if running && missing.listed {
            UNHEALTHY.clone_into(&mut Arc::make_mut(service).status);
        }
        missing.listed
    }
}

fn by_name(services: &[Arc<Service>]) -> HashMap<&str, &Arc<Service>> {
    services
        .iter()
        .map(|service| (service.name.as_str(), service))
        .collect()
}

/// Whether more than half of the engines, or the last one, went at once.
fn lost_most(before: &[&Arc<Service>], gone: impl Fn(&Service) -> bool) -> bool {
    let engines: Vec<_> = before
        .iter()
        .filter(|service| service.is_engine())
        .collect();
    let lost = engines.iter().filter(|service| gone(service)).count();
    2 * lost > engines.len()
}
