//! Which local endpoint a path belongs to.

use crate::handlers::context::{Context, LocalAnswer};
use crate::handlers::health::{health, status};
use crate::handlers::metrics::metrics;
use crate::handlers::models::{model, models};
use crate::handlers::services::services;
use crate::handlers::stats::stats;
use crate::utils::errors::RouterError;

type Answer = fn(&Context) -> LocalAnswer;

pub const ROUTES: &[(&[u8], Answer)] = &[
    (b"/health", health),
    (b"/status", status),
    (b"/stats", stats),
    (b"/metrics", metrics),
    (b"/services", services),
    (b"/models", models),
    (b"/v1/models", models),
];
pub const MODEL_PREFIX: &[u8] = b"/v1/models/";

/// What answers a GET.
#[derive(Clone, Copy, Debug)]
pub enum Handler {
    Fixed(Answer),
    /// The rest of the path is a model's id.
    Model,
}

impl Handler {
    /// The answer to a GET of `path`, from memory.
    pub fn answer(self, ctx: &Context, path: &[u8]) -> Result<LocalAnswer, RouterError> {
        match self {
            Self::Fixed(answer) => Ok(answer(ctx)),
            Self::Model => model(ctx, path.strip_prefix(MODEL_PREFIX).unwrap_or_default()),
        }
    }
}

/// The handler of a GET on the raw `path`, None for paths that are not local.
///
/// Paths are compared as bytes: `/%68ealth` and `//health` are other paths, as they are to engines.
pub fn find_handler(path: &[u8]) -> Option<Handler> {
    if path.starts_with(MODEL_PREFIX) {
        return Some(Handler::Model);
    }
    let found = ROUTES.iter().find(|(route, _)| *route == path);
    found.map(|&(_, answer)| Handler::Fixed(answer))
}
