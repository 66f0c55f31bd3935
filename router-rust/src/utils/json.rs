//! JSON as Python's standard library reads and writes it, so that both routers say the same.
//!
//! The texts of faults, the escapes, the spelling of numbers and the order of keys are those of
//! Python's `json`: what the two routers print about one configuration is equal to the byte.

use std::fmt::Write as _;

use serde_json::{Number, Value};

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
    let mut writer = Writer {
        out: String::new(),
        style,
        level: 0,
    };
    writer.value(value);
    writer.out
}

/// `value` as compact JSON in ASCII.
pub fn compact(value: &Value) -> String {
    write(value, Style::Compact)
}

struct Writer {
    out: String,
    style: Style,
    level: usize,
}

impl Writer {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(flag) => self.out.push_str(if *flag { "true" } else { "false" }),
            Value::Number(number) => self.out.push_str(&number_text(number)),
            Value::String(text) => write_string(&mut self.out, text),
            Value::Array(items) => self.items(['[', ']'], items.iter(), Self::value),
            Value::Object(map) => {
                let mut pairs: Vec<_> = map.iter().collect();
                if self.style == Style::Indented {
                    pairs.sort_unstable_by_key(|(key, _)| *key);
                }
                self.items(['{', '}'], pairs.into_iter(), Self::pair);
            }
        }
    }

    fn pair(&mut self, (key, value): (&String, &Value)) {
        write_string(&mut self.out, key);
        let compact = self.style == Style::Compact;
        self.out.push_str(if compact { ":" } else { ": " });
        self.value(value);
    }

    fn items<T>(
        &mut self,
        [open, close]: [char; 2],
        items: impl ExactSizeIterator<Item = T>,
        write_item: fn(&mut Self, T),
    ) {
        let empty = items.len() == 0;
        self.out.push(open);
        self.level += 1;
        for (index, item) in items.enumerate() {
            if index > 0 {
                let spaced = self.style == Style::Spaced;
                self.out.push_str(if spaced { ", " } else { "," });
            }
            self.line_end();
            write_item(self, item);
        }
        self.level -= 1;
        if !empty {
            self.line_end();
        }
        self.out.push(close);
    }

    fn line_end(&mut self) {
        if self.style == Style::Indented {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n("  ", self.level));
        }
    }
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

/// Whether the text of a JSON number is that of a whole one.
pub fn is_whole(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn number_text(number: &Number) -> String {
    let text = number.to_string();
    if is_whole(&text) {
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
    let shorten = |text: &str| {
        let zeros = if text.contains('.') { &['0'][..] } else { &[] };
        text.trim_end_matches(zeros)
            .trim_end_matches('.')
            .to_owned()
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
