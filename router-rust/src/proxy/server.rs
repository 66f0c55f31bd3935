//! The front: client connections, their framing and limits, and where each request goes.

mod handle;
mod input;
mod output;

use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

pub use self::handle::ClientHandle;
use self::handle::State;
use self::input::{Input, Stop};
use crate::handlers::context::LocalAnswer;
use crate::handlers::routes::{Handler, find_handler};
use crate::proxy::forward::Exchange;
use crate::proxy::gateway::Gateway;
use crate::proxy::heads::RequestHead;
use crate::proxy::memo::HeadMemo;
use crate::proxy::relay::After;
use crate::utils::errors::{Code, RouterError};
use crate::utils::time::Deadline;

/// Bytes of further requests kept while one is served.
const MAX_BACKLOG: usize = 64 * 1024;
/// Time in which a refused client's bytes are read and dropped.
const LINGER: Duration = Duration::from_secs(2);

/// Why an answer is not finished: the client left or takes nothing, or the router ends it.
pub enum Left {
    Gone,
    Stuck,
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
                Err(Stop::Gone) => {
                    if matches!(self.handle.state.get(), State::Head | State::Body) {
                        self.gateway.request_cut(&self.peer);
                    }
                    return None;
                }
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
            Err(error) => {
                let known = head.request_id.clone();
                let id = known.unwrap_or_else(|| self.gateway.new_request_id());
                self.gateway.refused(&id, &self.peer, &error, "choose");
                let own = format!("x-request-id: {id}\r\n");
                self.answer_error(&error, head, own.as_bytes())
            }
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

    /// Answer a request that can't be trusted further.
    fn refuse(&mut self, error: &RouterError) {
        let mut own = error.header_lines();
        let id = self.gateway.new_request_id();
        self.gateway.refused(&id, &self.peer, error, "client");
        own.extend_from_slice(format!("x-request-id: {id}\r\n").as_bytes());
        let answer = LocalAnswer::json(error.http_status(), error.body(None));
        self.write_answer(None, &answer, &own, false);
    }

    /// Ready when the answer is not wanted any more. What else the client sends is kept.
    pub fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<Left> {
        self.handle.listen(context);
        if let Some(error) = self.handle.aborted.take() {
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

/// Local endpoints are read only.
fn check_read_only(head: &RequestHead) -> Result<(), RouterError> {
    if matches!(head.method.as_slice(), b"GET" | b"HEAD") {
        return Ok(());
    }
    let text = format!("{} answers GET only", head.path());
    Err(RouterError::new(Code::InvalidRequest, text).with_status(405))
}
