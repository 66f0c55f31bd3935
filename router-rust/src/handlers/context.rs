//! What the local endpoints read, and what they answer. All of it is in memory.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;

use crate::config::RouterConfig;
use crate::models::catalog::ModelCatalog;
use crate::router::health::{HealthProber, wall_time};
use crate::router::load::LoadBook;
use crate::router::queue::WaitingRoom;
use crate::router::table::TableStore;
use crate::utils::json;
use crate::utils::metrics::AllCounters;

pub const NOBODY: &str = "No healthy services available";

/// A whole answer made by the router itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAnswer {
    pub status: u16,
    pub body: Bytes,
    pub content_type: &'static str,
    pub headers: Vec<(&'static str, &'static str)>,
}

impl LocalAnswer {
    /// An answer of JSON text.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            body: body.into(),
            content_type: "application/json",
            headers: Vec::new(),
        }
    }
}

/// The router's state as the endpoints see it; `started_at` is wall time.
pub struct Context {
    pub config: Arc<RouterConfig>,
    pub store: Arc<TableStore>,
    pub load: Arc<LoadBook>,
    pub room: Arc<WaitingRoom>,
    pub catalog: ModelCatalog,
    pub prober: Arc<HealthProber>,
    pub counters: Arc<AllCounters>,
    /// Client connections of all threads.
    pub connections: Arc<AtomicU32>,
    pub draining: Box<dyn Fn() -> bool + Send + Sync>,
    pub started_at: f64,
}

impl Context {
    /// The registries as they were given, null without any.
    pub fn registry_url(&self) -> Value {
        let urls = self.config.registry_urls.join(",");
        if urls.is_empty() {
            Value::Null
        } else {
            Value::from(urls)
        }
    }
}

/// `content` as compact JSON.
pub fn json_answer(status: u16, content: &Value) -> LocalAnswer {
    LocalAnswer::json(status, json::compact(content))
}

/// Wall-clock time as ISO 8601 text in UTC.
pub fn iso_time(wall: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "microseconds of any year fit"
    )]
    let moment = DateTime::<Utc>::from_timestamp_micros((wall * 1e6).round() as i64);
    moment
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Millis, false)
}

/// Now, as ISO 8601 text in UTC.
pub fn iso_now() -> String {
    iso_time(wall_time())
}
