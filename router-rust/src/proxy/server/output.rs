//! Answers on their way to the client.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{ClientConnection, Left};
use crate::handlers::context::LocalAnswer;
use crate::proxy::heads::RequestHead;
use crate::proxy::relay::After;
use crate::utils::headers::push_decimal;

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

impl ClientConnection {
    /// Send a whole answer made by the router; `own` = fields as they stand on the wire.
    pub(super) fn write_answer(
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

    pub(super) async fn flush(&mut self) -> Result<(), Left> {
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
                    return Poll::Ready(Err(Left::Stuck));
                }
            }
        }
        self.unsent = Vec::new();
        self.blocked = false;
        Poll::Ready(Ok(()))
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
