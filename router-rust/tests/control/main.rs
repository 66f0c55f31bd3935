//! Tests of the control plane: configuration, registry sync, probes, models, local endpoints.
#![allow(clippy::unwrap_used, reason = "a test that fails")]
#![allow(clippy::needless_pass_by_value, reason = "short calls")]

mod client;
mod closing;
mod config;
mod fake_registry;
mod fetch;
mod handlers;
mod json;
mod loading;
mod membership;
mod models;
mod probe_targets;
mod prober;
mod resources;
mod resting;
mod rig;
mod rise_fall;
mod saved;
mod spread;
mod static_files;
mod sync;
