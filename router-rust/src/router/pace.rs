//! How fast waiting requests get places, as measured.

use std::time::Duration;

use tokio::time::Instant;

use crate::router::engine::seconds_since;

const WINDOW: Duration = Duration::from_secs(10);

/// How many places a second a model's waiting requests get, over the last 10 to 20 s.
#[derive(Debug)]
pub struct Pace {
    started: Instant,
    /// This window's, last window's.
    counts: [u32; 2],
}

impl Pace {
    /// A pace that is measured from now on.
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            counts: [0, 0],
        }
    }

    /// A place was handed over.
    pub fn count(&mut self, now: Instant) {
        self.roll(now);
        self.counts[0] += 1;
    }

    /// Places a second; 0 = none was seen.
    pub fn rate(&mut self, now: Instant) -> f64 {
        self.roll(now);
        let [this, last] = self.counts;
        let mut span = seconds_since(self.started, now);
        if last > 0 {
            span += WINDOW.as_secs_f64();
        }
        f64::from(this + last) / span.max(0.001)
    }

    fn roll(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.started);
        if age >= 2 * WINDOW {
            *self = Self::new(now);
        } else if age >= WINDOW {
            self.started += WINDOW;
            self.counts = [0, self.counts[0]];
        }
    }
}
