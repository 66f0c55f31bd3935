//! Where services are known from.

pub mod client;
pub mod entries;
pub mod membership;
pub mod saved;
pub mod r#static;
pub mod sync;
