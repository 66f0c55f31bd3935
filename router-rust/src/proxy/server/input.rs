//! The client's requests: their bytes, framing, limits and deadlines.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BufMut;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::ClientConnection;
use super::handle::State;
use crate::proxy::bodies::{BodyReader, request_body, too_large};
use crate::proxy::fields::{UNCLEAN, head_end, line_ends_are_clean_from, refused};
use crate::proxy::gateway::Settings;
use crate::proxy::heads::{MAX_REQUEST_HEAD, RequestHead, parse_request_head};
use crate::utils::errors::RouterError;

/// Bytes/s.
const MIN_BODY_RATE: f64 = 1024.0;
/// Bytes that a body's memory grows by at least.
const GROWTH: usize = 64 * 1024;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Why no further request is read.
pub(super) enum Stop {
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
pub(super) enum Input {
    Bytes,
    End,
    Late,
    Stop,
}

impl ClientConnection {
    /// Wait for a whole request.
    pub(super) async fn next_request(&mut self) -> Result<(Rc<RequestHead>, Vec<u8>), Stop> {
        self.handle.state.set(State::Idle);
        if self.buffer.is_empty() {
            self.first_bytes().await?;
        }
        // Not before: a connection may rest for long, and the settings change meanwhile.
        let settings = self.gateway.settings();
        let (head, length) = self.read_head(&settings).await?;
        let body = self.read_body(&head, length, &settings).await?;
        self.handle.state.set(State::Answer);
        self.deadline.clear();
        Ok((head, body))
    }

    /// Wait for the beginning of a request.
    async fn first_bytes(&mut self) -> Result<(), Stop> {
        let patience = self.gateway.settings().keep_alive_timeout;
        self.deadline.set(Instant::now() + patience);
        match self.read().await {
            Input::Bytes => Ok(()),
            Input::End => Err(Stop::Gone),
            Input::Late => Err(Stop::Close),
            Input::Stop => Err(self.stopped()),
        }
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
                Input::Late => return Err(refused("the head did not arrive in time", 408).into()),
                Input::Stop => return Err(self.stopped()),
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
            self.take_body(&mut reader, &mut body, max_bytes)?;
            if reader.is_done() {
                return Ok(body);
            }
            match self.read_more(&mut reader, &mut body).await {
                Input::Bytes => {}
                Input::Late if pace.is_fast_enough(body.len()) => {
                    self.deadline.set(pace.next_check());
                }
                Input::Late => return Err(refused("the body did not arrive in time", 408).into()),
                Input::End => return Err(Stop::Gone),
                Input::Stop => return Err(self.stopped()),
            }
        }
    }

    /// Move what has come of the body from the buffer to where it belongs.
    fn take_body(
        &mut self,
        reader: &mut BodyReader,
        body: &mut Vec<u8>,
        max_bytes: u64,
    ) -> Result<(), RouterError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let fed = reader.feed(&mut self.buffer);
        body.extend_from_slice(&self.buffer[fed.payload]);
        self.consume(fed.rest);
        // However the bytes were read: what was too large before it was malformed is too large.
        if body.len() as u64 > max_bytes {
            return Err(too_large(max_bytes));
        }
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
            if self.poll_orders(context) {
                return Poll::Ready(Input::Stop);
            }
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
    pub(super) async fn read(&mut self) -> Input {
        poll_fn(|context| {
            if self.poll_orders(context) {
                return Poll::Ready(Input::Stop);
            }
            if let Poll::Ready(count) = self.poll_read(context) {
                return Poll::Ready(if count == 0 { Input::End } else { Input::Bytes });
            }
            self.deadline.poll(context).map(|()| Input::Late)
        })
        .await
    }

    /// Whether the router wants no more of this request.
    fn poll_orders(&self, context: &Context<'_>) -> bool {
        let handle = &self.handle;
        handle.listen(context);
        let idle = handle.state.get() == State::Idle;
        (idle && handle.closes_if_idle.get()) || handle.aborted.borrow().is_some()
    }

    fn stopped(&self) -> Stop {
        let aborted = self.handle.aborted.take();
        // Who has asked for nothing gets no answer.
        let asked = self.handle.state.get() != State::Idle;
        aborted.filter(|_| asked).map_or(Stop::Close, Stop::Refused)
    }

    /// Read once; 0 = the client sends no more, in whichever way.
    pub(super) fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        let mut scratch = self.gateway.scratch.borrow_mut();
        let mut read = ReadBuf::new(&mut scratch);
        match ready!(Pin::new(&mut self.stream).poll_read(context, &mut read)) {
            Ok(()) => self.buffer.extend_from_slice(read.filled()),
            Err(_) => return Poll::Ready(0),
        }
        Poll::Ready(read.filled().len())
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
