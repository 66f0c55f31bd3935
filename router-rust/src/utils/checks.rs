//! Checks that turn raw values of flags, variables and JSON files into typed ones.
//!
//! A check takes a JSON value and returns the typed one, or an error with a text that says what is
//! wrong and what to give instead.

use std::marker::PhantomData;
use std::path::PathBuf;

use serde_json::Value;

use crate::utils::files::plain_path;
use crate::utils::json;
use crate::utils::network::Network;

pub const MAX_PORT: i64 = 65535;
/// Its babysitter listens on the port after it.
pub const MAX_ENGINE_PORT: i64 = 65534;
pub const DAY: f64 = 86400.0;

/// A value can't be used; the text says why and what to give instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnusableError(pub String);

pub type Checked<T> = Result<T, UnusableError>;

pub(crate) fn unusable<T>(reason: impl Into<String>) -> Checked<T> {
    Err(UnusableError(reason.into()))
}

/// How one setting is read: from a JSON value, from text, and back to JSON for display.
pub trait Check {
    type Typed;

    fn read(&self, value: &Value) -> Checked<Self::Typed>;

    /// The JSON value that the text of a flag or variable stands for.
    fn value_of(&self, text: &str) -> Value {
        Value::from(text)
    }

    fn to_json(&self, typed: &Self::Typed) -> Value;
}

/// A whole number, as the type `T` that the setting has.
#[derive(Clone, Copy, Debug)]
pub struct Whole<T> {
    low: i64,
    high: i64,
    typed: PhantomData<T>,
}

/// A whole number from `low` to `high`, a range that must fit into `T`.
pub const fn whole<T>(low: i64, high: i64) -> Whole<T> {
    Whole {
        low,
        high,
        typed: PhantomData,
    }
}

impl<T: TryFrom<i64> + Copy + Into<u64>> Check for Whole<T> {
    type Typed = T;

    fn read(&self, value: &Value) -> Checked<T> {
        let (low, high) = (self.low, self.high);
        let digits = match value {
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        if !json::is_whole(&digits) {
            return unusable(format!("not a whole number, give one from {low} to {high}"));
        }
        let number: Option<i64> = digits.parse().ok();
        let within = number.filter(|number| (low..=high).contains(number));
        within
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                UnusableError(format!(
                    "out of range, give a whole number from {low} to {high}"
                ))
            })
    }

    fn value_of(&self, text: &str) -> Value {
        number_from_text(text)
    }

    fn to_json(&self, typed: &T) -> Value {
        Value::from((*typed).into())
    }
}

/// A number from `low` to `high`, fractions allowed.
#[derive(Clone, Copy, Debug)]
pub struct Decimal {
    low: f64,
    high: f64,
    unit: &'static str,
}

/// A number of `unit` from `low` to `high`, fractions allowed.
pub const fn decimal(low: f64, high: f64, unit: &'static str) -> Decimal {
    Decimal { low, high, unit }
}

/// A time in seconds, from `low` to a day.
pub const fn seconds(low: f64) -> Decimal {
    decimal(low, DAY, "seconds")
}

/// The least time that makes sense for most settings.
pub const LEAST: f64 = 0.01;

impl Check for Decimal {
    type Typed = f64;

    fn read(&self, value: &Value) -> Checked<f64> {
        let (low, high) = (json::general(self.low), json::general(self.high));
        let unit = self.unit;
        let Some(number) = float_of(value) else {
            return unusable(format!(
                "not a number, give {unit} from {low} to {high}, such as 2.5"
            ));
        };
        if !(self.low..=self.high).contains(&number) {
            return unusable(format!("out of range, give {unit} from {low} to {high}"));
        }
        Ok(number)
    }

    fn value_of(&self, text: &str) -> Value {
        number_from_text(text)
    }

    fn to_json(&self, typed: &f64) -> Value {
        json::decimal_number(*typed)
    }
}

/// One of a few words.
#[derive(Clone, Copy, Debug)]
pub struct OneOf {
    choices: &'static [&'static str],
    aliases: &'static [(&'static str, &'static str)],
}

/// One of the words `choices`; an alias is read as the word it stands for.
pub const fn one_of(
    choices: &'static [&'static str],
    aliases: &'static [(&'static str, &'static str)],
) -> OneOf {
    OneOf { choices, aliases }
}

impl Check for OneOf {
    type Typed = &'static str;

    fn read(&self, value: &Value) -> Checked<&'static str> {
        let choices = self.choices.iter().map(|&word| (word, word));
        let known: Vec<_> = choices.chain(self.aliases.iter().copied()).collect();
        let found = known.iter().find(|(word, _)| value.as_str() == Some(word));
        found.map(|&(_, meant)| meant).ok_or_else(|| {
            let words: Vec<_> = known.iter().map(|&(word, _)| word).collect();
            UnusableError(format!("not known, give one of {}", words.join(", ")))
        })
    }

    fn to_json(&self, typed: &&'static str) -> Value {
        Value::from(*typed)
    }
}

/// A list (in text: separated by commas) of values that `C` reads; each is kept once.
#[derive(Clone, Copy, Debug)]
pub struct Many<C>(pub C);

impl<C: Check<Typed: PartialEq>> Check for Many<C> {
    type Typed = Vec<C::Typed>;

    fn read(&self, value: &Value) -> Checked<Self::Typed> {
        let split = value.as_str().map(list_from_text);
        let Some(items) = split.as_ref().unwrap_or(value).as_array() else {
            return unusable("not a list, give a list or text separated by commas");
        };
        let mut found = Vec::new();
        for item in items {
            let item = self.0.read(item)?;
            if !found.contains(&item) {
                found.push(item);
            }
        }
        Ok(found)
    }

    fn value_of(&self, text: &str) -> Value {
        list_from_text(text)
    }

    fn to_json(&self, typed: &Self::Typed) -> Value {
        typed.iter().map(|item| self.0.to_json(item)).collect()
    }
}

/// A value that is text, shown as it is.
#[derive(Clone, Copy, Debug)]
pub struct Text(pub fn(&Value) -> Checked<String>);

impl Check for Text {
    type Typed = String;

    fn read(&self, value: &Value) -> Checked<String> {
        (self.0)(value)
    }

    fn to_json(&self, typed: &String) -> Value {
        Value::from(typed.as_str())
    }
}

/// A network in CIDR form; a plain address is the network of that address alone.
#[derive(Clone, Copy, Debug)]
pub struct Cidr;

impl Check for Cidr {
    type Typed = Network;

    fn read(&self, value: &Value) -> Checked<Network> {
        let network = value.as_str().and_then(|text| text.parse().ok());
        network.ok_or_else(|| {
            UnusableError("not a network, give CIDR form such as 10.0.0.0/8".to_owned())
        })
    }

    fn to_json(&self, typed: &Network) -> Value {
        Value::from(typed.to_string())
    }
}

/// A file or folder; "", "none" and null mean none.
#[derive(Clone, Copy, Debug)]
pub struct FilePath;

impl Check for FilePath {
    type Typed = Option<PathBuf>;

    fn read(&self, value: &Value) -> Checked<Option<PathBuf>> {
        match value {
            Value::Null => Ok(None),
            Value::String(word) if word.is_empty() || word == "none" => Ok(None),
            _ => Ok(Some(plain_path(&text(value)?))),
        }
    }

    fn to_json(&self, typed: &Option<PathBuf>) -> Value {
        typed
            .as_ref()
            .map_or(Value::Null, |path| Value::from(path.to_string_lossy()))
    }
}

/// The number that `text` spells, with blanks around it and `_` between digits; else the text.
fn number_from_text(text: &str) -> Value {
    let trimmed = text.trim();
    let apart = |at: usize| {
        let digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
        let bytes = trimmed.as_bytes();
        at > 0 && digit(bytes.get(at - 1)) && digit(bytes.get(at + 1))
    };
    if !trimmed.is_ascii() || trimmed.match_indices('_').any(|(at, _)| !apart(at)) {
        return Value::from(text);
    }
    let plain = trimmed.replace('_', "");
    let digits = plain.strip_prefix(['+', '-']).unwrap_or(&plain);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return json::whole_number(plain.trim_start_matches('+'));
    }
    plain
        .parse()
        .map_or_else(|_| Value::from(text), json::decimal_number)
}

fn list_from_text(text: &str) -> Value {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect()
}

fn float_of(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// The value of a finite JSON number (true and false are none).
pub fn number(value: &Value) -> Option<f64> {
    float_of(value).filter(|number| number.is_finite())
}

/// Seconds as a number or as nginx writes them: "30s", "500ms", "1m".
pub fn nginx_seconds(value: &Value) -> Checked<f64> {
    let read = match value.as_str() {
        Some(text) => nginx_time(text).map(json::decimal_number),
        None => Some(value.clone()),
    };
    read.and_then(|value| seconds(LEAST).read(&value).ok())
        .ok_or_else(|| {
            let hint = "give seconds such as 30 or text such as \"30s\"";
            UnusableError(format!("not a time over 0, {hint}"))
        })
}

fn nginx_time(text: &str) -> Option<f64> {
    let end = text
        .find(|char: char| !char.is_ascii_digit() && char != '.')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let whole = !digits.starts_with('.') && !digits.ends_with('.');
    digits
        .parse::<f64>()
        .ok()
        .filter(|_| whole)
        .map(|number| number * factor)
}

/// Text without control characters, not empty. It may end up in header fields and log lines.
pub fn text(value: &Value) -> Checked<String> {
    let breaks = |char: char| char.is_control() || matches!(char, '\u{2028}' | '\u{2029}');
    match value.as_str() {
        Some(text) if !text.is_empty() && !text.contains(breaks) => Ok(text.to_owned()),
        _ => unusable("not usable text, give text without control characters"),
    }
}

/// A name that may stand in a header field: printable ASCII, no blanks at its ends.
pub fn service_name(value: &Value) -> Checked<String> {
    let fine = |text: &&str| {
        (1..=200).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
            && text.trim() == *text
    };
    value
        .as_str()
        .filter(fine)
        .map(str::to_owned)
        .ok_or_else(|| {
            UnusableError("not a usable name, give 1 to 200 printable ASCII characters".to_owned())
        })
}

/// A host name or IP address, without scheme, port or brackets.
pub fn host(value: &Value) -> Checked<String> {
    let text = value.as_str().unwrap_or_default();
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let address = |byte: u8| byte.is_ascii_hexdigit() || b":.".contains(&byte);
    let fine = !text.is_empty() && text.bytes().all(name)
        || text.contains(':') && text.bytes().all(address);
    if !fine {
        return unusable("not a host, give a name or IP address without scheme and port");
    }
    Ok(text.to_owned())
}

/// The port of an engine.
pub fn port(value: &Value) -> Checked<u16> {
    whole(1, MAX_ENGINE_PORT).read(value)
}

/// True or false, nothing else.
pub fn boolean(value: &Value) -> Checked<bool> {
    let reason = "not a boolean, give true or false";
    value.as_bool().ok_or_else(|| UnusableError(reason.into()))
}

/// The start of a URL path.
pub fn path_prefix(value: &Value) -> Checked<String> {
    let fine = |text: &&str| {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'?' && byte != b'#';
        text.starts_with('/') && text.bytes().all(plain)
    };
    value
        .as_str()
        .filter(fine)
        .map(str::to_owned)
        .ok_or_else(|| {
            let hint = "give one that starts with /, such as /v2/";
            UnusableError(format!("not a path prefix, {hint}"))
        })
}
