//! One line per request that was forwarded or failed, and says why (docs/METRICS.md).
//!
//! They are written in batches: a write for each would cost too much.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::io::Write as _;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::Local;
use tokio::time::{Instant, sleep};

use crate::router::selection::{Choice, Request};
use crate::utils::json;
use crate::utils::metrics::Failure;

const FLUSH_AFTER: Duration = Duration::from_millis(200);
/// Bytes.
const FLUSH_AT: usize = 128 * 1024;
/// Characters of a value that a client chose.
const MAX_VALUE: usize = 256;
/// Characters: it may quote such a value.
const MAX_REASON: usize = 512;

/// Which requests get a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    All,
    Errors,
    Off,
}

impl Level {
    /// The level of this name; names are checked with the configuration.
    pub fn named(name: &str) -> Self {
        match name {
            "errors" => Self::Errors,
            "off" => Self::Off,
            _ => Self::All,
        }
    }
}

/// The end of a proxied request; `failure` with its reason, None = it went well.
pub struct Record<'a> {
    pub request_id: &'a str,
    pub client: &'a str,
    pub method: &'a [u8],
    pub path: &'a str,
    pub request: &'a Request,
    pub status: u16,
    pub choice: Option<&'a Choice>,
    pub attempts: u32,
    pub started: Instant,
    pub first_byte_at: Option<Instant>,
    pub bytes_sent: u64,
    pub failure: Option<(&'a Failure, &'a str)>,
}

/// An attempt that failed, where that is not yet the end of its request.
pub struct Attempt<'a> {
    pub request_id: &'a str,
    pub number: u32,
    pub started: Instant,
    pub failure: &'a Failure,
    pub reason: &'a str,
}

/// A request that was not forwarded: malformed, cut short, or a fault at an own endpoint.
pub struct Refusal<'a> {
    pub request_id: &'a str,
    pub client: &'a str,
    pub status: u16,
    pub failure: &'a Failure,
    pub reason: &'a str,
}

/// Collects lines of `key=value` pairs; -1 stands for a time that does not exist.
pub struct AccessLog {
    pub level: Cell<Level>,
    lines: RefCell<String>,
    stamp: RefCell<(u64, String)>,
}

impl AccessLog {
    /// A log of this level. Each thread has its own.
    pub fn new(level: Level) -> Self {
        Self {
            level: Cell::new(level),
            lines: RefCell::default(),
            stamp: RefCell::new((0, String::new())),
        }
    }

    /// Note the end of a proxied request.
    pub fn exchange(self: &Rc<Self>, record: &Record<'_>, now: Instant) {
        let level = self.level.get();
        if level == Level::Off || (record.failure.is_none() && level == Level::Errors) {
            return;
        }
        self.write(|line| write_record(line, record, now));
    }

    /// Note an attempt that failed.
    pub fn attempt(self: &Rc<Self>, attempt: &Attempt<'_>, now: Instant) {
        if self.level.get() == Level::Off {
            return;
        }
        let (id, engine) = (attempt.request_id, &attempt.failure.engine);
        let millis = now.saturating_duration_since(attempt.started).as_millis();
        let (number, why) = (attempt.number, why(attempt.failure, attempt.reason));
        self.write(|line| {
            writeln!(
                line,
                "attempt id={id} engine={engine} attempt={number} ms={millis} {why}"
            )
        });
    }

    /// Note a request that was not forwarded.
    pub fn refused(self: &Rc<Self>, refusal: &Refusal<'_>) {
        if self.level.get() == Level::Off {
            return;
        }
        let (id, client) = (refusal.request_id, refusal.client);
        let (status, why) = (refusal.status, why(refusal.failure, refusal.reason));
        self.write(|line| {
            writeln!(
                line,
                "refused id={id} client={client} status={status} {why}"
            )
        });
    }

    /// Write what is collected.
    pub fn flush(&self) {
        let mut lines = self.lines.borrow_mut();
        let mut out = std::io::stdout().lock();
        // A reader of the log that is gone is no reason to stop serving.
        let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
        lines.clear();
    }

    fn write(self: &Rc<Self>, line: impl FnOnce(&mut String) -> std::fmt::Result) {
        let mut lines = self.lines.borrow_mut();
        let was_empty = lines.is_empty();
        self.push_stamp(&mut lines);
        let written = line(&mut lines);
        debug_assert!(written.is_ok(), "text can always be written to memory");
        let full = lines.len() >= FLUSH_AT;
        drop(lines);
        if full {
            self.flush();
        } else if was_empty {
            let log = Rc::clone(self);
            tokio::task::spawn_local(async move {
                sleep(FLUSH_AFTER).await;
                log.flush();
            });
        }
    }

    fn push_stamp(&self, lines: &mut String) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let second = since.map_or(0, |since| since.as_secs());
        let mut stamp = self.stamp.borrow_mut();
        if stamp.0 != second {
            *stamp = (
                second,
                Local::now().format("%Y-%m-%d %H:%M:%S ").to_string(),
            );
        }
        lines.push_str(&stamp.1);
    }
}

fn write_record(line: &mut String, record: &Record<'_>, now: Instant) -> std::fmt::Result {
    let Record {
        request, started, ..
    } = record;
    let millis = |end: Instant| end.saturating_duration_since(*started).as_millis();
    let path: &str = &record.path[..record.path.len().min(MAX_VALUE)];
    write!(
        line,
        "request id={} client={} method={} path={path} model={} stream={} status={} engine={} attempts={}",
        record.request_id,
        record.client,
        String::from_utf8_lossy(record.method),
        quoted(request.model.as_deref()),
        u8::from(request.stream),
        record.status,
        record.choice.map_or("-", |choice| &choice.service.name),
        record.attempts,
    )?;
    match record.first_byte_at {
        Some(first) => write!(line, " first_byte_ms={}", millis(first))?,
        None => line.push_str(" first_byte_ms=-1"),
    }
    write!(line, " ms={} bytes={} ", millis(now), record.bytes_sent)?;
    match record.failure {
        Some((failure, reason)) => writeln!(line, "{}", why(failure, reason)),
        None => writeln!(line, "ok"),
    }
}

fn why(failure: &Failure, reason: &str) -> String {
    let Failure { phase, code, .. } = failure;
    let reason = json_text(&reason.chars().take(MAX_REASON).collect::<String>());
    format!("error={code} phase={phase} reason={reason}")
}

/// A value that a client chose, such that it can forge neither lines nor fields.
fn quoted(value: Option<&str>) -> String {
    let Some(value) = value else {
        return "-".to_owned();
    };
    if value.len() <= MAX_VALUE && value.bytes().all(|b| b.is_ascii_graphic()) {
        return value.to_owned();
    }
    json_text(&value.chars().take(MAX_VALUE).collect::<String>())
}

fn json_text(text: &str) -> String {
    let mut out = String::new();
    json::write_string(&mut out, text);
    out
}
