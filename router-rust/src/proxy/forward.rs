//! One request on its way to an engine: choose, connect, send, and follow the answer to its end.
//!
//! An `Exchange` lives from the moment the request is whole until its one outcome. It runs in the
//! task of its client's connection and watches both sides at once.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::proxy::bodies::{BodyReader, response_body};
use crate::proxy::gateway::{Asked, Gateway, Settings};
use crate::proxy::heads::{
    Broken, MAX_RESPONSE_HEAD, RequestHead, ResponseHead, head_end, line_ends_are_clean,
    parse_response_head,
};
use crate::proxy::pool::UpstreamConnection;
use crate::proxy::relay::{After, PING, Relay};
use crate::proxy::request::read_request;
use crate::proxy::server::{ClientConnection, Left};
use crate::router::load::{InFlight, Outcome};
use crate::router::selection::{Choice, Request, choose, explain};
use crate::router::table::Service;
use crate::utils::access_log::Record;
use crate::utils::errors::{Code, RouterError};
use crate::utils::headers::push_decimal;
use crate::utils::json;

const MAX_ATTEMPTS: u32 = 2;
/// Seconds; spreads the retries of a burst.
const RETRY_JITTER: f64 = 0.025;
/// Timers may come a little early.
const TIMER_SLACK: Duration = Duration::from_millis(1);

const fn is_engine_fault(status: u16) -> bool {
    matches!(status, 502..=504)
}

/// Why an exchange has no complete answer.
enum Fault {
    /// The client left; nobody is to blame.
    Gone,
    /// Refused before it was sent, or ended from inside; nobody is to blame.
    Own(RouterError),
    /// The engine is to blame.
    Engine(RouterError),
    /// The same, and another engine may be tried.
    Retry(RouterError),
}

impl From<Left> for Fault {
    fn from(left: Left) -> Self {
        match left {
            Left::Gone => Self::Gone,
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
}

/// An engine's answer, from its head on.
struct Answer {
    head: Rc<ResponseHead>,
    length: Option<u64>,
    reader: BodyReader,
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
    choice: Option<Choice>,
    answer: Option<Answer>,
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
            choice: None,
            answer: None,
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
                self.log(None);
                Some(self.relay.after())
            }
            Err(Fault::Gone) => {
                self.log(Some("client_closed"));
                None
            }
            Err(Fault::Own(error) | Fault::Engine(error) | Fault::Retry(error)) => {
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
            let in_flight = self.choose(last_error)?;
            match self.attempt(in_flight).await {
                Err(Fault::Retry(error)) => last_error = Some(self.before_retry(error).await?),
                ended => return ended,
            }
        }
    }

    // Towards the engine

    /// Choose an engine and count the request in; `last_error` is told when none is left.
    fn choose(&mut self, last_error: Option<RouterError>) -> Result<InFlight, Fault> {
        let shared = &self.gateway.shared;
        let now = Instant::now();
        let mut book = shared.book.lock();
        if self.attempts == 0 {
            book.retries.request();
        }
        let rules = self.settings.rules;
        let chosen = choose(&shared.store.peek(), &self.request, &mut book, now, rules);
        let choice = match (chosen, last_error) {
            (Ok(Some(choice)), _) => choice,
            (_, Some(error)) | (Err(error), None) => return Err(Fault::Own(error)),
            (Ok(None), None) => {
                let error = RouterError::new(Code::Internal, "internal error");
                return Err(Fault::Own(error));
            }
        };
        let in_flight = shared.book.begin(&mut book, &choice.service, now);
        self.choice = Some(choice);
        self.attempts += 1;
        Ok(in_flight)
    }

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
        match ended {
            Ok(clean) => {
                let head = self.answer.take().map(|answer| answer.head);
                let fault = is_engine_fault(self.relay.status);
                in_flight.release(
                    if fault {
                        Outcome::EngineFault
                    } else {
                        Outcome::Ok
                    },
                    now,
                );
                if clean && head.is_some_and(|head| head.keep_alive()) {
                    self.gateway.pool.put(connection, &service, now);
                }
                Ok(())
            }
            Err(fault) => {
                in_flight.release(outcome_of(&fault), now);
                Err(fault)
            }
        }
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
        connected.map_err(|error| Fault::Retry(connect_failed(service, &error)))
    }

    /// Send the request and relay the answer; true = the connection can be used again.
    async fn converse(
        &mut self,
        connection: &mut UpstreamConnection,
        in_flight: &mut InFlight,
    ) -> Result<bool, Fault> {
        self.phase = "first_byte";
        let mut sending = self.upstream_head();
        sending.push(&connection.stream, &self.body);
        self.forget_body(&sending);
        self.last_activity = Instant::now();
        self.set_deadline();
        loop {
            let event = poll_fn(|context| self.poll_event(context, connection, &mut sending)).await;
            match event {
                Event::Left(left) => return Err(left.into()),
                Event::Deadline => self.on_deadline()?,
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
    fn forget_body(&mut self, sending: &Sending) {
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
        if !sending.is_over()
            && sending
                .poll(context, &mut connection.stream, &self.body)
                .is_ready()
        {
            self.last_activity = Instant::now();
            self.forget_body(sending);
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

    // From the engine

    /// Bytes from the engine: the head first, then the body. Some = the answer is complete.
    fn on_data(
        &mut self,
        data: &mut [u8],
        connection: &mut UpstreamConnection,
        in_flight: &mut InFlight,
    ) -> Result<Option<bool>, Fault> {
        self.last_activity = Instant::now();
        if self.answer.is_some() {
            return self.on_body(data);
        }
        let mut whole;
        let data = if self.partial.is_empty() {
            data
        } else {
            whole = std::mem::take(&mut self.partial);
            whole.extend_from_slice(data);
            &mut whole
        };
        match read_head(data, connection) {
            Err(Broken(text)) => Err(self.engine_broke(Code::UpstreamInvalid, &text)),
            Ok((start, None)) => {
                self.partial = data[start..].to_vec();
                Ok(None)
            }
            Ok((start, Some((head, length)))) => {
                self.begin_answer(head, length, in_flight)?;
                let ended = self.on_body(&mut data[start..])?;
                self.set_deadline();
                Ok(ended)
            }
        }
    }

    fn begin_answer(
        &mut self,
        head: Rc<ResponseHead>,
        length: Option<u64>,
        in_flight: &mut InFlight,
    ) -> Result<(), Fault> {
        let now = self.last_activity;
        let status = head.status;
        let fault = is_engine_fault(status);
        self.first_byte_at = Some(now);
        in_flight.first_byte(if fault { Outcome::Neutral } else { Outcome::Ok }, now);
        self.phase = "stream";
        let expected = head.event_stream && status == 200;
        self.answer = Some(Answer {
            reader: response_body(&head, length, &self.head.method),
            head,
            length,
        });
        if self.relay.started && !expected {
            let text = format!("it answered {status} after the stream to the client had begun");
            return Err(self.engine_broke(Code::UpstreamInvalid, &text));
        }
        Ok(())
    }

    /// Relay what came of the body, behind the head when that has not gone out yet.
    fn on_body(&mut self, data: &mut [u8]) -> Result<Option<bool>, Fault> {
        let own = if self.relay.started {
            Vec::new()
        } else {
            self.own_fields()
        };
        let Some(answer) = &mut self.answer else {
            return Ok(None);
        };
        let fed = answer.reader.feed(data);
        let done = answer.reader.is_done() && fed.fault.is_none();
        self.out.clear();
        if !self.relay.started {
            self.relay
                .start(&answer.head, answer.length, &own, &mut self.out);
        }
        let framed = self.relay.feed(&data[fed.payload], &mut self.out);
        let complete = done && self.is_complete();
        let end = if complete { self.relay.end() } else { b"" };
        self.client
            .send(&[&self.out, framed.payload, framed.after, end]);
        if let Some(fault) = fed.fault {
            return Err(self.engine_broke(Code::UpstreamInvalid, fault));
        }
        if done && !complete {
            return Err(self.cut_off());
        }
        Ok(done.then_some(fed.rest == data.len()))
    }

    /// Whether a body that has ended is all there, as far as can be seen.
    fn is_complete(&self) -> bool {
        let ends_by_closing = |choice: &Choice| {
            let end = choice.service.metadata.get("stream_end");
            end.and_then(Value::as_str) == Some("close")
        };
        self.relay.looks_complete() || self.choice.as_ref().is_some_and(ends_by_closing)
    }

    fn cut_off(&self) -> Fault {
        self.engine_broke(Code::UpstreamReset, "the stream ended without [DONE]")
    }

    /// The engine's connection ended before the answer did (or the answer ends with it).
    fn on_lost(&mut self, orderly: bool) -> Result<bool, Fault> {
        let Some(answer) = &self.answer else {
            return Err(self.lost_before_head());
        };
        if orderly && matches!(answer.reader, BodyReader::UntilClose) {
            if !self.is_complete() {
                return Err(self.cut_off());
            }
            self.client.send(&[self.relay.end()]);
            return Ok(false);
        }
        let text = "it closed the connection before the end of its answer";
        Err(self.engine_broke(Code::UpstreamReset, text))
    }

    fn lost_before_head(&self) -> Fault {
        let text = "it closed the connection before it answered";
        let error = self.bad_gateway(Code::UpstreamReset, text);
        let untouched = !self.relay.started && self.partial.is_empty();
        if untouched && self.settings.retry_on_reset {
            Fault::Retry(error)
        } else {
            Fault::Engine(error)
        }
    }

    // Deadlines

    fn set_deadline(&mut self) {
        let mut limit = self.silence_limit();
        if let Some(interval) = self.ping_interval() {
            limit = limit.min(interval);
        }
        self.client.deadline.set(self.last_activity + limit);
    }

    fn silence_limit(&self) -> Duration {
        if self.answer.is_some() {
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

    fn on_deadline(&mut self) -> Result<(), Fault> {
        let now = Instant::now();
        let silence = now.saturating_duration_since(self.last_activity) + TIMER_SLACK;
        let limit = self.silence_limit();
        if silence >= limit {
            return Err(self.too_silent());
        }
        let mut wait = limit - silence;
        if let Some(interval) = self.ping_interval() {
            wait = wait.min(interval.checked_sub(silence).unwrap_or_else(|| {
                self.ping();
                interval
            }));
        }
        self.client.deadline.set(now + wait);
        Ok(())
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

    // Ends

    fn engine_broke(&self, code: Code, detail: &str) -> Fault {
        Fault::Engine(self.bad_gateway(code, detail))
    }

    fn bad_gateway(&self, code: Code, detail: &str) -> RouterError {
        let name = self
            .choice
            .as_ref()
            .map_or("-", |choice| &choice.service.name);
        let text = match code {
            Code::FirstByteTimeout | Code::IdleTimeout => "Service timeout",
            _ => "Bad gateway - error communicating with service",
        };
        RouterError::new(code, format!("{text}: engine '{name}': {detail}"))
    }

    fn fail(&mut self, mut error: RouterError) -> After {
        if self.choice.as_ref().is_some_and(|choice| choice.panic) {
            error = explain(error, &self.gateway.shared.store.peek(), &self.request);
        }
        if !self.relay.started {
            self.relay.status = error.http_status();
        }
        self.log(Some(error.code.text()));
        if !self.relay.started {
            let own = self.own_fields();
            return self.client.answer_error(&error, &self.head, &own);
        }
        self.out.clear();
        let after = self.relay.break_off(&error, &self.request_id, &mut self.out);
        self.client.send(&[&self.out]);
        after
    }

    fn log(&self, code: Option<&'static str>) {
        let record = Record {
            request_id: &self.request_id,
            client: &self.client.peer,
            method: &self.head.method,
            path: self.head.path(),
            request: &self.request,
            status: self.relay.status,
            choice: self.choice.as_ref(),
            attempts: self.attempts,
            started: self.started,
            first_byte_at: self.first_byte_at,
            bytes_sent: self.relay.bytes_sent,
            phase: self.phase,
            code,
        };
        self.gateway.access_log.exchange(&record, Instant::now());
    }

    /// The router's own fields of the answer, as they stand on the wire.
    fn own_fields(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(192);
        out.extend_from_slice(b"x-request-id: ");
        out.extend_from_slice(self.request_id.as_bytes());
        if let Some(choice) = &self.choice {
            out.extend_from_slice(b"\r\nx-infinilm-service: ");
            out.extend_from_slice(choice.service.name.as_bytes());
            out.extend_from_slice(b"\r\nx-infinilm-attempts: ");
            push_decimal(&mut out, u64::from(self.attempts));
            out.extend_from_slice(b"\r\nx-infinilm-policy: ");
            out.extend_from_slice(choice.policy.as_bytes());
            out.extend_from_slice(choice.why.as_bytes());
            out.extend_from_slice(choice.suffix().as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out
    }
}

const fn outcome_of(fault: &Fault) -> Outcome {
    match fault {
        Fault::Gone | Fault::Own(_) => Outcome::Neutral,
        Fault::Engine(_) | Fault::Retry(_) => Outcome::EngineFault,
    }
}

fn connect_failed(service: &Service, error: &io::Error) -> RouterError {
    let reason = match error.kind() {
        io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => format!("connection failed ({error})"),
    };
    let text = format!("Service unavailable - {reason}: engine '{}'", service.name);
    RouterError::new(Code::ConnectFailed, text)
}

type Headed = Option<(Rc<ResponseHead>, Option<u64>)>;

/// Take the head, past interim ones; returns where it ends, or where its incomplete rest begins.
fn read_head(data: &[u8], connection: &mut UpstreamConnection) -> Result<(usize, Headed), Broken> {
    let mut start = 0;
    loop {
        let rest = &data[start..];
        let Some(end) = head_end(rest, 0, MAX_RESPONSE_HEAD) else {
            check_partial_head(rest)?;
            return Ok((start, None));
        };
        let (head, length) = connection.heads.read(&rest[..end], parse_response_head)?;
        start += end;
        if head.status >= 200 {
            return Ok((start, Some((head, length))));
        }
    }
}

fn check_partial_head(data: &[u8]) -> Result<(), Broken> {
    let expected = b"HTTP/1.";
    let known = data.len().min(expected.len());
    let fault = if data.len() >= MAX_RESPONSE_HEAD {
        format!("head larger than {MAX_RESPONSE_HEAD} bytes")
    } else if !line_ends_are_clean(data) {
        "malformed head: lines must end with CRLF".to_owned()
    } else if data[..known] != expected[..known] {
        "malformed status line".to_owned()
    } else {
        return Ok(());
    };
    Err(Broken(fault))
}

/// A request on its way into the engine's socket.
struct Sending {
    head: Vec<u8>,
    /// Bytes of head and body.
    size: usize,
    sent: usize,
    /// The engine takes no more; it may have answered all the same.
    failed: bool,
}

impl Sending {
    fn is_done(&self) -> bool {
        self.sent == self.size
    }

    fn is_over(&self) -> bool {
        self.failed || self.is_done()
    }

    /// What is left of head and body.
    fn rest<'a>(&'a self, body: &'a [u8]) -> [IoSlice<'a>; 2] {
        let head = self.head.get(self.sent..).unwrap_or(b"");
        let body = body.get(self.sent.saturating_sub(self.head.len())..);
        [IoSlice::new(head), IoSlice::new(body.unwrap_or(b""))]
    }

    /// Send at once what the socket takes.
    fn push(&mut self, stream: &TcpStream, body: &[u8]) {
        let rest = self.rest(body);
        let count = if body.is_empty() { 1 } else { 2 };
        // Errors come again when it is polled.
        self.sent += stream.try_write_vectored(&rest[..count]).unwrap_or(0);
    }

    /// Ready when it is over.
    fn poll(&mut self, context: &mut Context<'_>, stream: &mut TcpStream, body: &[u8]) -> Poll<()> {
        while !self.is_over() {
            let rest = self.rest(body);
            match ready!(Pin::new(&mut *stream).poll_write_vectored(context, &rest)) {
                Ok(count) => self.sent += count,
                Err(_) => self.failed = true,
            }
        }
        Poll::Ready(())
    }
}
