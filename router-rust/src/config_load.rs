//! Flags, environment and JSON file -> `RouterConfig`.
//!
//! Flags win over the environment, the environment over the file. All faults are found at once,
//! each with where it stands, its key, its value, and what to do.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::config::{PROXY_TIMEOUT, RouterConfig, SETTINGS, Secret, Setting};
use crate::flags::{Flags, parse_flags};
use crate::registry::r#static::{Report, services_of_file, services_of_section};
use crate::utils::checks::{self, Check as _};
use crate::utils::files;
use crate::utils::json::{self, Style};

/// For `launch_router.sh`: which router it starts. Either router takes the same file.
const LAUNCHER_KEYS: &[&str] = &["implementation"];
const MAX_SHOWN: usize = 80;

/// One thing wrong: where (flags, environment or a file), key, value, reason and remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    place: String,
    key: String,
    /// The value as JSON; None where there is none.
    shown: Option<String>,
    reason: String,
}

impl Fault {
    /// A fault; `value` None means that it is missing.
    pub fn new(place: &str, key: &str, value: Option<&Value>, reason: impl Into<String>) -> Self {
        Self {
            place: place.to_owned(),
            key: key.to_owned(),
            shown: value.map(|value| json::write(value, Style::Spaced)),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = match self.shown.as_deref() {
            None => "missing".to_owned(),
            Some(shown) if shown.len() > MAX_SHOWN => format!("{}...", &shown[..MAX_SHOWN - 3]),
            Some(shown) => shown.to_owned(),
        };
        let parts = [self.place.as_str(), &self.key, &shown, &self.reason];
        let given: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        formatter.write_str(&given.join(": "))
    }
}

/// The configuration can't be used; holds every reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<_> = self.faults.iter().map(Fault::to_string).collect();
        formatter.write_str(&faults.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Serve(Box<RouterConfig>),
    /// Show the configuration and end.
    Check(Box<RouterConfig>),
    Help,
}

/// One value as it was given: the setting it is for, the key as written, the JSON value.
struct Given {
    setting: &'static Setting,
    key: String,
    value: Value,
}

/// Every setting that flags, variables and files may give.
pub fn all_settings() -> impl Iterator<Item = &'static Setting> {
    std::iter::once(&PROXY_TIMEOUT).chain(SETTINGS)
}

/// Read the configuration; `environ` gives the value of an environment variable.
pub fn load_config(
    argv: &[String],
    environ: &dyn Fn(&str) -> Option<String>,
) -> Result<Command, ConfigError> {
    let flags = parse_flags(argv);
    if flags.help {
        return Ok(Command::Help);
    }
    let mut loader = Loader::new(&flags);
    if let Some(file) = &flags.config {
        loader.config_file(&files::plain_path(file));
    }
    loader.layer("environment", of_environment(environ));
    loader.layer("flags", of_flags(&flags));
    loader.threads(&flags);
    loader.take_over(&flags);
    if let Some(file) = &flags.static_services {
        loader.static_file(&files::plain_path(file));
    }
    let config = Box::new(loader.finish()?);
    Ok(if flags.check_config {
        Command::Check(config)
    } else {
        Command::Serve(config)
    })
}

/// Collects values, each layer over the one before, and faults.
struct Loader {
    faults: Vec<Fault>,
    config: RouterConfig,
    origins: HashMap<&'static str, String>,
}

impl Loader {
    /// A loader that knows what is wrong with the flags themselves.
    fn new(flags: &Flags) -> Self {
        Self {
            faults: flags.faults.clone(),
            config: RouterConfig::default(),
            origins: HashMap::new(),
        }
    }

    /// Check all values of one origin; the ones that are fine replace earlier ones.
    fn layer(&mut self, place: &str, given: Vec<Given>) {
        let mut explicit = Vec::new();
        for one in given {
            match (one.setting.set)(&mut self.config, &one.value) {
                Err(error) => self.fault(place, &one.key, Some(&one.value), error.0),
                Ok(()) if one.setting.name == PROXY_TIMEOUT.name => {}
                Ok(()) => {
                    self.origins.insert(one.setting.name, place.to_owned());
                    explicit.push(one);
                }
            }
        }
        // Once more: wherever proxy_timeout stood, it must not win over an explicit value.
        for one in explicit {
            let _ = (one.setting.set)(&mut self.config, &one.value);
        }
    }

    /// The file of `--config`.
    fn config_file(&mut self, file: &Path) {
        let place = file.to_string_lossy().into_owned();
        let Some(content) = self.json(file) else {
            return;
        };
        let Value::Object(content) = content else {
            let reason = "not an object, give {\"router\": {...}}";
            return self.fault(&place, "", Some(&content), reason);
        };
        let reason = "unknown key, use router and static_services";
        for key in unknown_keys(&content, &["router", "static_services"]) {
            self.fault(&place, key, content.get(key), reason);
        }
        match content.get("router") {
            None => {}
            Some(Value::Object(section)) => self.router_section(&place, section),
            Some(other) => {
                let reason = "not an object, give the settings in braces";
                self.fault(&place, "router", Some(other), reason);
            }
        }
        if let Some(section) = content.get("static_services") {
            let services = services_of_section(section, &mut self.reporter(&place));
            self.config.static_services = services;
        }
    }

    /// The file of `--static-services`.
    fn static_file(&mut self, file: &Path) {
        if let Some(content) = self.json(file) {
            let services = services_of_file(&content, &mut self.reporter(&file.to_string_lossy()));
            self.config.static_services = services;
        }
    }

    /// The configuration, or all faults.
    fn finish(mut self) -> Result<RouterConfig, ConfigError> {
        self.state_dir();
        self.api_key();
        if self.faults.is_empty() {
            return Ok(self.config);
        }
        Err(ConfigError {
            faults: self.faults,
        })
    }

    fn fault(&mut self, place: &str, key: &str, value: Option<&Value>, reason: impl Into<String>) {
        self.faults.push(Fault::new(place, key, value, reason));
    }

    fn reporter(&mut self, place: &str) -> Report<'_> {
        let place = place.to_owned();
        Box::new(move |key, value, reason| self.fault(&place, key, value, reason))
    }

    fn json(&mut self, file: &Path) -> Option<Value> {
        match files::read_json(file) {
            Ok(content) => Some(content),
            Err(error) => {
                self.fault(&file.to_string_lossy(), "", None, error.0);
                None
            }
        }
    }

    fn router_section(&mut self, place: &str, section: &Map<String, Value>) {
        let keys = file_keys();
        let mut seen: HashMap<&str, &str> = HashMap::new();
        let mut given = Vec::new();
        for (key, value) in section {
            if LAUNCHER_KEYS.contains(&key.as_str()) {
                continue;
            }
            let full = format!("router.{key}");
            let Some(setting) = keys.get(key.as_str()) else {
                let names = keys.keys().chain(LAUNCHER_KEYS);
                let mut known: Vec<_> = names.copied().collect();
                known.sort_unstable();
                let reason = format!("unknown key, use one of {}", known.join(", "));
                self.fault(place, &full, Some(value), reason);
                continue;
            };
            if let Some(other) = seen.get(setting.name) {
                let reason = format!("the same setting as {other}, keep one of them");
                self.fault(place, &full, Some(value), reason);
                continue;
            }
            seen.insert(setting.name, key);
            given.push(Given {
                setting,
                key: full,
                value: value.clone(),
            });
        }
        self.layer(place, given);
    }

    fn take_over(&mut self, flags: &Flags) {
        self.config.take_over = flags.take_over;
        if flags.take_over && self.config.handover.is_none() {
            let reason = "give --handover, the one that the running router was started with";
            self.fault("flags", "--take-over", None, reason);
        }
    }

    fn threads(&mut self, flags: &Flags) {
        let Some(text) = &flags.threads else { return };
        let check = checks::whole::<u32>(1, 1024);
        let value = check.value_of(text);
        match check.read(&value) {
            Ok(threads) => self.config.threads = threads as usize,
            Err(error) => self.fault("flags", "--threads", Some(&value), error.0),
        }
    }

    /// Default: logs/ beside the programs, but not for a port that nobody will come back to.
    fn state_dir(&mut self) {
        if self.origins.contains_key("state_dir") {
            if let Some(folder) = self
                .config
                .state_dir
                .clone()
                .filter(|f| f.exists() && !f.is_dir())
            {
                self.late_fault("state_dir", &folder, "not a folder, give one");
            }
        } else if self.config.router_port != 0 {
            self.config.state_dir = default_state_dir();
        }
    }

    fn api_key(&mut self) {
        let Some(file) = self.config.engine_api_key_file.clone() else {
            return;
        };
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) => {
                let reason = files::unreadable(&error);
                return self.late_fault("engine_api_key_file", &file, &reason);
            }
        };
        let text = String::from_utf8(bytes).unwrap_or_default();
        let key = text.trim_matches(|char: char| matches!(char, '\t'..='\r' | '\x1c'..=' '));
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let hint = "put one line of printable ASCII without blanks into it";
            let reason = format!("holds no usable key, {hint}");
            return self.late_fault("engine_api_key_file", &file, &reason);
        }
        self.config.engine_api_key = Some(Secret::new(key.to_owned()));
    }

    /// A fault that is only seen when all layers are together.
    fn late_fault(&mut self, name: &str, value: &Path, reason: &str) {
        let place = self.origins.get(name).cloned().unwrap_or_default();
        let flag = all_settings()
            .find(|setting| setting.name == name)
            .map(Setting::flag);
        let key = match flag {
            Some(flag) if place == "flags" => flag,
            _ => format!("router.{name}"),
        };
        self.fault(
            &place,
            &key,
            Some(&Value::from(value.to_string_lossy())),
            reason,
        );
    }
}

/// Every key that may stand under "router" -> the setting that it sets.
fn file_keys() -> HashMap<&'static str, &'static Setting> {
    let names = all_settings().map(|setting| (setting.name, setting));
    let others = SETTINGS
        .iter()
        .filter_map(|setting| Some((setting.file_key?, setting)));
    names.chain(others).collect()
}

/// The keys of `content` that are not among `known`, sorted.
pub fn unknown_keys<'a>(content: &'a Map<String, Value>, known: &[&str]) -> Vec<&'a str> {
    let keys = content.keys().map(String::as_str);
    let found: HashSet<&str> = keys.filter(|key| !known.contains(key)).collect();
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_unstable();
    found
}

/// `logs/` beside the programs when it can be written to, else None.
fn default_state_dir() -> Option<PathBuf> {
    let folder = repository()?.join("logs");
    let usable = if folder.exists() {
        folder.as_path()
    } else {
        folder.parent()?
    };
    rustix::fs::access(usable, rustix::fs::Access::WRITE_OK).ok()?;
    Some(folder)
}

/// The checkout that this program was built in, if it still stands there.
fn repository() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let mut above = program.ancestors();
    above
        .find(|folder| folder.join("router-rust/Cargo.toml").is_file())
        .map(Path::to_owned)
}

fn of_environment(environ: &dyn Fn(&str) -> Option<String>) -> Vec<Given> {
    // A variable set to nothing counts as not set, as Docker's files write it.
    let value = |variable: &str| environ(variable).filter(|text| !text.is_empty());
    let given = all_settings().filter_map(|setting| {
        let (key, text) = (setting.variable?, value(setting.variable?)?);
        Some(Given {
            setting,
            key: key.to_owned(),
            value: (setting.value_of)(&text),
        })
    });
    given.collect()
}

fn of_flags(flags: &Flags) -> Vec<Given> {
    let given = all_settings().filter_map(|setting| {
        let text = flags.settings.get(setting.name)?;
        Some(Given {
            setting,
            key: setting.flag(),
            value: (setting.value_of)(text),
        })
    });
    given.collect()
}
