//! Tests of the control plane: configuration, registry sync, probes, models, local endpoints.
#![allow(clippy::unwrap_used, reason = "a test that fails")]
#![allow(clippy::needless_pass_by_value, reason = "short calls")]

mod client;
mod config;
mod fetch;
mod handlers;
mod json;
mod membership;
mod models;
mod prober;
mod rig;
mod sync;
