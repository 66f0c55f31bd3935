//! Log lines in the form of the Python router's: time, level, text.

use std::fmt;

use chrono::Local;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Changes the level of the log.
pub struct LogLevel(reload::Handle<LevelFilter, Registry>);

impl LogLevel {
    /// Log from this level on.
    pub fn set(&self, level: &str) {
        // It fails only when the log is gone, which ends with the process.
        let _ = self.0.reload(filter(level));
    }
}

fn filter(level: &str) -> LevelFilter {
    match level {
        "debug" => LevelFilter::DEBUG,
        "warning" => LevelFilter::WARN,
        "error" => LevelFilter::ERROR,
        _ => LevelFilter::INFO,
    }
}

/// Write log lines of at least this level to standard output. Only the program calls this.
pub fn init(level: &str) -> LogLevel {
    let (layer, handle) = reload::Layer::new(filter(level));
    let lines = tracing_subscriber::fmt::layer().event_format(Line);
    tracing_subscriber::registry()
        .with(layer)
        .with(lines)
        .init();
    LogLevel(handle)
}

struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARNING",
            Level::INFO => "INFO",
            Level::DEBUG | Level::TRACE => "DEBUG",
        };
        let now = Local::now().format("%Y-%m-%d %H:%M:%S,%3f");
        write!(writer, "{now} {level} ")?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
