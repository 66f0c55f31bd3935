//! What all modules use.

pub mod access_log;
pub mod checks;
pub mod errors;
pub mod fetch;
pub mod files;
pub mod handover;
pub mod headers;
pub mod json;
pub mod json_parse;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod network;
pub mod resources;
pub mod tasks;
pub mod time;
pub mod url;
