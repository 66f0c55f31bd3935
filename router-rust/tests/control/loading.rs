//! Loading a configuration in a test, and what comes of it.

use infini_router::config::RouterConfig;
use infini_router::config_load::{Command, load_config};
use serde_json::json;

use crate::rig::Folder;

fn words(argv: &[&str]) -> Vec<String> {
    argv.iter().map(|&word| word.to_owned()).collect()
}

/// The command of these flags and environment variables, or all faults.
pub(crate) fn command(argv: &[&str], environ: &[(&str, &str)]) -> Result<Command, Vec<String>> {
    let lookup = |name: &str| {
        let found = environ.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let faults = |error: infini_router::config_load::ConfigError| {
        error.faults.iter().map(ToString::to_string).collect()
    };
    load_config(&words(argv), &lookup).map_err(faults)
}

pub(crate) fn load_with(argv: &[&str], environ: &[(&str, &str)]) -> RouterConfig {
    match command(argv, environ).unwrap() {
        Command::Serve(config) | Command::Check(config) => *config,
        Command::Help => panic!("no help was asked for"),
    }
}

pub(crate) fn load(argv: &[&str]) -> RouterConfig {
    load_with(argv, &[])
}

pub(crate) fn faults(argv: &[&str]) -> Vec<String> {
    command(argv, &[]).unwrap_err()
}

pub(crate) fn fault(argv: &[&str]) -> String {
    let found = faults(argv);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

pub(crate) fn close(found: f64, expected: f64) -> bool {
    (found - expected).abs() < 1e-9
}

pub(crate) fn proxy_timeouts(config: &RouterConfig) -> [u32; 3] {
    let all = [
        config.first_byte_timeout,
        config.response_timeout,
        config.idle_timeout,
    ];
    all.map(|seconds| format!("{seconds}").parse().unwrap())
}

/// A `router_config.json` with the keys that existing installations have.
pub(crate) fn shipped(folder: &Folder) -> String {
    let content = json!({
        "router": {
            "port": 8123, "registry_url": "http://192.168.1.100:8081",
            "load_balancing_method": "least_conn", "proxy_timeout": 300,
            "proxy_connect_timeout": 60,
        },
        "static_services": { "services": [{
            "name": "spare", "host": "192.168.1.12", "port": 5001, "weight": 1,
            "metadata": { "static": true, "backup": true, "model": "Qwen3-32B" },
        }] },
    });
    folder.file("router_config.json", &content.to_string())
}
