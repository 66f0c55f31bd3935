//! The words of the command line -> the text of each flag.
//!
//! clap stops at the first fault; here all are found at once. So values stay text until they are
//! checked with the rest of the configuration, and words that are no flag are taken out one by one.

use std::collections::HashMap;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

use crate::config::{RouterConfig, Setting};
use crate::config_load::{Fault, all_settings};
use crate::utils::json::compact;

const CHECK_CONFIG: &str = "check-config";
const TAKE_OVER: &str = "take-over";
const CONFIG: &str = "config";
const STATIC_SERVICES: &str = "static-services";
const THREADS: &str = "threads";
/// Takes the place of a word that is no flag, so that the words around it keep their meaning.
/// No word of a command line can hold a NUL.
const UNKNOWN: &str = "\0";

/// The flags as they were given; of one given twice the last counts.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub help: bool,
    pub check_config: bool,
    pub take_over: bool,
    pub config: Option<String>,
    pub static_services: Option<String>,
    pub threads: Option<String>,
    /// Name of the setting -> text.
    pub settings: HashMap<&'static str, String>,
    pub faults: Vec<Fault>,
}

/// Read the words behind the program's name. `--help` ends it.
pub fn parse_flags(words: &[String]) -> Flags {
    let end = words.iter().position(|word| word == "--");
    let (words, rest) = words.split_at(end.unwrap_or(words.len()));
    let mut words = words.to_vec();
    let mut unknown = Vec::new();
    while let Some(at) = first_unknown(&words) {
        unknown.push(std::mem::replace(&mut words[at], format!("--{UNKNOWN}")));
    }
    let reason = "unknown, see --help for the flags";
    let mut flags = Flags::default();
    for word in unknown.iter().chain(rest) {
        flags.faults.push(Fault::new("flags", word, None, reason));
    }
    match command().try_get_matches_from(&words) {
        Ok(matches) => flags.take(&matches),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => flags.help = true,
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let reason = format!("{}, see --help", line.trim_start_matches("error: "));
            flags.faults.push(Fault::new("flags", "", None, reason));
        }
    }
    flags
}

/// Where the first word stands that belongs to no flag: the last of the shortest start with one.
fn first_unknown(words: &[String]) -> Option<usize> {
    (0..words.len()).find(|&last| {
        let start = command().try_get_matches_from(&words[..=last]);
        start.is_err_and(|error| error.kind() == ErrorKind::UnknownArgument)
    })
}

impl Flags {
    fn take(&mut self, matches: &ArgMatches) {
        self.check_config = matches.get_flag(CHECK_CONFIG);
        self.take_over = matches.get_flag(TAKE_OVER);
        self.config = self.text(matches, CONFIG, "--config");
        self.static_services = self.text(matches, STATIC_SERVICES, "--static-services");
        self.threads = self.text(matches, THREADS, "--threads");
        for setting in all_settings() {
            if let Some(text) = self.text(matches, setting.name, &setting.flag()) {
                self.settings.insert(setting.name, text);
            }
        }
    }

    /// The text of one flag; that it stands without one is a fault.
    fn text(&mut self, matches: &ArgMatches, id: &str, flag: &str) -> Option<String> {
        let text = matches.get_one::<String>(id).cloned();
        if text.is_none() && matches.value_source(id) == Some(ValueSource::CommandLine) {
            let reason = "give a value, see --help";
            self.faults.push(Fault::new("flags", flag, None, reason));
        }
        text
    }
}

fn command() -> Command {
    let threads = format!(
        "threads that serve requests (default: processors, here {})",
        RouterConfig::default().threads
    );
    Command::new("infini-router")
        .no_binary_name(true)
        .args_override_self(true)
        .next_line_help(true)
        .about("One OpenAI-compatible endpoint in front of many engines.")
        .after_help(
            "Times are seconds, fractions allowed. Flags win over the environment\n\
             (PROXY_TIMEOUT_SECONDS, CACHE_TYPE_ROUTING_THRESHOLD), the environment over the file.",
        )
        .arg(
            Arg::new(CHECK_CONFIG)
                .long(CHECK_CONFIG)
                .action(ArgAction::SetTrue)
                .help("print the effective settings and exit"),
        )
        .arg(
            Arg::new(TAKE_OVER)
                .long(TAKE_OVER)
                .action(ArgAction::SetTrue)
                .help("take over the port of the router that runs with the same --handover"),
        )
        .arg(
            Arg::new(UNKNOWN)
                .long(UNKNOWN)
                .action(ArgAction::Count)
                .hide(true),
        )
        .arg(text_flag(CONFIG, "FILE").help("JSON file with settings and static services"))
        .arg(
            text_flag(STATIC_SERVICES, "FILE").help("JSON file with services to route to for ever"),
        )
        .arg(text_flag(THREADS, "X").help(threads))
        .args(all_settings().map(setting_flag))
}

/// A flag with one value; none is let pass here, so that it can be told with all other faults.
fn text_flag(name: &'static str, value: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .num_args(0..=1)
        .allow_negative_numbers(true)
}

fn setting_flag(setting: &'static Setting) -> Arg {
    let flag = setting.flag();
    let shown = match (setting.show)(&RouterConfig::default()) {
        Value::Null => String::new(),
        Value::Array(items) if items.is_empty() => String::new(),
        Value::String(text) => format!(" (default: {text})"),
        value => format!(" (default: {})", compact(&value)),
    };
    text_flag(setting.name, "X")
        .long(flag.trim_start_matches('-').to_owned())
        .help(format!("{}{shown}", setting.about))
}

/// What `--help` prints.
pub fn help() -> String {
    let needed = |arg: Arg| {
        if arg.get_action().takes_values() {
            return arg.num_args(1);
        }
        arg
    };
    command().mut_args(needed).render_help().to_string()
}
