//! Which engine serves a request.

pub mod engine;
pub mod health;
pub mod load;
pub mod pace;
pub mod policies;
pub mod queue;
pub mod retries;
pub mod selection;
pub mod spread;
pub mod table;
