//! How long an engine may be silent, and what fills the silence.

use std::time::Duration;

use tokio::time::Instant;

use super::{Exchange, Fault};
use crate::proxy::relay::PING;
use crate::utils::errors::{Code, RouterError};
use crate::utils::json;

/// Timers may come a little early.
const TIMER_SLACK: Duration = Duration::from_millis(1);

impl Exchange<'_> {
    pub(super) fn set_deadline(&mut self) {
        let mut limit = self.silence_limit();
        if let Some(interval) = self.ping_interval() {
            limit = limit.min(interval);
        }
        self.client.deadline.set(self.last_activity + limit);
    }

    fn silence_limit(&self) -> Duration {
        if self.waiting {
            self.settings.queue_timeout
        } else if self.answer.is_some() {
            self.settings.idle_timeout
        } else if self.request.stream {
            self.settings.first_byte_timeout
        } else {
            self.settings.response_timeout
        }
    }

    /// The silence after which a comment is sent; None = never.
    fn ping_interval(&self) -> Option<Duration> {
        let is_stream = self
            .answer
            .as_ref()
            .is_none_or(|answer| answer.head.event_stream);
        let interval = self.settings.sse_ping_interval;
        interval.filter(|_| self.request.stream && is_stream)
    }

    pub(super) fn on_deadline(&mut self) -> Result<(), Fault> {
        if self.keep_waiting(Instant::now()) {
            Ok(())
        } else {
            Err(self.too_silent())
        }
    }

    /// Wait on, with a comment if it is time for one; false when the silence is too long.
    pub(super) fn keep_waiting(&mut self, now: Instant) -> bool {
        let silence = now.saturating_duration_since(self.last_activity) + TIMER_SLACK;
        let left = self.silence_limit().checked_sub(silence);
        let Some(mut wait) = left.filter(|left| !left.is_zero()) else {
            return false;
        };
        if let Some(interval) = self.ping_interval() {
            wait = wait.min(interval.checked_sub(silence).unwrap_or_else(|| {
                self.ping();
                interval
            }));
        }
        self.client.deadline.set(now + wait);
        true
    }

    pub(super) fn outlived(&self) -> Fault {
        let limit = json::general(self.settings.config.stream_timeout);
        let text = format!("Service timeout: the stream has lasted for {limit} s");
        Fault::Own(RouterError::new(Code::IdleTimeout, text))
    }

    fn too_silent(&self) -> Fault {
        let config = &self.settings.config;
        if self.answer.is_some() {
            let text = format!("no byte for {} s", json::general(config.idle_timeout));
            return self.engine_broke(Code::IdleTimeout, &text);
        }
        let stream = self.request.stream;
        let limit = if stream {
            config.first_byte_timeout
        } else {
            config.response_timeout
        };
        let text = format!("no answer within {} s", json::general(limit));
        self.engine_broke(Code::FirstByteTimeout, &text)
    }

    /// Send a comment: something is still coming.
    fn ping(&mut self) {
        self.out.clear();
        if !self.relay.started {
            let own = self.own_fields();
            self.relay.start_early(&own, &mut self.out);
        } else if !self.relay.between_events() {
            return;
        }
        let framed = self.relay.feed(PING, &mut self.out);
        self.client.send(&[&self.out, framed.payload, framed.after]);
    }
}
