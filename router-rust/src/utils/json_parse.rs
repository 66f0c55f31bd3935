//! Reading JSON with the texts of faults that Python's `json` has.

use serde_json::{Map, Value};

use crate::utils::json::{JsonError, decimal_number, quoted, whole_number};

/// As deep as Python's reader goes.
pub const MAX_DEPTH: usize = 1000;

/// What is made of input that JSON itself leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Files of ours: a key that stands twice and NaN are faults.
    Exact,
    /// Answers of other programs: the last key wins, NaN and infinities become null.
    Lenient,
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
            _ => return Err(self.fault("Invalid \\escape", backslash)),
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
