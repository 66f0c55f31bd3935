//! The request line, its target, and the host that it is meant for.

use memchr::{memchr, memmem};

use crate::proxy::fields::refused;
use crate::utils::errors::RouterError;
use crate::utils::headers::is_token;

const METHODS: [&[u8]; 7] = [
    b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS",
];
/// Method, target and minor version.
pub fn request_line(line: &[u8]) -> Result<(&[u8], &[u8], u8), RouterError> {
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
    Ok((method, target, *minor))
}

/// The authority and the rest of an `http://` target.
pub fn split_absolute(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let (scheme, rest) = target.split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"http://") {
        return None;
    }
    let ends = |b: &u8| matches!(b, b'/' | b'?' | b'#');
    let end = rest.iter().position(ends).unwrap_or(rest.len());
    (end > 0).then(|| rest.split_at(end))
}

/// Whether a segment is `.` or `..`, with any of its bytes escaped, or `%00` stands anywhere.
pub fn has_dot_segment(path: &[u8]) -> bool {
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

pub fn is_host(value: &[u8]) -> bool {
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
