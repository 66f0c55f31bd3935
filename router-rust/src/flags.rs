//! The words of the command line -> the text of each flag.
//!
//! A small scan in place of a library, which would stop at the first unknown flag: all faults are
//! reported at once. The rules are those of Python's `argparse`, so that both routers take the same words.

use std::collections::HashMap;

use serde_json::Value;

use crate::config::{RouterConfig, Setting};
use crate::config_load::{Fault, all_settings};
use crate::utils::json::quoted;

/// The flags as they were given; of one given twice the last counts.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub help: bool,
    pub check_config: bool,
    pub config: Option<String>,
    pub static_services: Option<String>,
    pub threads: Option<String>,
    /// Name of the setting -> text.
    pub settings: HashMap<&'static str, String>,
    pub unknown: Vec<String>,
}

/// What a flag of this name does; None for names that are no flag.
enum Kind {
    Help,
    CheckConfig,
    Config,
    StaticServices,
    Threads,
    Setting(&'static Setting),
}

fn kind_of(name: &str) -> Option<Kind> {
    Some(match name {
        "-h" | "--help" => Kind::Help,
        "--check-config" => Kind::CheckConfig,
        "--config" => Kind::Config,
        "--static-services" => Kind::StaticServices,
        "--threads" => Kind::Threads,
        _ => Kind::Setting(all_settings().find(|setting| setting.flag() == name)?),
    })
}

/// Read the words behind the program's name. `--help` ends it, as does a flag without its value.
pub fn parse_flags(words: &[String]) -> Result<Flags, Fault> {
    let mut flags = Flags::default();
    let mut at = 0;
    while at < words.len() && words[at] != "--" && !flags.help {
        let word = &words[at];
        at += 1;
        let (name, attached) = match word.split_once('=') {
            Some((name, value)) if kind_of(word).is_none() => (name, Some(value)),
            _ => (word.as_str(), None),
        };
        let Some(kind) = kind_of(name).filter(|_| !is_value(word)) else {
            flags.unknown.push(word.clone());
            continue;
        };
        let value = match (&kind, attached) {
            (Kind::Help | Kind::CheckConfig, None) => "",
            (Kind::Help | Kind::CheckConfig, Some(value)) => {
                let shown = if name == "--check-config" {
                    name
                } else {
                    "-h/--help"
                };
                return Err(bad(
                    shown,
                    &format!("ignored explicit argument {}", quoted(value)),
                ));
            }
            (_, Some(value)) => value,
            (_, None) => {
                let next = words.get(at).filter(|next| is_value(next));
                at += 1;
                next.ok_or_else(|| bad(name, "expected one argument"))?
            }
        };
        flags.take(&kind, value);
    }
    if !flags.help {
        flags.unknown.extend_from_slice(&words[at..]);
    }
    Ok(flags)
}

impl Flags {
    fn take(&mut self, kind: &Kind, value: &str) {
        let text = value.to_owned();
        match kind {
            Kind::Help => self.help = true,
            Kind::CheckConfig => self.check_config = true,
            Kind::Config => self.config = Some(text),
            Kind::StaticServices => self.static_services = Some(text),
            Kind::Threads => self.threads = Some(text),
            Kind::Setting(setting) => _ = self.settings.insert(setting.name, text),
        }
    }
}

/// Whether a word can be the value of the flag before it.
fn is_value(word: &str) -> bool {
    if !word.starts_with('-') || word == "-" {
        return true;
    }
    let name = word.split('=').next().unwrap_or_default();
    if kind_of(word).is_some() || kind_of(name).is_some() || word == "--" {
        return false;
    }
    is_negative_number(word) || word.contains(' ')
}

/// `-5`, `-.5`, `-2.5`
fn is_negative_number(word: &str) -> bool {
    let digits = word.strip_prefix('-').unwrap_or_default();
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    all_digits(whole)
        && all_digits(fraction)
        && !fraction.is_empty()
        && (!whole.is_empty() || digits.contains('.'))
}

fn bad(name: &str, reason: &str) -> Fault {
    Fault::new(
        "flags",
        "",
        None,
        format!("argument {name}: {reason}, see --help"),
    )
}

/// What `--help` prints.
pub fn help() -> String {
    let defaults = RouterConfig::default();
    let own = [
        (
            "-h, --help".to_owned(),
            "show this help message and exit".to_owned(),
        ),
        (
            "--config FILE".to_owned(),
            "JSON file with settings and static services".to_owned(),
        ),
        (
            "--static-services FILE".to_owned(),
            "JSON file with services to route to for ever".to_owned(),
        ),
        (
            "--check-config".to_owned(),
            "print the effective settings and exit".to_owned(),
        ),
        (
            "--threads X".to_owned(),
            format!(
                "threads that serve requests (default: processors, here {})",
                defaults.threads
            ),
        ),
    ];
    let settings = all_settings().map(|setting| {
        let shown = match (setting.show)(&defaults) {
            Value::Null => String::new(),
            Value::Array(items) if items.is_empty() => String::new(),
            Value::String(text) => format!(" (default: {text})"),
            value => format!(" (default: {})", crate::utils::json::compact(&value)),
        };
        (
            format!("{} X", setting.flag()),
            format!("{}{shown}", setting.about),
        )
    });
    let lines: Vec<_> = own
        .into_iter()
        .chain(settings)
        .map(|(flag, about)| format!("  {flag}\n{:24}{about}\n", ""))
        .collect();
    format!(
        "usage: infini-router [FLAGS]\n\n\
         One OpenAI-compatible endpoint in front of many engines.\n\n\
         options:\n{}\n\
         Times are seconds, fractions allowed. Flags win over the environment\n\
         (PROXY_TIMEOUT_SECONDS, CACHE_TYPE_ROUTING_THRESHOLD), the environment over the file.\n",
        lines.concat()
    )
}
