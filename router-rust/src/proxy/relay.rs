//! The answer's way to the client: head rewritten, body streamed, its end told truthfully.

use std::rc::Rc;

use memchr::memmem;

use crate::proxy::heads::{RequestHead, ResponseHead};
use crate::utils::errors::RouterError;
use crate::utils::headers::{push_decimal, push_hex};

/// Bytes at the end of a stream that tell whether it is complete.
pub const TAIL: usize = 4096;
/// A server-sent comment: ignored by every client.
pub const PING: &[u8] = b":\n\n";

const FINISHING_PATHS: [&str; 2] = ["/chat/completions", "/completions"];

/// How the client is told where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Close,
    Sized,
    Chunked,
    Empty,
}

/// How the client's connection goes on after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    KeepAlive,
    /// Close once everything is sent.
    Close,
    /// Close at once, visibly unfinished.
    Reset,
}

/// One answer on its way to one client. It writes into buffers; sending is the caller's.
///
/// `keep_alive` says whether the client's connection shall live on after the answer.
pub struct Relay {
    pub bytes_sent: u64,
    pub event_stream: bool,
    pub started: bool,
    pub status: u16,
    head: Rc<RequestHead>,
    keep_alive: bool,
    mode: Mode,
    tail: Vec<u8>,
}

/// Payload with what frames it on the wire: three parts to send one after the other.
pub struct Framed<'a> {
    pub payload: &'a [u8],
    pub after: &'static [u8],
}

impl Relay {
    /// A relay for the answer to the request with this head.
    pub fn new(head: Rc<RequestHead>, keep_alive: bool) -> Self {
        Self {
            bytes_sent: 0,
            event_stream: false,
            started: false,
            status: 0,
            head,
            keep_alive,
            mode: Mode::Empty,
            tail: Vec::new(),
        }
    }

    /// Write the head into `out`; `length` is the announced one, `own` are the router's fields.
    pub fn start(
        &mut self,
        response: &ResponseHead,
        length: Option<u64>,
        own: &[u8],
        out: &mut Vec<u8>,
    ) {
        out.extend_from_slice(&response.fields.passed);
        self.framing(response, length, out);
        out.extend_from_slice(own);
        if response.event_stream {
            self.event_stream = true;
            if !response.has_buffering {
                out.extend_from_slice(b"X-Accel-Buffering: no\r\n");
            }
            if !response.has_caching {
                out.extend_from_slice(b"Cache-Control: no-cache\r\n");
            }
        }
        self.begin(response.status, out);
    }

    /// Commit to an event stream before the engine's head came, so that waiting is visible.
    pub fn start_early(&mut self, own: &[u8], out: &mut Vec<u8>) {
        self.event_stream = true;
        out.extend_from_slice(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
              Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n",
        );
        if self.head.fields.http_1_0 {
            self.mode = Mode::Close;
        } else {
            self.mode = Mode::Chunked;
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        out.extend_from_slice(own);
        self.begin(200, out);
    }

    fn begin(&mut self, status: u16, out: &mut Vec<u8>) {
        self.started = true;
        self.status = status;
        if self.mode == Mode::Close || !self.keep_alive {
            self.keep_alive = false;
            out.extend_from_slice(b"Connection: close\r\n");
        } else if self.head.fields.http_1_0 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    fn framing(&mut self, response: &ResponseHead, length: Option<u64>, out: &mut Vec<u8>) {
        let is_head = self.head.method == b"HEAD";
        if is_head || matches!(response.status, 204 | 304) {
            if let Some(length) = length.filter(|_| is_head) {
                push_length(out, length);
            }
        } else if let Some(length) = length {
            self.mode = Mode::Sized;
            push_length(out, length);
        } else if self.head.fields.http_1_0 {
            self.mode = Mode::Close;
        } else {
            self.mode = Mode::Chunked;
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
    }

    /// Take in more of the body, and write what goes before it on the wire into `out`.
    pub fn feed<'a>(&mut self, payload: &'a [u8], out: &mut Vec<u8>) -> Framed<'a> {
        if payload.is_empty() || self.mode == Mode::Empty {
            return Framed {
                payload: b"",
                after: b"",
            };
        }
        self.note(payload);
        if self.mode != Mode::Chunked {
            return Framed {
                payload,
                after: b"",
            };
        }
        push_hex(out, payload.len() as u64);
        out.extend_from_slice(b"\r\n");
        Framed {
            payload,
            after: b"\r\n",
        }
    }

    fn note(&mut self, payload: &[u8]) {
        self.bytes_sent += payload.len() as u64;
        if self.event_stream {
            let tail = &mut self.tail;
            tail.extend_from_slice(&payload[payload.len().saturating_sub(TAIL)..]);
            if tail.len() > 4 * TAIL {
                tail.drain(..tail.len() - TAIL);
            }
        }
    }

    /// Whether a comment may be sent now without cutting an event in two.
    pub fn between_events(&self) -> bool {
        let tail = &self.tail;
        tail.is_empty() || tail.ends_with(b"\n\n") || tail.ends_with(b"\r\n\r\n")
    }

    /// Whether the stream showed its end: `[DONE]` or a `finish_reason` in its last 4 KiB.
    ///
    /// Only chat and completions streams promise one of them.
    pub fn looks_complete(&self) -> bool {
        let has_body = self.mode != Mode::Empty;
        if !self.event_stream || self.status != 200 || !has_body {
            return true;
        }
        let path = self.head.path();
        if !FINISHING_PATHS.iter().any(|end| path.ends_with(end)) {
            return true;
        }
        shows_end(&self.tail[self.tail.len().saturating_sub(TAIL)..])
    }

    /// What ends a complete body on the wire.
    pub fn end(&self) -> &'static [u8] {
        if self.mode == Mode::Chunked {
            b"0\r\n\r\n"
        } else {
            b""
        }
    }

    /// How the client's connection goes on after the complete body.
    pub fn after(&self) -> After {
        if self.keep_alive {
            After::KeepAlive
        } else {
            After::Close
        }
    }

    /// The answer can't be completed: make the client see it. Writes the last bytes into `out`.
    pub fn break_off(&mut self, error: &RouterError, request_id: &str, out: &mut Vec<u8>) -> After {
        if !self.event_stream {
            // The end of the connection would pass for the end of the body.
            return if self.mode == Mode::Close {
                After::Reset
            } else {
                After::Close
            };
        }
        if matches!(self.mode, Mode::Sized | Mode::Empty) {
            return After::Close; // there is no room for an event
        }
        let mut event = Vec::new();
        if !self.between_events() {
            event.extend_from_slice(b"\n\n");
        }
        event.extend_from_slice(&error.event(Some(request_id)));
        if self.mode == Mode::Chunked {
            push_hex(out, event.len() as u64);
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(&event);
            out.extend_from_slice(b"\r\n");
        } else {
            out.extend_from_slice(&event);
        }
        After::Close
    }
}

fn push_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    push_decimal(out, length);
    out.extend_from_slice(b"\r\n");
}

/// Whether `[DONE]` or a finish reason that is text stands in the bytes.
fn shows_end(tail: &[u8]) -> bool {
    const REASON: &[u8] = b"\"finish_reason\"";
    let is_blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
    let skip = |text: &[u8]| text.iter().take_while(|b| is_blank(b)).count();
    let is_text = |at: usize| {
        let after = &tail[at + REASON.len()..];
        let after = &after[skip(after)..];
        after
            .strip_prefix(b":")
            .is_some_and(|value| value[skip(value)..].starts_with(b"\""))
    };
    memmem::find(tail, b"[DONE]").is_some() || memmem::find_iter(tail, REASON).any(is_text)
}

/// Whether there is more in it than comments: those an engine may send while it still reads.
pub fn has_content(payload: &[u8]) -> bool {
    payload
        .split(|&byte| byte == b'\n')
        .any(|line| !matches!(line, [] | [b'\r'] | [b':', ..]))
}
