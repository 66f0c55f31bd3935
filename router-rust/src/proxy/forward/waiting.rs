//! A place at an engine, if need be after a wait.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use tokio::time::Instant;

use super::{Exchange, Fault};
use crate::proxy::server::Left;
use crate::router::load::InFlight;
use crate::router::queue::{Answer, Asked, Ticket};
use crate::utils::errors::{Code, RouterError};

/// What happens next while a request waits.
enum Event {
    Left(Left),
    Told(Answer),
    Deadline,
}

impl Exchange<'_> {
    /// Find a place at an engine, or wait for one; `last_error` is told when there is none.
    pub(super) async fn place(
        &mut self,
        last_error: Option<RouterError>,
    ) -> Result<InFlight, Fault> {
        let room = &self.gateway.shared.room;
        let answer = match room.ask(&self.request, self.body.len(), Instant::now()) {
            Asked::Now(answer) => answer,
            Asked::Later(ticket) => self.wait(ticket).await?,
        };
        let error = match answer {
            Answer::Place(place) => {
                self.tell_failed_attempt();
                self.choice = Some(place.choice);
                self.attempts += 1;
                return Ok(place.in_flight);
            }
            Answer::Refused(error) => error,
            Answer::Tried => RouterError::new(Code::Internal, "internal error"),
        };
        if error.code == Code::Overloaded {
            self.phase = "queue";
        }
        // What is told after an attempt that failed is why that one did.
        if let Some(failed) = self.failed.take() {
            self.phase = failed.failure.phase;
        }
        Err(Fault::Own(last_error.unwrap_or(error)))
    }

    async fn wait(&mut self, mut ticket: Ticket) -> Result<Answer, Fault> {
        self.phase = "queue";
        self.waiting = true;
        self.last_activity = Instant::now();
        self.set_deadline();
        loop {
            let event = poll_fn(|context| self.poll_wait(context, &mut ticket)).await;
            let answer = match event {
                Event::Left(left) => return Err(left.into()),
                Event::Told(answer) => answer,
                Event::Deadline => {
                    let now = Instant::now();
                    if self.keep_waiting(now) {
                        continue;
                    }
                    self.gateway.shared.room.late(ticket, now)
                }
            };
            self.waiting = false;
            self.client.deadline.clear();
            return Ok(answer);
        }
    }

    fn poll_wait(&mut self, context: &mut Context<'_>, ticket: &mut Ticket) -> Poll<Event> {
        if let Poll::Ready(left) = self.client.poll_left(context) {
            return Poll::Ready(Event::Left(left));
        }
        if let Poll::Ready(answer) = ticket.poll(context) {
            return Poll::Ready(Event::Told(answer));
        }
        if self.client.has_unsent() {
            if let Err(left) = ready!(self.client.poll_flush(context)) {
                return Poll::Ready(Event::Left(left));
            }
            self.set_deadline();
        }
        self.client.deadline.poll(context).map(|()| Event::Deadline)
    }
}
