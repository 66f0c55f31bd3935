//! Where HTTP/1.1 bodies end, by the rules of docs/HTTP.md. Nothing here does input or output.

use std::ops::Range;

use memchr::memchr;

use crate::proxy::fields::refused;
use crate::proxy::heads::{RequestHead, ResponseHead};
use crate::utils::errors::{Code, RouterError};
use crate::utils::headers::{is_field_text, is_token};

pub const MAX_CHUNK_LINE: usize = 256;
pub const MAX_TRAILERS: usize = 16 * 1024;
const MAX_SIZE_DIGITS: usize = 15;
const BODYLESS_METHODS: [&[u8]; 3] = [b"GET", b"HEAD", b"OPTIONS"];

/// Finds where a body ends.
#[derive(Debug)]
pub enum BodyReader {
    /// A body with so many bytes still to come.
    Sized(u64),
    Chunked(ChunkedBody),
    /// A body that ends with its connection (RFC 9112 6.3, rule 8).
    UntilClose,
}

/// What a reader made of some bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// Where the payload stands in the bytes now.
    pub payload: Range<usize>,
    /// Where what follows the body begins.
    pub rest: usize,
    /// How the bytes break the rules, once they do.
    pub fault: Option<&'static str>,
}

impl BodyReader {
    /// Whether the body's end has come.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Sized(left) => *left == 0,
            Self::Chunked(body) => body.state == State::Done,
            Self::UntilClose => false,
        }
    }

    /// Take bytes from the wire. Chunks that arrive together are moved together.
    pub fn feed(&mut self, data: &mut [u8]) -> Fed {
        match self {
            Self::Sized(left) => {
                let taken = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
                *left -= taken as u64;
                Fed {
                    payload: 0..taken,
                    rest: taken,
                    fault: None,
                }
            }
            Self::Chunked(body) => body.feed(data),
            Self::UntilClose => Fed {
                payload: 0..data.len(),
                rest: data.len(),
                fault: None,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Data,
    DataEnd,
    Trailers,
    Done,
}

/// The chunked coding (RFC 9112 7.1). Extensions and trailers are dropped.
#[derive(Debug, Default)]
pub struct ChunkedBody {
    state: State,
    /// Bytes of the current chunk still to come.
    left: u64,
    /// An incomplete line.
    held: Vec<u8>,
    trailers: usize,
}

impl ChunkedBody {
    fn feed(&mut self, data: &mut [u8]) -> Fed {
        let mut fed = Fed::default();
        let mut at = 0;
        while self.state != State::Done && fed.fault.is_none() && at < data.len() {
            if self.state == State::Data {
                at = self.take_data(data, at, &mut fed.payload);
            } else {
                match self.take_line(data, at) {
                    Ok(next) => at = next,
                    Err(fault) => fed.fault = Some(fault),
                }
            }
        }
        fed.rest = at;
        fed
    }

    /// Move the bytes of the current chunk behind the payload found so far; returns where they end.
    fn take_data(&mut self, data: &mut [u8], at: usize, payload: &mut Range<usize>) -> usize {
        let there = data.len() - at;
        let taken = usize::try_from(self.left).map_or(there, |left| left.min(there));
        if payload.start == payload.end {
            *payload = at..at + taken;
        } else {
            data.copy_within(at..at + taken, payload.end);
            payload.end += taken;
        }
        self.left -= taken as u64;
        if self.left == 0 {
            self.state = State::DataEnd;
        }
        at + taken
    }

    /// Take a line, or keep the part of it that is there; returns where the next one begins.
    fn take_line(&mut self, data: &[u8], at: usize) -> Result<usize, &'static str> {
        if self.state == State::DataEnd {
            return self.take_data_end(data, at);
        }
        let limit = match self.state {
            State::Trailers => MAX_TRAILERS.saturating_sub(self.trailers),
            _ => MAX_CHUNK_LINE,
        };
        let room = limit + 2 - self.held.len();
        let window = &data[at..data.len().min(at + room)];
        let end = memchr(b'\n', window);
        self.held
            .extend_from_slice(&window[..end.unwrap_or(window.len())]);
        let ends_with_cr = self.held.ends_with(b"\r");
        if self.held.len() > limit + usize::from(ends_with_cr) {
            return Err("a chunk size line or trailer is too long");
        }
        let Some(end) = end else {
            return Ok(at + window.len());
        };
        let mut line = std::mem::take(&mut self.held);
        if line.pop() != Some(b'\r') {
            return Err("a line of the chunked coding does not end with CRLF");
        }
        self.on_line(&line)?;
        Ok(at + end + 1)
    }

    fn take_data_end(&mut self, data: &[u8], at: usize) -> Result<usize, &'static str> {
        let expected = if self.held.is_empty() { b'\r' } else { b'\n' };
        if data[at] != expected {
            return Err("a chunk is longer than its size says");
        }
        if expected == b'\r' {
            self.held.push(b'\r');
        } else {
            self.held.clear();
            self.state = State::Size;
        }
        Ok(at + 1)
    }

    fn on_line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if self.state == State::Trailers {
            self.trailers += line.len() + 2;
            if line.is_empty() {
                self.state = State::Done;
            } else if !is_trailer(line) {
                return Err("malformed trailer field");
            }
            return Ok(());
        }
        self.left = chunk_size(line).ok_or("malformed chunk size")?;
        self.state = if self.left == 0 {
            State::Trailers
        } else {
            State::Data
        };
        Ok(())
    }
}

/// The number of a size line: hex digits, then perhaps extensions.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let is_hex = |b: &u8| b.is_ascii_hexdigit();
    let digits = line.iter().position(|b| !is_hex(b)).unwrap_or(line.len());
    if !(1..=MAX_SIZE_DIGITS).contains(&digits) {
        return None;
    }
    let extension = line[digits..].trim_ascii_start();
    let blanks_only = line[digits..line.len() - extension.len()]
        .iter()
        .all(|b| matches!(b, b' ' | b'\t'));
    let fine = match extension {
        [] => digits == line.len(),
        [b';', text @ ..] => blanks_only && text.iter().all(|&b| is_field_text(b)),
        _ => false,
    };
    let text = std::str::from_utf8(&line[..digits]).ok()?;
    fine.then(|| u64::from_str_radix(text, 16).ok())?
}

fn is_trailer(line: &[u8]) -> bool {
    let Some(colon) = memchr(b':', line) else {
        return false;
    };
    let (name, value) = line.split_at(colon);
    !name.is_empty() && name.iter().all(|&b| is_token(b)) && value.iter().all(|&b| is_field_text(b))
}

/// The reader for a request's body of the announced `length`.
///
/// # Errors
///
/// `body_too_large` by the announced length, or the method allows no body.
pub fn request_body(
    head: &RequestHead,
    length: Option<u64>,
    max_bytes: u64,
) -> Result<BodyReader, RouterError> {
    let chunked = head.fields.chunked;
    if (chunked || length.unwrap_or(0) > 0) && BODYLESS_METHODS.contains(&head.method.as_slice()) {
        let method = String::from_utf8_lossy(&head.method);
        return Err(refused(format!("{method} must not have a body"), 400));
    }
    if chunked {
        return Ok(BodyReader::Chunked(ChunkedBody::default()));
    }
    match length {
        Some(length) if length > max_bytes => Err(too_large(max_bytes)),
        _ => Ok(BodyReader::Sized(length.unwrap_or(0))),
    }
}

/// The body limit was passed.
pub fn too_large(max_bytes: u64) -> RouterError {
    let text = format!("the request body is larger than {max_bytes} bytes");
    RouterError::new(Code::BodyTooLarge, text).closing()
}

/// The reader for a response's body of the announced `length` (RFC 9112 6.3).
pub fn response_body(head: &ResponseHead, length: Option<u64>, method: &[u8]) -> BodyReader {
    if method == b"HEAD" || matches!(head.status, 204 | 304) {
        BodyReader::Sized(0)
    } else if head.fields.chunked {
        BodyReader::Chunked(ChunkedBody::default())
    } else {
        length.map_or(BodyReader::UntilClose, BodyReader::Sized)
    }
}
