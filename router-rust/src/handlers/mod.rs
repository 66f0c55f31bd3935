//! The local endpoints, answered from memory.

pub mod context;
pub mod health;
pub mod metrics;
pub mod models;
pub mod routes;
pub mod services;
pub mod stats;

pub use routes::find_handler;
