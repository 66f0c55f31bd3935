//! The front: client connections, their framing and limits, and where each request goes.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BufMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::handlers::context::LocalAnswer;
use crate::handlers::routes::{Handler, find_handler};
use crate::proxy::bodies::{BodyReader, request_body, too_large};
use crate::proxy::forward::Exchange;
use crate::proxy::gateway::{Gateway, Settings};
use crate::proxy::heads::{
    HeadMemo, MAX_REQUEST_HEAD, RequestHead, UNCLEAN, head_end, line_ends_are_clean_from,
    parse_request_head, refused,
};
use crate::proxy::relay::After;
use crate::utils::errors::{Code, RouterError};
use crate::utils::headers::push_decimal;
use crate::utils::time::Deadline;

/// Bytes of further requests kept while one is served.
const MAX_BACKLOG: usize = 64 * 1024;
/// Bytes/s.
const MIN_BODY_RATE: f64 = 1024.0;
/// Time in which a refused client's bytes are read and dropped.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes that a body's memory grows by at least.
const GROWTH: usize = 64 * 1024;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "",
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Head,
    Body,
    Answer,
    /// Nothing is read any more; what is left is sent.
    Closing,
    /// All is sent; the client is given time to take it.
    Lingering,
}

/// A connection as the rest of the thread sees it.
#[derive(Default)]
pub struct ClientHandle {
    state: Cell<State>,
    close_if_idle: Cell<bool>,
    abort: RefCell<Option<RouterError>>,
    waker: RefCell<Option<Waker>>,
}

impl ClientHandle {
    /// Whether a request or an answer is on its way.
    pub fn is_busy(&self) -> bool {
        !matches!(self.state.get(), State::Idle | State::Lingering)
    }

    /// For drain: close when no request is under way.
    pub fn close_if_idle(&self) {
        self.close_if_idle.set(true);
        self.wake();
    }

    /// End the request at an engine with this error.
    pub fn abort(&self, error: RouterError) {
        *self.abort.borrow_mut() = Some(error);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Be woken for orders. A task's waker stays the same, so this is a comparison.
    fn listen(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|known| known.will_wake(context.waker()))
        {
            *waker = Some(context.waker().clone());
        }
    }
}

/// Why no further request is read.
enum Stop {
    Refused(RouterError),
    /// Close in an orderly way.
    Close,
    /// The client has left.
    Gone,
}

impl From<RouterError> for Stop {
    fn from(error: RouterError) -> Self {
        Self::Refused(error)
    }
}

/// What came of waiting for the client.
enum Input {
    Bytes,
    End,
    Late,
    Stop,
}

/// Why an answer is not finished: the client left, or the router ends it.
pub enum Left {
    Gone,
    Aborted(RouterError),
}

/// One client connection: requests in, one at a time, answers out in order.
pub struct ClientConnection {
    pub gateway: Rc<Gateway>,
    pub peer: String,
    pub trusted: bool,
    pub deadline: Deadline,
    handle: Rc<ClientHandle>,
    number: u64,
    stream: TcpStream,
    heads: HeadMemo<RequestHead>,
    /// Bytes from the client that were not looked at yet.
    buffer: Vec<u8>,
    /// So many of them were searched for the head's end.
    scanned: usize,
    /// Bytes that the client's socket did not take yet.
    unsent: Vec<u8>,
    /// The client takes no bytes, and the deadline is for that.
    blocked: bool,
    broken: bool,
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        self.gateway.forget(self.number);
    }
}

/// Serve a client until its connection ends.
pub async fn serve_client(gateway: Rc<Gateway>, stream: TcpStream, peer: IpAddr) {
    let settings = gateway.settings();
    let mut networks = settings.config.trusted_proxies.iter();
    let trusted = networks.any(|network| network.contains(peer));
    let handle = Rc::new(ClientHandle::default());
    let (number, admitted) = gateway.admit(&handle);
    let client = ClientConnection {
        gateway,
        peer: peer.to_string(),
        trusted,
        deadline: Deadline::default(),
        handle,
        number,
        stream,
        heads: HeadMemo::default(),
        buffer: Vec::new(),
        scanned: 0,
        unsent: Vec::new(),
        blocked: false,
        broken: false,
    };
    client.run(admitted).await;
}

impl ClientConnection {
    async fn run(mut self, admitted: bool) {
        if !admitted {
            let error = RouterError::new(Code::Overloaded, "too many connections");
            self.refuse(&error.with_status(503).closing());
            return self.end_after_writes().await;
        }
        match self.serve_requests().await {
            Some(After::Reset) => self.reset(),
            Some(_) => self.end_after_writes().await,
            None => {}
        }
    }

    /// Serve request after request; None = the client has left.
    async fn serve_requests(&mut self) -> Option<After> {
        loop {
            let (head, body) = match self.next_request().await {
                Ok(request) => request,
                Err(Stop::Close) => return Some(After::Close),
                Err(Stop::Gone) => return None,
                Err(Stop::Refused(error)) => {
                    self.refuse(&error);
                    return Some(After::Close);
                }
            };
            let after = self.answer(head, body).await?;
            if after != After::KeepAlive {
                return Some(after);
            }
            if self.gateway.draining.get() {
                return Some(After::Close);
            }
            if self.has_unsent() && self.flush().await.is_err() {
                return Some(After::Reset);
            }
        }
    }

    async fn next_request(&mut self) -> Result<(Rc<RequestHead>, Vec<u8>), Stop> {
        let settings = self.gateway.settings();
        self.handle.state.set(State::Idle);
        self.deadline
            .set(Instant::now() + settings.keep_alive_timeout);
        let (head, length) = self.read_head(&settings).await?;
        let body = self.read_body(&head, length, &settings).await?;
        self.handle.state.set(State::Answer);
        self.deadline.clear();
        Ok((head, body))
    }

    /// Take one head.
    async fn read_head(
        &mut self,
        settings: &Settings,
    ) -> Result<(Rc<RequestHead>, Option<u64>), Stop> {
        loop {
            self.skip_empty_lines(settings);
            if let Some(end) = head_end(&self.buffer, self.scanned, MAX_REQUEST_HEAD) {
                let parsed = self.heads.read(&self.buffer[..end], parse_request_head)?;
                self.consume(end);
                return Ok(parsed);
            }
            self.keep_partial_head(settings)?;
            match self.read().await {
                Input::Bytes => {}
                Input::End => return Err(Stop::Gone),
                Input::Late if self.handle.state.get() == State::Head => {
                    return Err(refused("the head did not arrive in time", 408).into());
                }
                Input::Late | Input::Stop => return Err(Stop::Close),
            }
        }
    }

    fn skip_empty_lines(&mut self, settings: &Settings) {
        let lines = self
            .buffer
            .chunks_exact(2)
            .take_while(|pair| pair == b"\r\n");
        let empty = 2 * lines.count();
        if empty > 0 {
            self.consume(empty);
            self.start_head_timer(settings);
        }
    }

    fn keep_partial_head(&mut self, settings: &Settings) -> Result<(), RouterError> {
        let data = &self.buffer;
        if data.len() >= MAX_REQUEST_HEAD {
            let text = format!("the head is larger than {MAX_REQUEST_HEAD} bytes");
            return Err(refused(text, 431));
        }
        // What was searched before is clean; its last bytes may go on in the new ones.
        if !line_ends_are_clean_from(data, self.scanned) {
            return Err(refused(UNCLEAN, 400));
        }
        self.scanned = data.len().saturating_sub(3);
        if !data.is_empty() {
            self.start_head_timer(settings);
        }
        Ok(())
    }

    fn start_head_timer(&mut self, settings: &Settings) {
        if self.handle.state.get() == State::Idle {
            self.handle.state.set(State::Head);
            self.deadline.set(Instant::now() + settings.head_timeout);
        }
    }

    fn consume(&mut self, count: usize) {
        self.scanned = 0;
        if count == self.buffer.len() {
            self.buffer.clear();
        } else {
            self.buffer.drain(..count);
        }
    }

    /// Take the body that follows a head.
    async fn read_body(
        &mut self,
        head: &RequestHead,
        length: Option<u64>,
        settings: &Settings,
    ) -> Result<Vec<u8>, Stop> {
        let max_bytes = settings.config.max_body_bytes;
        let mut reader = request_body(head, length, max_bytes)?;
        if reader.is_done() {
            return Ok(Vec::new());
        }
        if length == Some(self.buffer.len() as u64) {
            return Ok(std::mem::take(&mut self.buffer)); // the usual case: the request came whole
        }
        self.handle.state.set(State::Body);
        if head.expect_continue && self.buffer.is_empty() && !head.fields.http_1_0 {
            self.send(&[CONTINUE]);
        }
        let mut pace = Pace::new(settings);
        self.deadline.set(pace.next_check());
        let mut body = Vec::new();
        loop {
            self.take_body(&mut reader, &mut body)?;
            if body.len() as u64 > max_bytes {
                return Err(too_large(max_bytes).into());
            }
            if reader.is_done() {
                return Ok(body);
            }
            match self.read_more(&mut reader, &mut body).await {
                Input::Bytes => {}
                Input::Late if pace.is_fast_enough(body.len()) => {
                    self.deadline.set(pace.next_check());
                }
                Input::Late => return Err(refused("the body did not arrive in time", 408).into()),
                Input::End | Input::Stop => return Err(Stop::Gone),
            }
        }
    }

    /// Move what has come of the body from the buffer to where it belongs.
    fn take_body(
        &mut self,
        reader: &mut BodyReader,
        body: &mut Vec<u8>,
    ) -> Result<(), RouterError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let fed = reader.feed(&mut self.buffer);
        body.extend_from_slice(&self.buffer[fed.payload]);
        self.consume(fed.rest);
        fed.fault.map_or(Ok(()), |fault| Err(refused(fault, 400)))
    }

    /// Wait for more of the body. One of known length is read straight to its place.
    async fn read_more(&mut self, reader: &mut BodyReader, body: &mut Vec<u8>) -> Input {
        let BodyReader::Sized(left) = reader else {
            return self.read().await;
        };
        let limit = usize::try_from(*left).unwrap_or(usize::MAX);
        body.reserve(limit.min(body.len().max(GROWTH)));
        let before = body.len();
        let input = poll_fn(|context| {
            if let Poll::Ready(read) = self.poll_read_into(context, body, limit) {
                return Poll::Ready(match read {
                    Ok(0) | Err(_) => Input::End,
                    Ok(_) => Input::Bytes,
                });
            }
            self.deadline.poll(context).map(|()| Input::Late)
        })
        .await;
        *left -= (body.len() - before) as u64;
        input
    }

    fn poll_read_into(
        &self,
        context: &mut Context<'_>,
        body: &mut Vec<u8>,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read_buf(&mut (&mut *body).limit(limit)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }

    /// Wait for bytes from the client, which are put behind those in the buffer.
    async fn read(&mut self) -> Input {
        poll_fn(|context| {
            self.handle.listen(context);
            if self.handle.state.get() == State::Idle && self.handle.close_if_idle.get() {
                return Poll::Ready(Input::Stop);
            }
            if let Poll::Ready(count) = self.poll_read(context) {
                return Poll::Ready(if count == 0 { Input::End } else { Input::Bytes });
            }
            self.deadline.poll(context).map(|()| Input::Late)
        })
        .await
    }

    /// Read once; 0 = the client sends no more, in whichever way.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        let mut scratch = self.gateway.scratch.borrow_mut();
        let mut read = ReadBuf::new(&mut scratch);
        match ready!(Pin::new(&mut self.stream).poll_read(context, &mut read)) {
            Ok(()) => self.buffer.extend_from_slice(read.filled()),
            Err(_) => return Poll::Ready(0),
        }
        Poll::Ready(read.filled().len())
    }

    // Answers

    /// Answer a whole request; None = the client left meanwhile.
    async fn answer(&mut self, head: Rc<RequestHead>, body: Vec<u8>) -> Option<After> {
        match find_handler(head.path().as_bytes()) {
            Some(handler) => Some(self.answer_locally(&head, handler)),
            None => Exchange::new(self, head, body).run().await,
        }
    }

    fn answer_locally(&mut self, head: &RequestHead, handler: Handler) -> After {
        let shared = Arc::clone(&self.gateway.shared);
        let answer = check_read_only(head)
            .and_then(|()| handler.answer(&shared.context, head.path().as_bytes()));
        match answer {
            Err(error) => self.answer_error(&error, head, b""),
            Ok(answer) => {
                let keep = self.may_keep_alive(head);
                self.write_answer(Some(head), &answer, b"", keep)
            }
        }
    }

    /// Whether the connection may live on after the answer.
    pub fn may_keep_alive(&self, head: &RequestHead) -> bool {
        head.keep_alive() && !self.gateway.draining.get()
    }

    /// Answer with an error made by the router; `own` = fields as they stand on the wire.
    pub fn answer_error(&mut self, error: &RouterError, head: &RequestHead, own: &[u8]) -> After {
        let mut own = [error.header_lines().as_slice(), own].concat();
        if error.http_status() == 405 {
            own.extend_from_slice(b"Allow: GET, HEAD\r\n");
        }
        let answer = LocalAnswer::json(error.http_status(), error.body(None));
        let keep = !error.close && self.may_keep_alive(head);
        self.write_answer(Some(head), &answer, &own, keep)
    }

    fn write_answer(
        &mut self,
        head: Option<&RequestHead>,
        answer: &LocalAnswer,
        own: &[u8],
        keep: bool,
    ) -> After {
        let (status, kind) = (answer.status, answer.content_type);
        let mut out = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\n",
            reason(status)
        )
        .into_bytes();
        out.extend_from_slice(b"Content-Length: ");
        push_decimal(&mut out, answer.body.len() as u64);
        out.extend_from_slice(b"\r\n");
        for (name, value) in &answer.headers {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        out.extend_from_slice(own);
        if !keep {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if head.is_some_and(|head| head.fields.http_1_0) {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        let bodyless = head.is_some_and(|head| head.method == b"HEAD");
        self.send(&[&out, if bodyless { b"" } else { &answer.body }]);
        if keep { After::KeepAlive } else { After::Close }
    }

    /// Answer a request that can't be trusted further.
    fn refuse(&mut self, error: &RouterError) {
        self.gateway.access_log.refused(error, &self.peer);
        let mut own = error.header_lines();
        let id = self.gateway.new_request_id();
        own.extend_from_slice(format!("x-request-id: {id}\r\n").as_bytes());
        let answer = LocalAnswer::json(error.http_status(), error.body(None));
        self.write_answer(None, &answer, &own, false);
    }

    // Sending

    /// Send these bytes: at once what the socket takes, the rest by `flush` or `poll_flush`.
    pub fn send(&mut self, parts: &[&[u8]]) {
        let mut sent = 0;
        if self.unsent.is_empty() && !self.broken {
            match try_send(&self.stream, parts) {
                Ok(count) => sent = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.broken = true,
            }
        }
        for part in parts {
            let skipped = sent.min(part.len());
            sent -= skipped;
            self.unsent.extend_from_slice(&part[skipped..]);
        }
    }

    /// Whether the client has still to take bytes.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    async fn flush(&mut self) -> Result<(), Left> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    /// Send what is left; fails when the client is gone or takes nothing for too long.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Left>> {
        while !self.unsent.is_empty() {
            if self.broken {
                return Poll::Ready(Err(Left::Gone));
            }
            match Pin::new(&mut self.stream).poll_write(context, &self.unsent) {
                Poll::Ready(Ok(count)) => {
                    self.unsent.drain(..count);
                    self.blocked = false;
                }
                Poll::Ready(Err(_)) => self.broken = true,
                Poll::Pending => {
                    if !self.blocked {
                        self.blocked = true;
                        let limit = self.gateway.settings().write_timeout;
                        self.deadline.set(Instant::now() + limit);
                    }
                    ready!(self.deadline.poll(context));
                    self.broken = true;
                }
            }
        }
        self.unsent = Vec::new();
        self.blocked = false;
        Poll::Ready(Ok(()))
    }

    /// Ready when the answer is not wanted any more. What else the client sends is kept.
    pub fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<Left> {
        self.handle.listen(context);
        if let Some(error) = self.handle.abort.take() {
            return Poll::Ready(Left::Aborted(error));
        }
        while self.buffer.len() <= MAX_BACKLOG {
            if self.broken || ready!(self.poll_read(context)) == 0 {
                return Poll::Ready(Left::Gone);
            }
        }
        if self.broken {
            Poll::Ready(Left::Gone)
        } else {
            Poll::Pending
        }
    }

    /// The output of `future`, unless the answer is not wanted any more before.
    pub async fn unless_left<F: Future>(&mut self, future: F) -> Result<F::Output, Left> {
        let mut future = pin!(future);
        poll_fn(|context| {
            if let Poll::Ready(left) = self.poll_left(context) {
                return Poll::Ready(Err(left));
            }
            future.as_mut().poll(context).map(Ok)
        })
        .await
    }

    /// Close once everything is sent.
    ///
    /// The client may still be sending: closing then would reset the connection and take the
    /// answer with it. So the sending side is closed, and what comes is dropped for a moment.
    async fn end_after_writes(mut self) {
        self.handle.state.set(State::Closing);
        if self.flush().await.is_err() {
            return self.reset();
        }
        self.handle.state.set(State::Lingering);
        if self.stream.shutdown().await.is_err() {
            return;
        }
        self.deadline.set(Instant::now() + LINGER);
        while matches!(self.read().await, Input::Bytes) {
            self.buffer.clear();
        }
    }

    /// Close at once, visibly unfinished.
    fn reset(self) {
        // Without it the connection just closes, which is all that can be done then.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

fn try_send(stream: &TcpStream, parts: &[&[u8]]) -> io::Result<usize> {
    let mut slices = [IoSlice::new(b""); 4];
    let mut count = 0;
    for part in parts
        .iter()
        .filter(|part| !part.is_empty())
        .take(slices.len())
    {
        slices[count] = IoSlice::new(part);
        count += 1;
    }
    match count {
        0 => Ok(0),
        1 => stream.try_write(&slices[0]),
        _ => stream.try_write_vectored(&slices[..count]),
    }
}

/// Watches that a body keeps coming.
struct Pace {
    interval: Duration,
    least: f64,
    size_before: usize,
}

impl Pace {
    fn new(settings: &Settings) -> Self {
        Self {
            interval: settings.body_timeout,
            least: MIN_BODY_RATE * settings.config.body_timeout,
            size_before: 0,
        }
    }

    fn next_check(&self) -> Instant {
        Instant::now() + self.interval
    }

    fn is_fast_enough(&mut self, size: usize) -> bool {
        #[expect(
            clippy::cast_precision_loss,
            reason = "bodies are far smaller than 2^52 bytes"
        )]
        let gained = (size - self.size_before) as f64;
        self.size_before = size;
        gained >= self.least
    }
}

/// Local endpoints are read only.
fn check_read_only(head: &RequestHead) -> Result<(), RouterError> {
    if matches!(head.method.as_slice(), b"GET" | b"HEAD") {
        return Ok(());
    }
    let text = format!("{} answers GET only", head.path());
    Err(RouterError::new(Code::InvalidRequest, text).with_status(405))
}
