//! Tests of the data path's pure parts: heads, bodies, scan, selection, panic, load, waiting, relay.
#![allow(clippy::unwrap_used, reason = "a test that fails")]
#![allow(clippy::expect_used, reason = "a test that fails")]

mod bodies;
mod ejection;
mod heads;
mod load;
mod metrics;
mod pace;
mod panic;
mod policies;
mod queue;
mod queue_storm;
mod relay;
mod request;
mod retries;
mod rig;
mod selection;
