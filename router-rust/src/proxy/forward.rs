//! One request on its way to an engine: choose, connect, send, and follow the answer to its end.
//!
//! An `Exchange` lives from the moment the request is whole until its one outcome. It runs in the
//! task of its client's connection and watches both sides at once.

mod answer;
mod deadlines;
mod ends;
mod sending;
mod waiting;

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, sleep};

use self::ends::connect_failed;
use self::sending::Sending;
use crate::proxy::bodies::BodyReader;
use crate::proxy::gateway::{Asked, Gateway, Settings};
use crate::proxy::heads::{RequestHead, ResponseHead};
use crate::proxy::pool::UpstreamConnection;
use crate::proxy::relay::{After, Relay};
use crate::proxy::request::read_request;
use crate::proxy::server::{ClientConnection, Left};
use crate::router::engine::Outcome;
use crate::router::load::InFlight;
use crate::router::selection::{Choice, Request};
use crate::router::table::Service;
use crate::utils::errors::{CLIENT_CLOSED, CLIENT_TIMEOUT, RouterError, client_end};
use crate::utils::metrics::Failure;
use crate::utils::resources::is_shortage;
use crate::utils::time::Deadline;

const MAX_ATTEMPTS: u32 = 2;
/// Seconds; spreads the retries of a burst.
const RETRY_JITTER: f64 = 0.025;

/// Why an exchange has no complete answer.
enum Fault {
    /// The client left, or takes nothing (its code); nobody is to blame.
    Gone(&'static str),
    /// Refused before it was sent, or ended from inside; nobody is to blame.
    Own(RouterError),
    /// The engine's part, which says so much of how it does.
    Engine(RouterError, Outcome),
    /// The same, and another engine may be tried.
    Retry(RouterError, Outcome),
}

impl From<Left> for Fault {
    fn from(left: Left) -> Self {
        match left {
            Left::Gone => Self::Gone(CLIENT_CLOSED),
            Left::Stuck => Self::Gone(CLIENT_TIMEOUT),
            Left::Aborted(error) => Self::Own(error),
        }
    }
}

/// What happens next while a request is at an engine.
enum Event {
    Left(Left),
    /// So many bytes from the engine lie in the scratch buffer.
    Read(usize),
    /// The engine's connection ended; true = in an orderly way.
    Lost(bool),
    Deadline,
    /// The stream has lasted for as long as it may.
    Outlived,
}

/// An engine's answer, from its head on.
struct Answer {
    head: Rc<ResponseHead>,
    length: Option<u64>,
    reader: BodyReader,
}

/// An attempt that failed where the request may still succeed on another engine.
pub struct FailedAttempt {
    number: u32,
    failure: Failure,
    reason: String,
}

/// A proxied request and its answer.
pub struct Exchange<'c> {
    client: &'c mut ClientConnection,
    gateway: Rc<Gateway>,
    settings: Arc<Settings>,
    head: Rc<RequestHead>,
    body: Vec<u8>,
    request_id: String,
    request: Request,
    relay: Relay,
    started: Instant,
    last_activity: Instant,
    first_byte_at: Option<Instant>,
    phase: &'static str,
    attempts: u32,
    /// The attempt before this one, until it is accounted for.
    failed: Option<FailedAttempt>,
    choice: Option<Choice>,
    answer: Option<Answer>,
    /// What the answer's head says of the engine.
    outcome: Outcome,
    /// It waits for a place at an engine.
    waiting: bool,
    /// It is a stream of which only the head is here.
    content_awaited: bool,
    /// When a stream has lasted for as long as it may.
    stream_end: Deadline,
    /// An incomplete head of the engine.
    partial: Vec<u8>,
    /// The client took no bytes; the engine is not to blame for silence.
    paused: bool,
    /// What is being written; kept for its memory.
    out: Vec<u8>,
}

impl<'c> Exchange<'c> {
    /// The exchange for a whole request.
    pub fn new(client: &'c mut ClientConnection, head: Rc<RequestHead>, body: Vec<u8>) -> Self {
        let gateway = Rc::clone(&client.gateway);
        let now = Instant::now();
        let known = head.request_id.clone();
        Self {
            settings: gateway.settings(),
            request_id: known.unwrap_or_else(|| gateway.new_request_id()),
            request: Request::default(),
            relay: Relay::new(Rc::clone(&head), client.may_keep_alive(&head)),
            started: now,
            last_activity: now,
            first_byte_at: None,
            phase: "choose",
            attempts: 0,
            failed: None,
            choice: None,
            answer: None,
            outcome: Outcome::Ok,
            waiting: false,
            content_awaited: false,
            stream_end: Deadline::default(),
            partial: Vec::new(),
            paused: false,
            out: Vec::new(),
            client,
            gateway,
            head,
            body,
        }
    }

    /// Send the request on its way and its answer back; None = the client left.
    pub async fn run(mut self) -> Option<After> {
        let ended = self.serve().await;
        self.client.deadline.clear();
        match ended {
            Ok(()) => {
                self.served();
                Some(self.relay.after())
            }
            Err(Fault::Gone(code)) => {
                self.end(Some((code, client_end(code))));
                None
            }
            Err(Fault::Own(error) | Fault::Engine(error, _) | Fault::Retry(error, _)) => {
                Some(self.fail(error))
            }
        }
    }

    async fn serve(&mut self) -> Result<(), Fault> {
        self.gateway
            .check_forwardable(&self.head)
            .map_err(Fault::Own)?;
        let asked = read_request(&self.head, &self.body, &self.client.peer);
        self.request = asked.map_err(Fault::Own)?;
        let mut last_error = None;
        loop {
            let in_flight = self.place(last_error).await?;
            match self.attempt(in_flight).await {
                Err(Fault::Retry(error, _)) => last_error = Some(self.before_retry(error).await?),
                ended => return ended,
            }
        }
    }

    // Towards the engine

    /// May one more engine be tried? Returns the error to tell when none is left.
    async fn before_retry(&mut self, error: RouterError) -> Result<RouterError, Fault> {
        if let Some(choice) = &self.choice {
            self.request.tried.push(choice.service.name.clone());
        }
        let allowed = self.attempts < MAX_ATTEMPTS
            && self.gateway.shared.book.lock().retries.take(Instant::now());
        if !allowed {
            return Err(Fault::Own(error));
        }
        self.failed = Some(self.failed_attempt(&error));
        let pause = Duration::from_secs_f64(fastrand::f64() * RETRY_JITTER);
        self.client.unless_left(sleep(pause)).await?;
        Ok(error)
    }

    /// One engine: send, relay, and account for how it went.
    async fn attempt(&mut self, mut in_flight: InFlight) -> Result<(), Fault> {
        let Some(service) = self.choice.as_ref().map(|c| Arc::clone(&c.service)) else {
            return Ok(());
        };
        let mut connection = match self.connection(&service).await {
            Ok(connection) => connection,
            Err(fault) => {
                in_flight.release(outcome_of(&fault), Instant::now());
                return Err(fault);
            }
        };
        let ended = self.converse(&mut connection, &mut in_flight).await;
        let now = Instant::now();
        let head = self.answer.take().map(|answer| answer.head);
        let keep = matches!(ended, Ok(true)) && head.is_some_and(|head| head.keep_alive());
        // The connection first: who gets the place must not be at the engine before this one left.
        if keep {
            self.gateway.pool.put(connection, &service, now);
        } else {
            drop(connection);
        }
        let outcome = ended.as_ref().map_or_else(outcome_of, |_| self.outcome);
        in_flight.release(outcome, now);
        ended.map(|_| ())
    }

    async fn connection(&mut self, service: &Service) -> Result<UpstreamConnection, Fault> {
        if let Some(connection) = self.gateway.pool.checkout(service, self.last_activity) {
            return Ok(connection);
        }
        self.phase = "connect";
        let gateway = Rc::clone(&self.gateway);
        let connected = self
            .client
            .unless_left(gateway.pool.connect(service))
            .await?;
        connected.map_err(|error| {
            let ours = is_shortage(&error);
            let outcome = if ours {
                Outcome::Neutral
            } else {
                Outcome::EngineFault
            };
            Fault::Retry(connect_failed(service, &error), outcome)
        })
    }

    /// Send the request and relay the answer; true = the connection can be used again.
    async fn converse(
        &mut self,
        connection: &mut UpstreamConnection,
        in_flight: &mut InFlight,
    ) -> Result<bool, Fault> {
        let mut sending = self.upstream_head();
        sending.push(&connection.stream, &self.body);
        self.sent_so_far(&sending);
        self.last_activity = Instant::now();
        self.set_deadline();
        loop {
            let event = poll_fn(|context| self.poll_event(context, connection, &mut sending)).await;
            match event {
                Event::Left(left) => return Err(left.into()),
                Event::Deadline => self.on_deadline()?,
                Event::Outlived => return Err(self.outlived()),
                Event::Lost(orderly) => return self.on_lost(orderly),
                Event::Read(count) => {
                    let gateway = Rc::clone(&self.gateway);
                    let data = &mut gateway.scratch.borrow_mut()[..count];
                    if let Some(clean) = self.on_data(data, connection, in_flight)? {
                        return Ok(clean && sending.is_done());
                    }
                }
            }
        }
    }

    fn upstream_head(&self) -> Sending {
        let mut head = Vec::with_capacity(1024);
        if let Some(choice) = &self.choice {
            let asked = Asked {
                head: &self.head,
                request_id: &self.request_id,
                peer: &self.client.peer,
                trusted: self.client.trusted,
                body_length: self.body.len(),
            };
            self.gateway
                .upstream_head(&asked, &choice.service, &mut head);
        }
        Sending {
            size: head.len() + self.body.len(),
            head,
            sent: 0,
            failed: false,
        }
    }

    /// A body that was sent is not needed any more, unless it may be sent a second time.
    fn sent_so_far(&mut self, sending: &Sending) {
        if self.answer.is_none() {
            self.phase = if sending.is_done() {
                "first_byte"
            } else {
                "send"
            };
        }
        if sending.is_done() && !self.settings.retry_on_reset {
            self.body = Vec::new();
        }
    }

    fn poll_event(
        &mut self,
        context: &mut Context<'_>,
        connection: &mut UpstreamConnection,
        sending: &mut Sending,
    ) -> Poll<Event> {
        if let Poll::Ready(left) = self.client.poll_left(context) {
            return Poll::Ready(Event::Left(left));
        }
        // Before all that may go on for ever: a client that reads slowly, an engine that never rests.
        if self.stream_end.poll(context).is_ready() {
            return Poll::Ready(Event::Outlived);
        }
        if !sending.is_over()
            && sending
                .poll(context, &mut connection.stream, &self.body)
                .is_ready()
        {
            self.last_activity = Instant::now();
            self.sent_so_far(sending);
        }
        if self.client.has_unsent() {
            self.paused = true;
            if let Err(left) = ready!(self.client.poll_flush(context)) {
                return Poll::Ready(Event::Left(left));
            }
        }
        if std::mem::take(&mut self.paused) {
            self.last_activity = Instant::now();
            self.set_deadline();
        }
        if let Poll::Ready(event) = self.poll_upstream(context, connection) {
            return Poll::Ready(event);
        }
        self.client.deadline.poll(context).map(|()| Event::Deadline)
    }

    fn poll_upstream(
        &self,
        context: &mut Context<'_>,
        connection: &mut UpstreamConnection,
    ) -> Poll<Event> {
        let mut scratch = self.gateway.scratch.borrow_mut();
        let mut read = ReadBuf::new(&mut scratch);
        let result = ready!(Pin::new(&mut connection.stream).poll_read(context, &mut read));
        Poll::Ready(match (result, read.filled().len()) {
            (Err(_), _) => Event::Lost(false),
            (Ok(()), 0) => Event::Lost(true),
            (Ok(()), count) => Event::Read(count),
        })
    }
}

const fn outcome_of(fault: &Fault) -> Outcome {
    match fault {
        Fault::Gone(_) | Fault::Own(_) => Outcome::Neutral,
        Fault::Engine(_, outcome) | Fault::Retry(_, outcome) => *outcome,
    }
}
