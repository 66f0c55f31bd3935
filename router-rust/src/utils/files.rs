//! Files that people name: their paths and the JSON in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::utils::checks::{Checked, UnusableError, unusable};
use crate::utils::json::JsonError;
use crate::utils::json_parse::{Rules, parse};

/// The path without needless `/` and `.`.
pub fn plain_path(text: &str) -> PathBuf {
    let root = match text.bytes().take_while(|&byte| byte == b'/').count() {
        0 => "",
        2 => "//",
        _ => "/",
    };
    let parts = text
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    let path = root.to_owned() + &parts.collect::<Vec<_>>().join("/");
    PathBuf::from(if path.is_empty() { "." } else { &path })
}

/// The JSON value in `file`.
///
/// It is an error that it can't be read, is no JSON, or repeats a key; the text says where.
pub fn read_json(file: &Path) -> Checked<Value> {
    let bytes = fs::read(file).or_else(|error| unusable(unreadable(&error)))?;
    let text = String::from_utf8(bytes).or_else(|error| {
        let byte = error.utf8_error().valid_up_to();
        unusable(format!("not UTF-8 (byte {byte}), save it as UTF-8"))
    })?;
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    parse(&text, Rules::Exact).map_err(|error| match error {
        JsonError::Syntax {
            message,
            line,
            column,
            ..
        } => UnusableError(format!(
            "not JSON ({message}, line {line}, column {column}), correct it there"
        )),
        other => UnusableError(other.to_string()),
    })
}

/// Why a file can't be read, as a reason of a fault.
pub fn unreadable(error: &io::Error) -> String {
    format!("can't be read ({}), give a readable file", reason_of(error))
}

/// What the system says, without its number.
pub fn reason_of(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned()
}
