//! Header field rules: what ends at this hop and what the router writes itself (docs/HTTP.md).

/// RFC 9110 7.6.1: fields meant for one connection only. `Proxy-*` is matched by prefix.
pub const HOP_BY_HOP: [&[u8]; 8] = [
    b"connection",
    b"keep-alive",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"content-length",
    b"upgrade",
    b"http2-settings",
];
/// What a client may not claim unless it is a trusted proxy.
pub const FORWARDED: [&[u8]; 5] = [
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-real-ip",
];

/// Whether `byte` may stand in a token (RFC 9110 5.6.2).
pub const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Whether `byte` may stand in a field's value: no control byte but HTAB.
pub const fn is_field_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Whether a client's request id is taken over: 1 to 64 characters that are safe everywhere.
pub fn is_safe_request_id(value: &[u8]) -> bool {
    (1..=64).contains(&value.len())
        && value
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// The lower-case options of a `Connection` value; tokens that are none are left out.
pub fn connection_tokens(value: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    value
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty() && token.iter().all(|&b| is_token(b)))
        .map(<[u8]>::to_ascii_lowercase)
}

/// Makes request ids: 12 random characters for this thread, then a counter.
pub struct RequestIds {
    prefix: String,
    number: u64,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self {
            prefix: random_hex(6),
            number: 0,
        }
    }
}

impl RequestIds {
    /// A new id.
    pub fn next_id(&mut self) -> String {
        self.number += 1;
        format!("{}-{:x}", self.prefix, self.number)
    }
}

/// `count` random bytes as hexadecimal text.
pub fn random_hex(count: usize) -> String {
    let mut text = Vec::with_capacity(2 * count);
    for _ in 0..2 * count {
        push_hex(&mut text, u64::from(fastrand::u8(..16)));
    }
    String::from_utf8(text).unwrap_or_default()
}

/// Append the decimal digits of `number`.
pub fn push_decimal(out: &mut Vec<u8>, number: u64) {
    push_digits(out, number, 10);
}

/// Append the hexadecimal digits of `number`.
pub fn push_hex(out: &mut Vec<u8>, number: u64) {
    push_digits(out, number, 16);
}

fn push_digits(out: &mut Vec<u8>, mut number: u64, base: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[usize::try_from(number % base).unwrap_or(0)];
        number /= base;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_options_are_lower_case_tokens() {
        let found: Vec<_> = connection_tokens(b"Keep-Alive, X-A,, a b,foo@ ,\tc").collect();
        assert_eq!(
            found,
            [b"keep-alive".to_vec(), b"x-a".to_vec(), b"c".to_vec()]
        );
    }

    #[test]
    fn request_ids_differ_and_are_safe() {
        let mut ids = RequestIds::default();
        let (first, second) = (ids.next_id(), ids.next_id());
        assert_ne!(first, second);
        assert!(is_safe_request_id(first.as_bytes()));
        assert!(!is_safe_request_id(b""));
        assert!(!is_safe_request_id(b"a b"));
        assert!(!is_safe_request_id(&[b'a'; 65]));
    }

    #[test]
    fn numbers_are_written_as_the_wire_wants_them() {
        let mut out = Vec::new();
        for number in [0, 9, 10, u64::MAX] {
            push_decimal(&mut out, number);
            out.push(b' ');
            push_hex(&mut out, number);
            out.push(b' ');
        }
        assert_eq!(out, b"0 0 9 9 10 a 18446744073709551615 ffffffffffffffff ");
    }
}
