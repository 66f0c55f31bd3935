//! Which engine serves a request.

pub mod health;
pub mod load;
pub mod selection;
pub mod table;
