//! The data path: requests in, answers out.

pub mod bodies;
pub mod fields;
pub mod forward;
pub mod gateway;
pub mod heads;
pub mod memo;
pub mod pool;
pub mod relay;
pub mod request;
pub mod server;
pub mod target;
pub mod worker;
