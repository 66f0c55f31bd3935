//! How many retries there may be.

use std::time::Duration;

use tokio::time::Instant;

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
