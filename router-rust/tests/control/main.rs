//! Tests of the control plane: configuration, registry sync, probes, models, local endpoints.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

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
