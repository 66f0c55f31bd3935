//! The request's bytes on their way into the engine's socket.

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

/// A request on its way into the engine's socket.
pub(super) struct Sending {
    pub(super) head: Vec<u8>,
    /// Bytes of head and body.
    pub(super) size: usize,
    pub(super) sent: usize,
    /// The engine takes no more; it may have answered all the same.
    pub(super) failed: bool,
}

impl Sending {
    pub(super) fn is_done(&self) -> bool {
        self.sent == self.size
    }

    pub(super) fn is_over(&self) -> bool {
        self.failed || self.is_done()
    }

    /// What is left of head and body.
    fn rest<'a>(&'a self, body: &'a [u8]) -> [IoSlice<'a>; 2] {
        let head = self.head.get(self.sent..).unwrap_or(b"");
        let body = body.get(self.sent.saturating_sub(self.head.len())..);
        [IoSlice::new(head), IoSlice::new(body.unwrap_or(b""))]
    }

    /// Send at once what the socket takes.
    pub(super) fn push(&mut self, stream: &TcpStream, body: &[u8]) {
        let rest = self.rest(body);
        let count = if body.is_empty() { 1 } else { 2 };
        // Errors come again when it is polled.
        self.sent += stream.try_write_vectored(&rest[..count]).unwrap_or(0);
    }

    /// Ready when it is over.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut TcpStream,
        body: &[u8],
    ) -> Poll<()> {
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
