//! Which models there are.

pub mod catalog;
pub mod learner;
