//! Keeps the probes of many engines apart: in step, they would be a burst every few seconds.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::utils::time::seconds;

/// Of the interval, so that many routers do not probe one engine in step.
pub const JITTER: f64 = 0.1;
/// Moments drawn for each probe; the one farthest from all others is taken.
pub const TRIES: usize = 4;

/// The moments of probes to come. Whoever takes one gives it back when it is over.
#[derive(Debug)]
pub struct Spread {
    /// A number from 0 to 1.
    draw: fn() -> f64,
    moments: BTreeSet<Instant>,
}

impl Default for Spread {
    fn default() -> Self {
        Self::with_draw(fastrand::f64)
    }
}

impl Spread {
    /// The same with a source of numbers from 0 to 1.
    pub fn with_draw(draw: fn() -> f64) -> Self {
        Self {
            draw,
            moments: BTreeSet::new(),
        }
    }

    /// A moment about `interval` seconds from `now`.
    pub fn next(&mut self, now: Instant, interval: f64) -> Instant {
        let drawn = (0..TRIES).map(|_| {
            let factor = 1.0 - JITTER + 2.0 * JITTER * (self.draw)();
            now + seconds(interval * factor)
        });
        let best = drawn.max_by_key(|moment| self.distance(*moment));
        let mut moment = best.unwrap_or(now);
        while !self.moments.insert(moment) {
            moment += Duration::from_nanos(1); // each has its own, to be given back
        }
        moment
    }

    /// Its probe has begun, or will not.
    pub fn done(&mut self, moment: Instant) {
        self.moments.remove(&moment);
    }

    fn distance(&self, moment: Instant) -> Duration {
        let before = self.moments.range(..=moment).next_back();
        let after = self.moments.range(moment..).next();
        let before = before.map(|other| moment - *other);
        let after = after.map(|other| *other - moment);
        let both = before.into_iter().chain(after);
        both.min().unwrap_or(Duration::MAX)
    }
}
