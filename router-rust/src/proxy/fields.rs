//! The lines of a head: where they end, what they may hold, and how they frame a message.

use std::sync::LazyLock;

use memchr::{memchr, memchr_iter, memmem};

use crate::proxy::heads::MAX_RESPONSE_FIELDS;
use crate::utils::errors::{Code, RouterError};
use crate::utils::headers::connection_tokens;

const MAX_LENGTH_DIGITS: usize = 18;
/// What is said of heads that `line_ends_are_clean` refuses.
pub const UNCLEAN: &str = "lines must end with CRLF, and NUL bytes are not allowed";

static HEAD_END: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new(b"\r\n\r\n"));

/// The error for a request whose framing can't be trusted: answer, then close.
pub fn refused(message: impl Into<String>, status: u16) -> RouterError {
    RouterError::new(Code::InvalidRequest, message)
        .with_status(status)
        .closing()
}

pub fn malformed(detail: &str) -> RouterError {
    refused(format!("malformed head: {detail}"), 400)
}

/// Where the head at the start of `data` ends, its empty line included.
pub fn head_end(data: &[u8], from: usize, limit: usize) -> Option<usize> {
    let data = &data[..data.len().min(limit)];
    let from = from.min(data.len());
    HEAD_END.find(&data[from..]).map(|at| from + at + 4)
}

/// Whether every LF follows a CR and there is no NUL.
pub fn line_ends_are_clean(data: &[u8]) -> bool {
    line_ends_are_clean_from(data, 0)
}

/// The same for the bytes from `start` on.
pub fn line_ends_are_clean_from(data: &[u8], start: usize) -> bool {
    let mut line_feeds = memchr_iter(b'\n', &data[start..]).map(|at| start + at);
    memchr(0, &data[start..]).is_none() && line_feeds.all(|at| at > 0 && data[at - 1] == b'\r')
}

/// What frames the message, and what of the head is passed on.
#[derive(Debug, Default)]
pub struct Fields {
    pub content_length: Option<u64>,
    pub chunked: bool,
    pub connection: Vec<Vec<u8>>,
    pub http_1_0: bool,
    /// What is passed on, as it stands on the wire.
    pub passed: Vec<u8>,
    /// What is wrong with it, though it could be read.
    pub fault: Option<String>,
}

impl Fields {
    pub fn has_option(&self, option: &[u8]) -> bool {
        self.connection.iter().any(|found| found == option)
    }

    /// One of the hop-by-hop fields; `name` is in lower case.
    pub fn on_framing(&mut self, name: &[u8], value: &[u8]) -> Result<(), RouterError> {
        match name {
            b"connection" => self.connection.extend(connection_tokens(value)),
            b"content-length" => self.on_length(value)?,
            b"transfer-encoding" => {
                if self.content_length.is_some() {
                    return Err(malformed(
                        "Transfer-Encoding can't be present with Content-Length",
                    ));
                }
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    self.fault = Some("Transfer-Encoding must stand once and be 'chunked'".into());
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn on_length(&mut self, value: &[u8]) -> Result<(), RouterError> {
        if self.content_length.is_some() {
            return Err(malformed("Duplicate Content-Length"));
        }
        if self.chunked {
            return Err(malformed(
                "Content-Length can't be present with Transfer-Encoding",
            ));
        }
        if value.is_empty() {
            return Err(malformed("Empty Content-Length"));
        }
        if !value.trim_ascii_end().iter().all(u8::is_ascii_digit) {
            return Err(malformed("Invalid character in Content-Length"));
        }
        self.content_length = plain_number(value);
        if self.content_length.is_none() {
            self.fault = Some("Content-Length must stand once and be a plain number".into());
        }
        Ok(())
    }

    /// After the last field: what is passed on, without what Connection names.
    pub fn end(&mut self, first_line: Vec<u8>, lines: &[Line<'_>]) -> Result<(), RouterError> {
        if let Some(fault) = self.fault.take() {
            return Err(refused(fault, 400));
        }
        let named = |name: &[u8]| {
            let options = self.connection.iter();
            let mut other = options.filter(|o| *o != b"close" && *o != b"keep-alive");
            other.any(|option| option.eq_ignore_ascii_case(name))
        };
        let mut passed = first_line;
        for (name, value) in lines.iter().filter(|(name, _)| !named(name)) {
            push_line(&mut passed, name, value);
        }
        self.passed = passed;
        Ok(())
    }
}

type Line<'a> = (&'a [u8], &'a [u8]);

fn push_line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

pub fn plain_number(text: &[u8]) -> Option<u64> {
    let fine = (1..=MAX_LENGTH_DIGITS).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    let digit = |number: u64, byte: &u8| 10 * number + u64::from(byte - b'0');
    fine.then(|| text.iter().fold(0, digit))
}

pub fn split_first_line(data: &[u8]) -> (&[u8], &[u8]) {
    let end = memmem::find(data, b"\r\n").unwrap_or(data.len());
    (&data[..end], data.get(end + 2..).unwrap_or(b""))
}

/// Call `on_field` with each field's lower-case name, its name and its value.
///
/// Values keep the blanks at their ends, as they are passed on (httparse would take them off).
pub fn for_each_field<'a>(
    data: &'a [u8],
    max_fields: usize,
    mut on_field: impl FnMut(&[u8], &'a [u8], &'a [u8]) -> Result<(), RouterError>,
) -> Result<(), RouterError> {
    check_fields(data, max_fields)?;
    let mut low = Vec::with_capacity(64);
    let mut rest = data;
    while !rest.is_empty() && rest != b"\r\n" {
        let (line, after) = split_first_line(rest);
        let (name, value) = line.split_at(memchr(b':', line).unwrap_or(line.len()));
        low.clear();
        low.extend(name.iter().map(u8::to_ascii_lowercase));
        let value = value.get(1..).unwrap_or(b"").trim_ascii_start();
        on_field(&low, name, value)?;
        rest = after;
    }
    Ok(())
}

/// Field lines are `token ":" text` (RFC 9112 5.1, 5.2), and not too many.
fn check_fields(data: &[u8], max_fields: usize) -> Result<(), RouterError> {
    // One line more: the empty one.
    if memchr_iter(b'\n', data).count() > max_fields + 1 {
        let text = format!("more than {max_fields} header fields");
        return Err(refused(text, 431));
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_RESPONSE_FIELDS];
    let text = match httparse::parse_headers(data, &mut fields[..max_fields]) {
        Ok(_) => return Ok(()),
        Err(httparse::Error::HeaderName) => "Invalid header token",
        Err(httparse::Error::HeaderValue) => "Invalid header value char",
        Err(_) => "Missing expected LF after header value",
    };
    Err(malformed(more_exactly(data, text)))
}

/// What httparse has no word for: odd blanks at the start of a line, a CR inside of one.
fn more_exactly<'a>(data: &[u8], text: &'a str) -> &'a str {
    if matches!(data.first(), Some(b' ' | b'\t')) {
        "Unexpected space after start line"
    } else if memmem::find(data, b"\r\n ").is_some() || memmem::find(data, b"\r\n\t").is_some() {
        "Unexpected whitespace after header value"
    } else if memchr_iter(b'\r', data).any(|at| data.get(at + 1) != Some(&b'\n')) {
        "Missing expected LF after header value"
    } else {
        text
    }
}
