//! HTTP/1.1 heads of requests and responses, by the rules of docs/HTTP.md.
//!
//! Field lines go through httparse; what it lets pass and the rules forbid is refused here.
//! Nothing here does input or output.

use std::cell::OnceCell;

use crate::proxy::fields::{
    Fields, UNCLEAN, for_each_field, line_ends_are_clean, plain_number, refused, split_first_line,
};
use crate::proxy::memo::Head;
use crate::proxy::target::{has_dot_segment, is_host, request_line, split_absolute};
use crate::router::engine::BUSY_DEFAULT;
use crate::utils::errors::RouterError;
use crate::utils::headers::{FORWARDED, HOP_BY_HOP, is_field_text, is_safe_request_id};

pub const MAX_REQUEST_HEAD: usize = 16 * 1024;
pub const MAX_REQUEST_FIELDS: usize = 100;
pub const MAX_TARGET: usize = 8 * 1024;
pub const MAX_RESPONSE_HEAD: usize = 64 * 1024;
pub const MAX_RESPONSE_FIELDS: usize = 200;
/// One text for both, or it would depend on how much of a head came at once.
pub const MALFORMED: &str = "malformed status line, or lines that do not end with CRLF";
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
    /// Than 100-continue.
    expects_more: bool,
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
            b"expect" => self.expects_more = true,
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
        if self.expects_more {
            let text = "the only expectation that can be met is 100-continue";
            return Err(refused(text, 417));
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

/// An engine's response head that follows the rules.
#[derive(Debug, Default)]
pub struct ResponseHead {
    pub fields: Fields,
    pub status: u16,
    /// One that can be read: of a compressed one nothing can be told, nor anything added to it.
    pub event_stream: bool,
    /// `X-Accel-Buffering` stands in it.
    pub has_buffering: bool,
    /// `Cache-Control` stands in it.
    pub has_caching: bool,
    /// Seconds; a date counts as "soon", since clocks differ.
    pub retry_after: Option<f64>,
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
            b"retry-after" => self.retry_after = Some(seconds_of(value).unwrap_or(BUSY_DEFAULT)),
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

fn seconds_of(value: &[u8]) -> Option<f64> {
    let digits = std::str::from_utf8(value.trim_ascii()).ok()?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
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
        return Err(Broken(MALFORMED.into()));
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
    let (mut passed, mut encoded) = (Vec::new(), false);
    for_each_field(fields, MAX_RESPONSE_FIELDS, |low, name, value| {
        encoded |= low == b"content-encoding" && is_encoding(value);
        if head.on_field(low, value)? {
            passed.push((name, value));
        }
        Ok(())
    })?;
    head.event_stream &= !encoded;
    let mut line = format!("HTTP/1.1 {} ", head.status).into_bytes();
    line.extend_from_slice(reason);
    line.extend_from_slice(b"\r\n");
    head.fields.end(line, &passed)
}

/// Whether a body of this `Content-Encoding` is not what its type says.
fn is_encoding(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    !value.is_empty() && !value.eq_ignore_ascii_case(b"identity")
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
