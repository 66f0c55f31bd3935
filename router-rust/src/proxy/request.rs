//! What a request asks for, found by one scan over the top level of its JSON body.
//!
//! Nothing is unescaped and nothing is built: the scan walks the members of the outermost object,
//! notes where the few values stand that routing needs, and skips the rest. The last of duplicate
//! keys wins, as in JSON parsers. What is not JSON, or breaks off, is not the router's business:
//! the facts found until then hold, and the engine gives its verdict on the body.

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr, memmem};

use crate::proxy::heads::{RequestHead, SESSION_FIELDS};
use crate::router::selection::Request;
use crate::utils::errors::{Code, RouterError};

/// Members of the outermost object; more can only be an attack.
pub const MAX_MEMBERS: usize = 4096;
/// Bytes of the prompt that a request without a session key is known by.
pub const PROMPT_HEAD: usize = 1024;
/// Places in a form that look like the field.
const MAX_FORM_TRIES: usize = 16;
/// Bytes of its value.
const MAX_FORM_MODEL: usize = 1024;
const MAX_BOUNDARY: usize = 70;

/// Where a value stands in the body.
pub type Span = Range<usize>;

/// The members that routing looks at (routing.md calls the text of the prompt T).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub model: Option<Span>,
    pub stream: Option<Span>,
    pub prompt_cache_key: Option<Span>,
    pub user: Option<Span>,
    pub messages: Option<Span>,
    pub prompt: Option<Span>,
    pub input: Option<Span>,
}

impl Found {
    /// Where the span of `key` is kept, None for a key that nobody wants.
    fn slot(&mut self, key: &[u8]) -> Option<&mut Option<Span>> {
        Some(match key {
            b"model" => &mut self.model,
            b"stream" => &mut self.stream,
            b"prompt_cache_key" => &mut self.prompt_cache_key,
            b"user" => &mut self.user,
            b"messages" => &mut self.messages,
            b"prompt" => &mut self.prompt,
            b"input" => &mut self.input,
            _ => return None,
        })
    }
}

/// What `head` and `body` ask for; `client` is the address of who asks.
///
/// # Errors
///
/// `invalid_request` when the model's name is no string or the body has more than `MAX_MEMBERS`
/// top-level members.
pub fn read_request(head: &RequestHead, body: &[u8], client: &str) -> Result<Request, RouterError> {
    let mut request = Request {
        client: client.to_owned(),
        ..Request::default()
    };
    if !body.is_empty() {
        if is_form(&head.content_type) {
            request.model = form_model(&head.content_type, body);
        } else {
            read_json(&mut request, body)?;
        }
    }
    if request.model.is_none() {
        request.model = query_model(head.query());
    }
    let of = |name: &&[u8]| head.session.iter().find(|(found, _)| found == name);
    let session = SESSION_FIELDS
        .iter()
        .filter_map(of)
        .find(|(_, value)| !value.is_empty());
    if let Some((_, value)) = session {
        request.key = Some(value.clone());
    }
    Ok(request)
}

fn is_form(content_type: &[u8]) -> bool {
    let kind = content_type.get(..19).unwrap_or(b"");
    kind.eq_ignore_ascii_case(b"multipart/form-data")
}

fn read_json(request: &mut Request, body: &[u8]) -> Result<(), RouterError> {
    let found = scan(body)?;
    if let Some(model) = found.model {
        request.model = model_name(&body[model])?;
    }
    request.stream = found.stream.is_some_and(|span| &body[span] == b"true");
    if let Some(span) = found.messages.or(found.prompt).or(found.input) {
        request.prompt = body[span.start..span.end.min(span.start + PROMPT_HEAD)].to_vec();
        request.prompt_bytes = span.len();
    }
    let is_text = |span: &Span| span.len() > 2 && body[span.start] == b'"';
    let mut keys = [found.prompt_cache_key, found.user].into_iter().flatten();
    request.key = keys
        .find(is_text)
        .map(|span| body[span.start + 1..span.end - 1].to_vec());
    Ok(())
}

fn model_name(raw: &[u8]) -> Result<Option<String>, RouterError> {
    let fault = |text: &str| RouterError::new(Code::InvalidRequest, text).with_param("model");
    if raw == b"null" {
        return Ok(None);
    }
    if raw.first() != Some(&b'"') {
        return Err(fault("model must be a string"));
    }
    let name = text_of(raw).ok_or_else(|| fault("model is not a valid JSON string"))?;
    Ok(Some(name.into_owned()).filter(|name| !name.is_empty()))
}

/// The text of a quoted JSON string; None when its escapes are wrong.
fn text_of(raw: &[u8]) -> Option<Cow<'_, str>> {
    let inner = &raw[1..raw.len() - 1];
    if memchr(b'\\', inner).is_none() {
        return Some(String::from_utf8_lossy(inner));
    }
    unescaped(std::str::from_utf8(inner).ok()?).map(Cow::Owned)
}

/// A JSON string without its escapes. Half of a surrogate pair becomes U+FFFD.
fn unescaped(text: &str) -> Option<String> {
    let mut units = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            units.extend_from_slice(char.encode_utf16(&mut [0; 2]));
            continue;
        }
        let unit = match chars.next()? {
            escape @ ('"' | '\\' | '/') => escape as u16,
            'b' => 8,
            'f' => 12,
            'n' => 10,
            'r' => 13,
            't' => 9,
            'u' => {
                let digits = chars.as_str().get(..4)?;
                if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return None;
                }
                chars = chars.as_str()[4..].chars();
                u16::from_str_radix(digits, 16).ok()?
            }
            _ => return None,
        };
        units.push(unit);
    }
    Some(String::from_utf16_lossy(&units))
}

/// The form field `model` (RFC 7578); files, which may be large, are only searched.
fn form_model(content_type: &[u8], body: &[u8]) -> Option<String> {
    let mut delimiter = b"\r\n--".to_vec();
    delimiter.extend_from_slice(boundary(content_type)?);
    let names = memmem::find_iter(body, b"name=").filter(|&at| names_model(&body[at..]));
    for at in names.take(MAX_FORM_TRIES) {
        let Some(part) = memmem::rfind(&body[..at], &delimiter[2..]) else {
            continue;
        };
        let in_fields = memmem::find(&body[part..at], b"\r\n\r\n").is_none();
        let Some(fields_end) = memmem::find(&body[at..], b"\r\n\r\n") else {
            continue;
        };
        let start = at + fields_end + 4;
        let window = &body[start..body.len().min(start + MAX_FORM_MODEL)];
        let end = memmem::find(window, &delimiter);
        if let (true, b' ' | b';', Some(end)) = (in_fields, body[at - 1], end) {
            let model = String::from_utf8_lossy(&window[..end]).into_owned();
            return Some(model).filter(|model| !model.is_empty());
        }
    }
    None
}

/// Whether text that starts with `name=` goes on with `model`.
fn names_model(text: &[u8]) -> bool {
    let value = &text[b"name=".len()..];
    value.starts_with(b"\"model\"")
        || (value.starts_with(b"model") && matches!(value.get(5), Some(b';' | b'\r' | b' ')))
}

/// The boundary of a form, from its content type.
fn boundary(content_type: &[u8]) -> Option<&[u8]> {
    let low = content_type.to_ascii_lowercase();
    memmem::find_iter(&low, b"boundary=").find_map(|at| {
        let value = &content_type[at + b"boundary=".len()..];
        let (value, length) = match value.strip_prefix(b"\"") {
            Some(quoted) => (quoted, memchr(b'"', quoted)?),
            None => (value, plain_length(value)),
        };
        (1..=MAX_BOUNDARY)
            .contains(&length)
            .then(|| &value[..length])
    })
}

fn plain_length(value: &[u8]) -> usize {
    let ends = |b: &u8| matches!(b, b'"' | b';') || matches!(b, b' ' | 9..=13);
    let length = value.iter().position(ends).unwrap_or(value.len());
    length.min(MAX_BOUNDARY)
}

/// The first `model=` of a query, decoded.
fn query_model(query: &str) -> Option<String> {
    let raw = query
        .split('&')
        .find_map(|part| part.strip_prefix("model="))?;
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = (*first == b'%').then(|| after.get(..2)).flatten();
        let code = escaped.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(if *first == b'+' { b' ' } else { *first });
            rest = after;
        }
    }
    let model = String::from_utf8_lossy(&bytes).into_owned();
    Some(model).filter(|model| !model.is_empty())
}

/// Where the wanted members of a JSON object stand.
///
/// # Errors
///
/// `invalid_request` when there are more than `MAX_MEMBERS` members.
pub fn scan(body: &[u8]) -> Result<Found, RouterError> {
    let mut found = Found::default();
    let mut at = skip_blanks(body, 0);
    if body.get(at) != Some(&b'{') {
        return Ok(found);
    }
    at += 1;
    for _ in 0..MAX_MEMBERS {
        let Some((key, value)) = member(body, at) else {
            return Ok(found);
        };
        at = skip_blanks(body, value.end);
        note(&mut found, &body[key], value);
        if body.get(at) != Some(&b',') {
            return Ok(found);
        }
        at += 1;
    }
    let text = format!("the body has more than {MAX_MEMBERS} top-level members");
    Err(RouterError::new(Code::InvalidRequest, text))
}

fn note(found: &mut Found, key: &[u8], value: Span) {
    let plain = &key[1..key.len() - 1];
    let slot = if memchr(b'\\', plain).is_none() {
        found.slot(plain)
    } else {
        text_of(key).and_then(|key| found.slot(key.as_bytes()))
    };
    if let Some(slot) = slot {
        *slot = Some(value);
    }
}

/// The member at `at`: where its quoted key and its value stand.
fn member(body: &[u8], at: usize) -> Option<(Span, Span)> {
    let start = skip_blanks(body, at);
    if body.get(start) != Some(&b'"') {
        return None;
    }
    let end = string_end(body, start)?;
    let colon = skip_blanks(body, end);
    if body.get(colon) != Some(&b':') {
        return None;
    }
    let value = skip_blanks(body, colon + 1);
    Some((start..end, value..value_end(body, value)?))
}

fn skip_blanks(body: &[u8], at: usize) -> usize {
    let is_blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
    let rest = &body[at..];
    at + rest.iter().position(|b| !is_blank(b)).unwrap_or(rest.len())
}

/// Where the value at `at` ends, None when it does not.
fn value_end(body: &[u8], at: usize) -> Option<usize> {
    match body.get(at)? {
        b'"' => string_end(body, at),
        b'{' | b'[' => container_end(body, at),
        _ => {
            let rest = &body[at..];
            let ends = |b: &u8| {
                matches!(
                    b,
                    b' ' | b'\t' | b'\r' | b'\n' | b',' | b'}' | b']' | b'[' | b'{' | b'"'
                )
            };
            let length = rest.iter().position(ends).unwrap_or(rest.len());
            (length > 0).then_some(at + length)
        }
    }
}

/// Behind the closing quote of the string that opens at `at`, None without one.
///
/// One search for each quote; the backslashes before it tell whether it is escaped.
fn string_end(body: &[u8], at: usize) -> Option<usize> {
    let start = at + 1;
    let mut from = start;
    loop {
        let quote = from + memchr(b'"', &body[from..])?;
        let before = body[start..quote].iter().rev();
        if before.take_while(|&&b| b == b'\\').count() % 2 == 0 {
            return Some(quote + 1);
        }
        from = quote + 1;
    }
}

/// Behind the bracket that closes the one at `at`, by counting brackets outside strings.
fn container_end(body: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    loop {
        match body.get(at)? {
            b'"' => {
                at = string_end(body, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}
