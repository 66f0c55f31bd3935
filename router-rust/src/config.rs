//! Every setting of the router, with its default, check and help: one value that never changes.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::router::table::{MAX_CONCURRENCY, Service};
use crate::utils::checks::{self, Check, Checked, Cidr, FilePath, LEAST, Many, Text};
use crate::utils::checks::{one_of, seconds, whole};
use crate::utils::json::{self, Style};
use crate::utils::network::Network;
use crate::utils::url::registry_url;

pub const POLICIES: &[&str] = &[
    "round_robin",
    "least_loaded",
    "power_of_two",
    "consistent_hash",
    "ip_hash",
    "random",
];
const ALIASES: &[(&str, &str)] = &[("least_conn", "least_loaded")];
const MEBIBYTE: u64 = 1024 * 1024;

/// How a field of `RouterConfig` is read and shown: its check, help, flag, file key and variable.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub name: &'static str,
    pub about: &'static str,
    pub flag: Option<&'static str>,
    pub file_key: Option<&'static str>,
    pub variable: Option<&'static str>,
    /// The JSON value that the text of a flag or variable stands for.
    pub value_of: fn(&str) -> Value,
    /// Checks a value and puts it into the configuration.
    pub set: fn(&mut RouterConfig, &Value) -> Checked<()>,
    pub show: fn(&RouterConfig) -> Value,
}

impl Setting {
    /// Its flag, with the dashes.
    pub fn flag(&self) -> String {
        let own = self.flag.map(str::to_owned);
        own.unwrap_or_else(|| format!("--{}", self.name.replace('_', "-")))
    }
}

/// Makes `RouterConfig` and `SETTINGS` from one line for each field:
/// `name: type = default, check, about, [further names];`
macro_rules! settings {
    ($($name:ident: $type:ty = $default:expr, $check:expr, $about:expr
       $(, $other:ident = $value:literal)*;)*) => {
        /// Every setting of the router. Times are seconds, sizes bytes.
        #[derive(Clone, Debug, PartialEq)]
        pub struct RouterConfig {
            $(pub $name: $type,)*
            pub static_services: Vec<Arc<Service>>,
            pub engine_api_key: Option<Secret>,
            /// Threads that serve requests; how a router is built, so not one of the settings that
            /// both routers share.
            pub threads: usize,
            /// Take over the port of the router that runs: a way to start, not a setting.
            pub take_over: bool,
        }

        impl Default for RouterConfig {
            fn default() -> Self {
                Self {
                    $($name: $default,)*
                    static_services: Vec::new(),
                    engine_api_key: None,
                    take_over: false,
                    threads: std::thread::available_parallelism().map_or(1, Into::into),
                }
            }
        }

        pub static SETTINGS: &[Setting] = &[$(
            Setting {
                name: stringify!($name),
                about: $about,
                value_of: |text| $check.value_of(text),
                set: |config, value| {
                    config.$name = $check.read(value)?;
                    Ok(())
                },
                show: |config| $check.to_json(&config.$name),
                $($other: Some($value),)*
                ..UNNAMED
            },
        )*];
    };
}

const UNNAMED: Setting = Setting {
    name: "",
    about: "",
    flag: None,
    file_key: None,
    variable: None,
    value_of: |text| Value::from(text),
    set: |_, _| Ok(()),
    show: |_| Value::Null,
};

settings! {
    host: String = "0.0.0.0".to_owned(), Text(checks::host), "address to listen on";
    router_port: u16 = 8080, whole::<u16>(0, checks::MAX_PORT),
        "port to listen on; 0 = any free one", file_key = "port";
    registry_urls: Vec<String> = Vec::new(), Many(Text(registry_url)),
        "registries, separated by commas",
        flag = "--registry-url", file_key = "registry_url";
    policy: &'static str = "round_robin", one_of(POLICIES, ALIASES),
        "how to choose among engines: round_robin, least_loaded, power_of_two, consistent_hash, \
         ip_hash, random",
        file_key = "load_balancing_method";
    cache_type_routing_threshold: u64 = 51200, whole::<u64>(0, 1 << 40),
        "prompt size (bytes) over which engines with a static cache are preferred",
        variable = "CACHE_TYPE_ROUTING_THRESHOLD";
    health_interval: f64 = 5.0, seconds(LEAST), "time between probes of an engine";
    health_timeout: f64 = 2.0, seconds(LEAST), "limit of one probe";
    health_fall: u32 = 3, whole::<u32>(1, 100), "failed probes that take an engine out";
    health_rise: u32 = 2, whole::<u32>(1, 100), "good probes that bring it back";
    max_errors: u32 = 3, whole::<u32>(0, 1000),
        "failed requests in a row that eject an engine; 0 = never";
    max_concurrency: u32 = 256, whole::<u32>(1, i64::from(MAX_CONCURRENCY)),
        "most requests at one engine at once; metadata.max_concurrency is an engine's own";
    queue_size: u32 = 128, whole::<u32>(0, 1_000_000),
        "most requests for a model that wait for an engine";
    queue_timeout: f64 = 30.0, seconds(LEAST), "longest wait for an engine";
    queue_bytes: u64 = 256 * MEBIBYTE, whole::<u64>(0, 1 << 40),
        "most memory of all waiting requests' bodies";
    slow_start: f64 = 10.0, seconds(0.0),
        "time in which an engine that comes (back) takes up its share";
    registry_sync_interval: f64 = 5.0, seconds(LEAST),
        "time between registry polls (beside the watch)";
    service_removal_grace_period: f64 = 60.0, seconds(0.0),
        "time that a service gone from the registry is kept";
    proxy_connect_timeout: f64 = 2.0, seconds(LEAST), "limit of connecting to an engine";
    first_byte_timeout: f64 = 300.0, seconds(LEAST), "limit to a stream's first byte";
    response_timeout: f64 = 600.0, seconds(LEAST), "limit to the first byte of other answers";
    idle_timeout: f64 = 120.0, seconds(LEAST), "longest silence inside an answer";
    stream_timeout: f64 = 0.0, seconds(0.0), "limit of a whole stream; 0 = none";
    sse_ping_interval: f64 = 15.0, seconds(0.0),
        "silence after which a stream gets a comment; 0 = never";
    drain_delay: f64 = 5.0, seconds(0.0),
        "time between /health turning 503 and the port closing";
    drain_timeout: f64 = 120.0, seconds(0.0), "time for running requests to end";
    head_timeout: f64 = 10.0, seconds(LEAST), "limit of reading a request's head";
    body_timeout: f64 = 30.0, seconds(LEAST), "longest silence inside a request's body";
    keep_alive_timeout: f64 = 75.0, seconds(LEAST), "time an idle client may stay";
    write_timeout: f64 = 60.0, seconds(LEAST), "time a client may take no bytes";
    pool_idle_timeout: f64 = 3.0, seconds(0.0), "time an idle engine connection is kept";
    max_body_bytes: u64 = 64 * MEBIBYTE, whole::<u64>(1, 1 << 40), "largest request body";
    max_connections: u32 = 4096, whole::<u32>(1, 1_000_000), "most client connections";
    proxy_paths: Vec<String> = Vec::new(), Many(Text(checks::path_prefix)),
        "further path prefixes that reach engines";
    retry_on: Vec<&'static str> = Vec::new(), Many(one_of(&["reset-before-headers"], &[])),
        "what else is sent a second time";
    trusted_proxies: Vec<Network> = Vec::new(), Many(Cidr),
        "networks whose X-Forwarded-* fields are believed";
    engine_api_key_file: Option<PathBuf> = None, FilePath,
        "file with the API key that the router shows to engines";
    state_dir: Option<PathBuf> = None, FilePath,
        "folder for the last known services; \"\" or none = off (default: logs/)";
    handover: Option<PathBuf> = None, FilePath,
        "Unix socket at which a successor takes over the port (--take-over); none = off";
    log_level: &'static str = "info", one_of(&["debug", "info", "warning", "error"], &[]),
        "least level that is logged";
    access_log: &'static str = "all", one_of(&["all", "errors", "off"], &[]),
        "requests that get a log line";
}

/// Sets three limits of the data path together.
pub static PROXY_TIMEOUT: Setting = Setting {
    name: "proxy_timeout",
    about: "sets first-byte-timeout, response-timeout and idle-timeout together",
    variable: Some("PROXY_TIMEOUT_SECONDS"),
    value_of: |text| seconds(LEAST).value_of(text),
    set: |config, value| {
        let limit = seconds(LEAST).read(value)?;
        config.first_byte_timeout = limit;
        config.response_timeout = limit;
        config.idle_timeout = limit;
        Ok(())
    },
    ..UNNAMED
};

/// A text that no log and no answer may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keep `text`.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(...)")
    }
}

impl RouterConfig {
    /// The effective settings as JSON with sorted keys; the API key is left out.
    pub fn to_json(&self) -> String {
        let mut shown: Map<String, Value> = SETTINGS
            .iter()
            .map(|s| (s.name.to_owned(), (s.show)(self)))
            .collect();
        let services = self
            .static_services
            .iter()
            .map(|service| service_to_json(service));
        shown.insert("static_services".to_owned(), services.collect());
        json::write(&Value::Object(shown), Style::Indented)
    }
}

fn service_to_json(service: &Service) -> Value {
    json!({
        "name": service.name,
        "host": service.host,
        "port": service.port,
        "weight": service.weight,
        "metadata": service.metadata,
        "backup": service.backup,
        "max_fails": service.max_fails,
        "fail_timeout": service.fail_timeout,
    })
}
