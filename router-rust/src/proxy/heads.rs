//! HTTP/1.1 heads of requests and responses, by the rules of docs/HTTP.md.
//!
//! Field lines go through httparse; what it lets pass and the rules forbid is refused here.
//! Nothing here does input or output.

use std::cell::OnceCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::LazyLock;

use memchr::{memchr, memchr_iter, memmem};

use crate::utils::errors::{Code, RouterError};
use crate::utils::headers::{
    FORWARDED, HOP_BY_HOP, connection_tokens, is_field_text, is_safe_request_id, is_token,
};

pub const MAX_REQUEST_HEAD: usize = 16 * 1024;
pub const MAX_REQUEST_FIELDS: usize = 100;
pub const MAX_TARGET: usize = 8 * 1024;
pub const MAX_RESPONSE_HEAD: usize = 64 * 1024;
pub const MAX_RESPONSE_FIELDS: usize = 200;
const MAX_LENGTH_DIGITS: usize = 18;

const METHODS: [&[u8]; 7] = [
    b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS",
];
/// Engines behind CGI-like servers read these as the fields that delimit a message.
const LOOKALIKES: [&[u8]; 2] = [b"content_length", b"transfer_encoding"];
/// The fields that name a session, the one that counts most first.
pub const SESSION_FIELDS: [&[u8]; 5] = [
    b"x-infinilm-session",
    b"x-session-id",
    b"x-claude-code-session-id",
    b"x-session-affinity",
    b"session-id",
];
/// The router writes these itself; an engine's own would stand beside them.
const OURS: [&[u8]; 4] = [
    b"x-request-id",
    b"x-infinilm-service",
    b"x-infinilm-attempts",
    b"x-infinilm-policy",
];

static HEAD_END: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new(b"\r\n\r\n"));

/// The error for a request whose framing can't be trusted: answer, then close.
pub fn refused(message: impl Into<String>, status: u16) -> RouterError {
    RouterError::new(Code::InvalidRequest, message)
        .with_status(status)
        .closing()
}

fn malformed(detail: &str) -> RouterError {
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
    fault: Option<String>,
}

impl Fields {
    fn has_option(&self, option: &[u8]) -> bool {
        self.connection.iter().any(|found| found == option)
    }

    /// One of the hop-by-hop fields; `name` is in lower case.
    fn on_framing(&mut self, name: &[u8], value: &[u8]) -> Result<(), RouterError> {
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
    fn end(&mut self, first_line: Vec<u8>, lines: &[Line<'_>]) -> Result<(), RouterError> {
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

fn plain_number(text: &[u8]) -> Option<u64> {
    let fine = (1..=MAX_LENGTH_DIGITS).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    let digit = |number: u64, byte: &u8| 10 * number + u64::from(byte - b'0');
    fine.then(|| text.iter().fold(0, digit))
}

/// A request's head that follows the rules.
#[derive(Debug, Default)]
pub struct RequestHead {
    pub fields: Fields,
    pub method: Vec<u8>,
    pub target: String,
    path_end: usize,
    pub host: Option<Vec<u8>>,
    pub content_type: Vec<u8>,
    pub expect_continue: bool,
    upgrade: Option<Vec<u8>>,
    pub request_id: Option<String>,
    pub via: Vec<Vec<u8>>,
    pub forwarded: Vec<(Vec<u8>, Vec<u8>)>,
    pub session: Vec<(Vec<u8>, Vec<u8>)>,
    /// The gateway's own fields, once they were made.
    pub hop: OnceCell<Vec<u8>>,
}

impl RequestHead {
    /// The target's path, as it is spelt.
    pub fn path(&self) -> &str {
        &self.target[..self.path_end]
    }

    /// The target's query, without its question mark.
    pub fn query(&self) -> &str {
        self.target.get(self.path_end + 1..).unwrap_or("")
    }

    /// Whether the client wants to use the connection again (RFC 9112 9.3).
    pub fn keep_alive(&self) -> bool {
        let close = self.fields.has_option(b"close");
        !close && (!self.fields.http_1_0 || self.fields.has_option(b"keep-alive"))
    }

    /// Take in a field; true = pass it on.
    fn on_field(&mut self, low: &[u8], name: &[u8], value: &[u8]) -> Result<bool, RouterError> {
        match low {
            b"host" => self.on_host(value),
            b"expect" if value.eq_ignore_ascii_case(b"100-continue") => self.expect_continue = true,
            b"expect" => {
                return Err(refused(
                    "the only expectation that can be met is 100-continue",
                    417,
                ));
            }
            b"upgrade" => self.upgrade = Some(value.to_ascii_lowercase()),
            b"x-request-id" => {
                if is_safe_request_id(value) {
                    self.request_id = String::from_utf8(value.to_vec()).ok();
                }
            }
            b"via" => {
                self.via.push(value.to_vec());
                return Ok(true);
            }
            b"content-type" => {
                self.content_type = value.to_vec();
                return Ok(true);
            }
            low if HOP_BY_HOP.contains(&low) => self.fields.on_framing(low, value)?,
            low if LOOKALIKES.contains(&low) => {
                let name = String::from_utf8_lossy(name);
                let fault = format!("the field name {name} looks like one that delimits the body");
                self.fields.fault = Some(fault);
            }
            low if FORWARDED.contains(&low) => self.forwarded.push((low.to_vec(), value.to_vec())),
            low if SESSION_FIELDS.contains(&low) => {
                self.session.push((low.to_vec(), value.to_vec()));
                return Ok(true);
            }
            low => return Ok(!low.starts_with(b"proxy-")),
        }
        Ok(false)
    }

    fn on_host(&mut self, value: &[u8]) {
        if self.host.is_some() || !is_host(value) {
            let fault = "Host must stand once and be a host with an optional port";
            self.fields.fault = Some(fault.into());
        }
        self.host = Some(value.to_vec());
    }

    fn check(&self) -> Result<(), RouterError> {
        if self.fields.http_1_0 {
            if self.fields.chunked {
                return Err(refused("Transfer-Encoding does not exist in HTTP/1.0", 400));
            }
        } else if self.host.is_none() {
            return Err(refused("Host is missing", 400));
        }
        let upgrade = self
            .upgrade
            .as_deref()
            .filter(|_| self.fields.has_option(b"upgrade"));
        if upgrade.is_some_and(|protocol| protocol != b"h2c") {
            return Err(refused("protocol upgrades are not served", 501));
        }
        Ok(())
    }

    fn set_target(&mut self, target: &[u8]) -> Result<(), RouterError> {
        let target = self.origin_form(target)?;
        if target.len() > MAX_TARGET {
            let text = format!("the target is longer than {MAX_TARGET} bytes");
            return Err(refused(text, 414));
        }
        self.path_end = target.find('?').unwrap_or(target.len());
        self.target = target;
        if has_dot_segment(self.path().as_bytes()) {
            return Err(refused("the path must not hold dot segments or %00", 400));
        }
        Ok(())
    }

    /// The path and query, also of an absolute target (RFC 9112 3.2.2).
    fn origin_form(&self, target: &[u8]) -> Result<String, RouterError> {
        let mut origin = target.to_vec();
        if let Some((authority, rest)) = split_absolute(target) {
            if !authority.eq_ignore_ascii_case(self.host.as_deref().unwrap_or(b"")) {
                return Err(refused(
                    "the target's host differs from the Host field",
                    400,
                ));
            }
            origin = rest.to_vec();
            if !origin.starts_with(b"/") {
                origin.insert(0, b'/');
            }
        }
        let visible = |b: &u8| matches!(b, 0x21..=0x7e) && *b != b'#' && *b != b'\\';
        let fine = origin.starts_with(b"/") && origin.iter().all(visible);
        let text = "the target must be a path of visible ASCII characters without '#' or '\\'";
        let origin = String::from_utf8(origin).ok().filter(|_| fine);
        origin.ok_or_else(|| refused(text, 400))
    }
}

/// The authority and the rest of an `http://` target.
fn split_absolute(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let (scheme, rest) = target.split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"http://") {
        return None;
    }
    let ends = |b: &u8| matches!(b, b'/' | b'?' | b'#');
    let end = rest.iter().position(ends).unwrap_or(rest.len());
    (end > 0).then(|| rest.split_at(end))
}

/// Whether a segment is `.` or `..`, with any of its bytes escaped, or `%00` stands anywhere.
fn has_dot_segment(path: &[u8]) -> bool {
    if memmem::find(path, b"/.").is_none() && memchr(b'%', path).is_none() {
        return false;
    }
    // Escaped, a dot or a slash is one too: `%2e`, `%2f`. Nothing longer can be.
    let mut dots = None;
    let mut at = 0;
    while at < path.len() {
        let escaped = (path[at] == b'%')
            .then(|| path.get(at + 1..at + 3))
            .flatten();
        let byte = match escaped {
            Some(b"00") => return true,
            Some([b'2', b'e' | b'E']) => b'.',
            Some([b'2', b'f' | b'F']) => b'/',
            _ => path[at],
        };
        at += if byte == path[at] { 1 } else { 3 };
        dots = match (byte, dots) {
            (b'/', Some(1 | 2)) => return true,
            (b'/', _) => Some(0),
            (b'.', Some(before)) => Some(before + 1),
            _ => None,
        };
    }
    matches!(dots, Some(1 | 2))
}

fn is_host(value: &[u8]) -> bool {
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"._~%!$&'()*+,;=-".contains(b);
    let is_address = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
    let rest = if let Some(inner) = value.strip_prefix(b"[") {
        let Some(end) = memchr(b']', inner) else {
            return false;
        };
        if end == 0 || !inner[..end].iter().all(is_address) {
            return false;
        }
        &inner[end + 1..]
    } else {
        let end = value
            .iter()
            .position(|b| !is_name(b))
            .unwrap_or(value.len());
        &value[end..]
    };
    match rest.strip_prefix(b":") {
        None => rest.is_empty(),
        Some(port) => (1..=5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit),
    }
}

/// An engine's response head that follows the rules.
#[derive(Debug, Default)]
pub struct ResponseHead {
    pub fields: Fields,
    pub status: u16,
    pub event_stream: bool,
    /// `X-Accel-Buffering` stands in it.
    pub has_buffering: bool,
    /// `Cache-Control` stands in it.
    pub has_caching: bool,
}

impl ResponseHead {
    /// Whether the engine lets the connection be used again.
    pub fn keep_alive(&self) -> bool {
        if self.fields.http_1_0 {
            return self.fields.has_option(b"keep-alive");
        }
        !self.fields.has_option(b"close")
    }

    /// Take in a field; true = pass it on.
    fn on_field(&mut self, low: &[u8], value: &[u8]) -> Result<bool, RouterError> {
        match low {
            b"content-type" => {
                let kind = value.get(..17).unwrap_or(value);
                self.event_stream = kind.eq_ignore_ascii_case(b"text/event-stream");
            }
            b"x-accel-buffering" => self.has_buffering = true,
            b"cache-control" => self.has_caching = true,
            low if HOP_BY_HOP.contains(&low) => {
                self.fields.on_framing(low, value)?;
                return Ok(false);
            }
            low => return Ok(!OURS.contains(&low) && !low.starts_with(b"proxy-")),
        }
        Ok(true)
    }
}

/// Parse a whole head, empty line included.
///
/// # Errors
///
/// It breaks a rule of docs/HTTP.md section 1 or 2; always with `close`.
pub fn parse_request_head(data: &[u8]) -> Result<RequestHead, RouterError> {
    if !line_ends_are_clean(data) {
        return Err(refused(UNCLEAN, 400));
    }
    let (line, fields) = split_first_line(data);
    let (method, target, minor) = request_line(line)?;
    let mut head = RequestHead {
        method: method.to_vec(),
        ..RequestHead::default()
    };
    head.fields.http_1_0 = minor == b'0';
    let mut passed = Vec::new();
    for_each_field(fields, MAX_REQUEST_FIELDS, |low, name, value| {
        if head.on_field(low, name, value)? {
            passed.push((name, value));
        }
        Ok(())
    })?;
    head.fields.end(Vec::new(), &passed)?;
    head.check()?;
    head.set_target(target)?;
    Ok(head)
}

/// What is said of heads that `line_ends_are_clean` refuses.
pub const UNCLEAN: &str = "lines must end with CRLF, and NUL bytes are not allowed";

fn split_first_line(data: &[u8]) -> (&[u8], &[u8]) {
    let end = memmem::find(data, b"\r\n").unwrap_or(data.len());
    (&data[..end], data.get(end + 2..).unwrap_or(b""))
}

/// Method, target and minor version.
fn request_line(line: &[u8]) -> Result<(&[u8], &[u8], u8), RouterError> {
    let mut parts = line.split(|&b| b == b' ');
    let parts = (parts.next(), parts.next(), parts.next(), parts.next());
    let (Some(method), Some(target), Some(version), None) = parts else {
        return Err(refused(
            "the request line must be METHOD TARGET HTTP/1.1",
            400,
        ));
    };
    let is_method = !method.is_empty() && method.iter().all(|&b| is_token(b));
    let (b"HTTP/", [major, b'.', minor]) = version.split_at(version.len().min(5)) else {
        return Err(refused(
            "the request line must be METHOD TARGET HTTP/1.1",
            400,
        ));
    };
    if !is_method || target.is_empty() || !major.is_ascii_digit() || !minor.is_ascii_digit() {
        return Err(refused(
            "the request line must be METHOD TARGET HTTP/1.1",
            400,
        ));
    }
    if *major != b'1' || !matches!(minor, b'0' | b'1') {
        return Err(refused("only HTTP/1.1 and HTTP/1.0 are served", 505));
    }
    if !METHODS.contains(&method) {
        return Err(refused("this method is not served", 501));
    }
    if !target.is_ascii() {
        return Err(malformed("Invalid char in url path"));
    }
    Ok((method, target, *minor))
}

/// Call `on_field` with each field's lower-case name, its name and its value.
///
/// Values keep the blanks at their ends, as they are passed on (httparse would take them off).
fn for_each_field<'a>(
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
    let mut fields = [httparse::EMPTY_HEADER; MAX_RESPONSE_FIELDS];
    let text = match httparse::parse_headers(data, &mut fields[..max_fields]) {
        Ok(_) => return Ok(()),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(refused(
                format!("more than {max_fields} header fields"),
                431,
            ));
        }
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

/// The peer's bytes do not follow the rules; the text says how.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken(pub String);

/// Parse an engine's whole head, empty line included.
///
/// # Errors
///
/// It breaks a rule of docs/HTTP.md section 5.
pub fn parse_response_head(data: &[u8]) -> Result<ResponseHead, Broken> {
    let (line, fields) = split_first_line(data);
    let parsed = status_line(line).filter(|_| line_ends_are_clean(data));
    let Some((minor, status, reason)) = parsed else {
        let text = "malformed status line, or lines that do not end with CRLF";
        return Err(Broken(text.into()));
    };
    if status == 101 {
        let text = "the engine switched protocols, which nobody asked for";
        return Err(Broken(text.into()));
    }
    let mut head = ResponseHead {
        status,
        ..ResponseHead::default()
    };
    head.fields.http_1_0 = minor == b'0';
    response_fields(&mut head, reason, fields).map_err(|error| Broken(error.message))?;
    Ok(head)
}

fn response_fields(
    head: &mut ResponseHead,
    reason: &[u8],
    fields: &[u8],
) -> Result<(), RouterError> {
    let mut passed = Vec::new();
    for_each_field(fields, MAX_RESPONSE_FIELDS, |low, name, value| {
        if head.on_field(low, value)? {
            passed.push((name, value));
        }
        Ok(())
    })?;
    let mut line = format!("HTTP/1.1 {} ", head.status).into_bytes();
    line.extend_from_slice(reason);
    line.extend_from_slice(b"\r\n");
    head.fields.end(line, &passed)
}

/// Minor version, status and reason.
fn status_line(line: &[u8]) -> Option<(u8, u16, &[u8])> {
    let (b"HTTP/1.", [minor @ (b'0' | b'1'), b' ', rest @ ..]) = line.split_at_checked(7)? else {
        return None;
    };
    let (code, reason) = rest.split_at_checked(3)?;
    if !matches!(code[0], b'1'..=b'5') || !code.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let reason = match reason {
        [] => reason,
        [b' ', reason @ ..] => reason,
        _ => return None,
    };
    let status = u16::try_from(plain_number(code)?).ok()?;
    let is_text = reason.iter().all(|&b| is_field_text(b));
    is_text.then_some((*minor, status, reason))
}

/// A head with its announced length.
pub trait Head {
    fn fields(&self) -> &Fields;
}

impl Head for RequestHead {
    fn fields(&self) -> &Fields {
        &self.fields
    }
}

impl Head for ResponseHead {
    fn fields(&self) -> &Fields {
        &self.fields
    }
}

/// Parses the heads of one connection, and remembers the last one.
///
/// The heads that follow each other on a connection mostly differ in their Content-Length alone.
/// Such a head has the same meaning as the last one but for that number, and comparing two byte
/// strings is a tenth of the work of parsing one.
pub struct HeadMemo<H> {
    head: Option<Rc<H>>,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl<H> Default for HeadMemo<H> {
    fn default() -> Self {
        Self {
            head: None,
            before: Vec::new(),
            after: Vec::new(),
        }
    }
}

impl<H: Head> HeadMemo<H> {
    /// The head that `data` is, and the length that it announces for the body.
    ///
    /// # Errors
    ///
    /// Those of `parse`.
    pub fn read<E>(
        &mut self,
        data: &[u8],
        parse: fn(&[u8]) -> Result<H, E>,
    ) -> Result<(Rc<H>, Option<u64>), E> {
        if let Some(known) = self.recall(data) {
            return Ok(known);
        }
        let head = Rc::new(parse(data)?);
        let length = head.fields().content_length;
        self.remember(&head, data);
        Ok((head, length))
    }

    fn recall(&self, data: &[u8]) -> Option<(Rc<H>, Option<u64>)> {
        let head = self.head.as_ref()?;
        let digits = data
            .strip_prefix(self.before.as_slice())?
            .strip_suffix(self.after.as_slice())?;
        let length = match head.fields().content_length {
            None => {
                if !digits.is_empty() {
                    return None;
                }
                None
            }
            Some(_) => Some(plain_number(digits)?),
        };
        Some((Rc::clone(head), length))
    }

    fn remember(&mut self, head: &Rc<H>, data: &[u8]) {
        let cut = match head.fields().content_length {
            None => data.len()..data.len(),
            Some(_) => match length_digits(data) {
                Some(digits) => digits,
                None => return,
            },
        };
        self.before.clear();
        self.before.extend_from_slice(&data[..cut.start]);
        self.after.clear();
        self.after.extend_from_slice(&data[cut.end..]);
        self.head = Some(Rc::clone(head));
    }
}

/// Where the digits of the Content-Length field stand.
fn length_digits(data: &[u8]) -> Option<Range<usize>> {
    const NAME: &[u8] = b"content-length:";
    let mut at = memmem::find(data, b"\r\n")? + 2;
    loop {
        let line_end = at + memmem::find(&data[at..], b"\r\n")?;
        let line = &data[at..line_end];
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            let value = line[NAME.len()..].trim_ascii_start();
            let start = line_end - value.len();
            return Some(start..start + value.trim_ascii_end().len());
        }
        at = line_end + 2;
    }
}
