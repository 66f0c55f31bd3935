//! JSON as Python's standard library reads and writes it, so that both routers say the same.
//!
//! The texts of faults, the escapes, the spelling of numbers and the order of keys are those of
//! Python's `json`: what the two routers print about one configuration is equal to the byte.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

pub const MAX_DEPTH: usize = 500;

/// What is made of input that JSON itself leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Files of ours: a key that stands twice and NaN are faults.
    Exact,
    /// Answers of other programs: the last key wins, NaN and infinities become null.
    Lenient,
}

/// Why a text is no JSON value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    #[error("{message}: line {line} column {column} (char {at})")]
    Syntax {
        message: &'static str,
        line: usize,
        column: usize,
        at: usize,
    },
    #[error("key {0} stands twice in one object, keep one of them")]
    Twice(String),
    #[error("{0} is no JSON number, give a finite one")]
    NoNumber(&'static str),
    #[error("nested too deeply, give a flatter file")]
    TooDeep,
}

/// The JSON value that `text` is.
pub fn parse(text: &str, rules: Rules) -> Result<Value, JsonError> {
    let mut parser = Parser {
        text,
        bytes: text.as_bytes(),
        at: 0,
        rules,
    };
    if text.starts_with('\u{feff}') {
        return Err(parser.fault("Unexpected UTF-8 BOM (decode using utf-8-sig)", 0));
    }
    parser.blanks();
    let value = parser.value(0)?;
    parser.blanks();
    if parser.at < text.len() {
        return Err(parser.fault("Extra data", parser.at));
    }
    Ok(value)
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    rules: Rules,
}

impl Parser<'_> {
    fn fault(&self, message: &'static str, at: usize) -> JsonError {
        let before = &self.text[..at];
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        JsonError::Syntax {
            message,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            at: before.chars().count(),
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &str) -> bool {
        let found = self.bytes[self.at..].starts_with(word.as_bytes());
        self.at += if found { word.len() } else { 0 };
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, JsonError> {
        if depth > MAX_DEPTH {
            return Err(JsonError::TooDeep);
        }
        match self.peek() {
            Some(b'"') => self.string().map(Value::String),
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'n') if self.word("null") => Ok(Value::Null),
            Some(b't') if self.word("true") => Ok(Value::Bool(true)),
            Some(b'f') if self.word("false") => Ok(Value::Bool(false)),
            Some(b'N') if self.word("NaN") => self.no_number("NaN"),
            Some(b'I') if self.word("Infinity") => self.no_number("Infinity"),
            Some(b'-') if self.word("-Infinity") => self.no_number("-Infinity"),
            _ => self.number(),
        }
    }

    fn no_number(&self, word: &'static str) -> Result<Value, JsonError> {
        match self.rules {
            Rules::Exact => Err(JsonError::NoNumber(word)),
            Rules::Lenient => Ok(Value::Null),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, JsonError> {
        let mut pairs = Map::new();
        let mut twice = None;
        self.at += 1;
        self.blanks();
        while self.peek() != Some(b'}') || !pairs.is_empty() {
            if self.peek() != Some(b'"') {
                let message = "Expecting property name enclosed in double quotes";
                return Err(self.fault(message, self.at));
            }
            let key = self.string()?;
            self.blanks();
            if self.peek() != Some(b':') {
                return Err(self.fault("Expecting ':' delimiter", self.at));
            }
            self.at += 1;
            self.blanks();
            let value = self.value(depth + 1)?;
            if pairs.insert(key.clone(), value).is_some() && twice.is_none() {
                twice = Some(key);
            }
            if self.ends(b'}')? {
                break;
            }
        }
        self.at += 1;
        match twice {
            Some(key) if self.rules == Rules::Exact => Err(JsonError::Twice(quoted(&key))),
            _ => Ok(Value::Object(pairs)),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        let mut items = Vec::new();
        self.at += 1;
        self.blanks();
        while self.peek() != Some(b']') || !items.is_empty() {
            items.push(self.value(depth + 1)?);
            if self.ends(b']')? {
                break;
            }
        }
        self.at += 1;
        Ok(Value::Array(items))
    }

    /// After an item: true at `end`, which is not consumed; false behind a comma.
    fn ends(&mut self, end: u8) -> Result<bool, JsonError> {
        self.blanks();
        match self.peek() {
            Some(byte) if byte == end => Ok(true),
            Some(b',') => {
                self.at += 1;
                self.blanks();
                Ok(false)
            }
            _ => Err(self.fault("Expecting ',' delimiter", self.at)),
        }
    }

    fn digits(&self, mut at: usize) -> usize {
        while self.bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        let first = start + usize::from(self.peek() == Some(b'-'));
        let mut end = match self.bytes.get(first) {
            Some(b'0') => first + 1,
            Some(b'1'..=b'9') => self.digits(first),
            _ => return Err(self.fault("Expecting value", start)),
        };
        let whole = end;
        if self.bytes.get(end) == Some(&b'.') && self.digits(end + 1) > end + 1 {
            end = self.digits(end + 1);
        }
        if matches!(self.bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(self.bytes.get(end + 1), Some(b'+' | b'-')));
            let exponent = end + 1 + sign;
            if self.digits(exponent) > exponent {
                end = self.digits(exponent);
            }
        }
        self.at = end;
        let text = &self.text[start..end];
        if end == whole {
            return Ok(whole_number(text));
        }
        let value: f64 = text.parse().unwrap_or(f64::NAN);
        Ok(match self.rules {
            Rules::Lenient if !value.is_finite() => Value::Null,
            _ => decimal_number(value),
        })
    }

    fn string(&mut self) -> Result<String, JsonError> {
        let begin = self.at;
        let mut found = String::new();
        self.at += 1;
        loop {
            let rest = &self.bytes[self.at..];
            let stop = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..=0x1f);
            let Some(length) = rest.iter().position(stop) else {
                return Err(self.fault("Unterminated string starting at", begin));
            };
            found.push_str(&self.text[self.at..self.at + length]);
            self.at += length + 1;
            match rest[length] {
                b'"' => return Ok(found),
                b'\\' => found.push(self.escape(begin)?),
                _ => return Err(self.fault("Invalid control character at", self.at - 1)),
            }
        }
    }

    /// The character that an escape stands for; `at` is behind the backslash.
    fn escape(&mut self, begin: usize) -> Result<char, JsonError> {
        let backslash = self.at - 1;
        let Some(byte) = self.peek() else {
            return Err(self.fault("Unterminated string starting at", begin));
        };
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => self.unicode()?,
            _ => return Err(self.fault("Invalid \\escape: ", backslash)),
        })
    }

    /// The character after `\u`; half a surrogate pair, which Rust's text can't hold, is U+FFFD.
    fn unicode(&mut self) -> Result<char, JsonError> {
        let high = self.hex4(self.at)?;
        self.at += 4;
        if (0xd800..0xdc00).contains(&high) && self.bytes[self.at..].starts_with(b"\\u") {
            // A text that ends right behind the pair is no whole string anyway.
            let low = self.hex4(self.at + 2)?;
            if (0xdc00..0xe000).contains(&low) {
                self.at += 6;
                let joined = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(joined).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
        }
        Ok(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex4(&self, at: usize) -> Result<u32, JsonError> {
        let digits = self
            .bytes
            .get(at..at + 4)
            .filter(|_| at + 4 < self.bytes.len());
        digits
            .and_then(|digits| {
                digits.iter().try_fold(0, |sum, &digit| {
                    Some(16 * sum + char::from(digit).to_digit(16)?)
                })
            })
            .ok_or_else(|| self.fault("Invalid \\uXXXX escape", at - 1))
    }
}

/// A whole number of any size, given as digits with an optional sign.
pub fn whole_number(digits: &str) -> Value {
    let (sign, digits) = digits
        .strip_prefix('-')
        .map_or(("", digits), |rest| ("-", rest));
    let digits = digits.trim_start_matches('0');
    match digits {
        "" => Value::from(0),
        _ => Value::Number(Number::from_string_unchecked(format!("{sign}{digits}"))),
    }
}

/// A number with a fraction, also one that JSON can't write.
pub fn decimal_number(value: f64) -> Value {
    Value::Number(Number::from_string_unchecked(float_text(value)))
}

/// How much white space stands between items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `{"a": 1, "b": 2}`
    Spaced,
    /// `{"a":1,"b":2}`
    Compact,
    /// One item a line, two blanks a level, keys sorted.
    Indented,
}

/// `value` as JSON text in ASCII.
pub fn write(value: &Value, style: Style) -> String {
    let mut out = String::new();
    write_value(&mut out, value, style, 0);
    out
}

/// `value` as compact JSON in ASCII.
pub fn compact(value: &Value) -> String {
    write(value, Style::Compact)
}

fn write_value(out: &mut String, value: &Value, style: Style, level: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&number_text(number)),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => write_items(out, "[]", style, level, items.iter(), |out, item| {
            write_value(out, item, style, level + 1);
        }),
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            if style == Style::Indented {
                pairs.sort_unstable_by_key(|(key, _)| *key);
            }
            write_items(
                out,
                "{}",
                style,
                level,
                pairs.into_iter(),
                |out, (key, value)| {
                    write_string(out, key);
                    out.push_str(if style == Style::Compact { ":" } else { ": " });
                    write_value(out, value, style, level + 1);
                },
            );
        }
    }
}

fn write_items<T>(
    out: &mut String,
    brackets: &str,
    style: Style,
    level: usize,
    items: impl ExactSizeIterator<Item = T>,
    mut write_item: impl FnMut(&mut String, T),
) {
    let (open, close) = brackets.split_at(1);
    let (empty, indented) = (items.len() == 0, style == Style::Indented);
    let line_end = |out: &mut String, level: usize| {
        if indented {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", level));
        }
    };
    out.push_str(open);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(if style == Style::Spaced { ", " } else { "," });
        }
        line_end(out, level + 1);
        write_item(out, item);
    }
    if !empty {
        line_end(out, level);
    }
    out.push_str(close);
}

/// Append `text` as a JSON string in ASCII.
pub fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(char),
            _ => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

fn number_text(number: &Number) -> String {
    let text = number.to_string();
    if text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'-')
    {
        return text;
    }
    text.parse().map_or(text, float_text)
}

/// The shortest text that is read as the same number, as Python spells it: 1.0, 1e-05, 1e+16.
pub fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let text = format!("{value:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent
                .strip_prefix('-')
                .map_or(('+', exponent), |e| ('-', e));
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

/// The number with six significant digits and no needless zeros, as `%g` of Python and C.
pub fn general(value: f64) -> String {
    let text = format!("{value:.5e}");
    let Some((digits, exponent)) = text.split_once('e') else {
        return text;
    };
    let power: i32 = exponent.parse().unwrap_or(0);
    let shorten = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..6).contains(&power) {
        let places = usize::try_from(5 - power).unwrap_or(0);
        return shorten(&format!("{value:.places$}"));
    }
    let sign = if power < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", shorten(digits), power.abs())
}

/// `text` in quotes for a log line or a fault, control characters escaped, as Python's `repr`.
pub fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if char == quote => out.extend(['\\', char]),
            '\0'..='\u{1f}' | '\u{7f}'..='\u{a0}' | '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", u32::from(char));
            }
            '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(char));
            }
            _ => out.push(char),
        }
    }
    out.push(quote);
    out
}
