//! The guard of one request at one engine.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Book, LoadBook};
use crate::router::engine::{
    AVERAGE_SHARE, FAILURE_PENALTY, LastHeard, Outcome, seconds_since, verdict,
};
use crate::router::table::Service;

/// What is known when a request is counted in: is it the probation request, and where to note bytes.
pub(super) struct Begun {
    pub(super) probation: bool,
    pub(super) heard: Arc<LastHeard>,
}

/// One request on one engine. `release` counts it out; dropping it does too, blaming nobody.
pub struct InFlight {
    book: Arc<LoadBook>,
    service: Arc<Service>,
    started: Instant,
    /// Bytes of its prompt; None: its first byte is here.
    prefill: Option<u64>,
    probation: bool,
    released: bool,
    heard: Arc<LastHeard>,
}

impl InFlight {
    pub(super) fn new(
        book: Arc<LoadBook>,
        service: Arc<Service>,
        prompt_bytes: u64,
        begun: Begun,
        now: Instant,
    ) -> Self {
        Self {
            book,
            service,
            started: now,
            prefill: Some(prompt_bytes),
            probation: begun.probation,
            released: false,
            heard: begun.heard,
        }
    }

    /// A byte of the answer has come.
    pub fn heard(&self, now: Instant) {
        self.heard.note(now);
    }

    /// The answer's head is here: what it says of the engine.
    ///
    /// A long stream must not keep an engine on probation, so a good head counts at once. The head
    /// of a `stream` says nothing of its prompt, which may still be read: see `first_byte`.
    pub fn answered(
        &mut self,
        status: u16,
        retry_after: Option<f64>,
        stream: bool,
        now: Instant,
    ) -> Outcome {
        let outcome = verdict(status, retry_after);
        let elapsed = seconds_since(self.started, now);
        let shared = Arc::clone(&self.book);
        let mut book = shared.lock();
        if self.probation && outcome == Outcome::Ok {
            book.judge(&self.service, outcome, now, true);
            self.end_probation(&mut book);
        }
        let load = book.of(&self.service);
        if load.response_time == 0.0 {
            load.response_time = elapsed;
        } else {
            load.response_time += AVERAGE_SHARE * (elapsed - load.response_time);
        }
        if status >= 500 && outcome != Outcome::Busy {
            load.observe(elapsed.max(FAILURE_PENALTY), now);
        } else if status < 400 && !stream {
            load.observe(elapsed, now);
        }
        if outcome == Outcome::Busy {
            book.spare(&self.service, retry_after, now);
        }
        if status >= 400 || !stream {
            self.end_prefill(&mut book);
        }
        outcome
    }

    /// The first byte of a stream's content is here: its prompt has been read.
    pub fn first_byte(&mut self, now: Instant) {
        if self.prefill.is_none() {
            return;
        }
        let shared = Arc::clone(&self.book);
        let mut book = shared.lock();
        let elapsed = seconds_since(self.started, now);
        book.of(&self.service).observe(elapsed, now);
        self.end_prefill(&mut book);
    }

    /// End of the request, seen from the engine.
    pub fn release(mut self, outcome: Outcome, now: Instant) {
        self.count_out(outcome, now);
    }

    fn count_out(&mut self, outcome: Outcome, now: Instant) {
        if self.released {
            return;
        }
        let shared = Arc::clone(&self.book);
        let mut book = shared.lock();
        self.count_out_of(&mut book, outcome, now);
        if book.waiting() > 0 {
            shared.freed(&mut book, now);
        }
    }

    /// The same for who has locked the book already, without handing the place on.
    pub(crate) fn count_out_of(&mut self, book: &mut Book, outcome: Outcome, now: Instant) {
        if std::mem::replace(&mut self.released, true) {
            return;
        }
        book.in_flight -= 1;
        let load = book.of(&self.service);
        let was_full = load.in_flight == load.limit;
        load.in_flight -= 1;
        if outcome == Outcome::EngineFault {
            let elapsed = seconds_since(self.started, now);
            load.observe(elapsed.max(FAILURE_PENALTY), now);
        }
        book.full -= usize::from(was_full);
        self.end_prefill(book);
        let probation = self.probation;
        self.end_probation(book);
        book.judge(&self.service, outcome, now, probation);
    }

    fn end_prefill(&mut self, book: &mut Book) {
        if let Some(bytes) = self.prefill.take() {
            let load = book.of(&self.service);
            load.prefill_requests -= 1;
            load.prefill_bytes -= bytes;
        }
    }

    fn end_probation(&mut self, book: &mut Book) {
        if std::mem::take(&mut self.probation) {
            book.of(&self.service).on_probation = false;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.count_out(Outcome::Neutral, Instant::now());
    }
}
