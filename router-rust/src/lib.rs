//! One OpenAI-compatible endpoint in front of many LLM engines.
//!
//! The modules mirror the Python router's (`infinilm_router`), file by file.

#![forbid(unsafe_code)]

pub mod app;
pub mod config;
pub mod config_load;
pub mod flags;
pub mod handlers;
pub mod models;
pub mod port;
pub mod proxy;
pub mod registry;
pub mod router;
pub mod utils;
