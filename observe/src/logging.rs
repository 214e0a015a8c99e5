//! Structured logs on standard error, filtered by `SKEIN_LOG` (the syntax of `RUST_LOG`; `info`
//! when unset). Every line carries the name of its process, because a server's two processes and
//! an agent's two share one stream under a supervisor.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Variable that holds the log filter.
pub const FILTER_VARIABLE: &str = "SKEIN_LOG";

/// Starts logging for this process; later calls change nothing.
///
/// `json` selects one JSON object per line, else plain text. A filter that does not parse is
/// reported on standard error and replaced by `info`, so that a typo never silences a server.
pub fn init_logging(process: &str, json: bool) {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text).unwrap_or_else(|error| {
            eprintln!("{FILTER_VARIABLE}={text} is no log filter ({error}); using \"info\"");
            EnvFilter::new("info")
        }),
        Err(_) => EnvFilter::new("info"),
    };
    let process = process.to_owned();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // The only failure is that a subscriber is already set: the first one stays.
    let _ = if json {
        let inner = Format::default().json();
        builder
            .fmt_fields(JsonFields::new())
            .event_format(JsonWithProcess { process, inner })
            .try_init()
    } else {
        let inner = Format::default();
        builder.event_format(TextWithProcess { process, inner }).try_init()
    };
}

struct TextWithProcess {
    process: String,
    inner: Format<Full>,
}

struct JsonWithProcess {
    process: String,
    inner: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for TextWithProcess
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
        write!(writer, "{} ", self.process)?;
        self.inner.format_event(context, writer, event)
    }
}

impl<S, N> FormatEvent<S, N> for JsonWithProcess
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
        let mut line = String::with_capacity(256);
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        match line.strip_prefix('{') {
            Some(rest) => write!(writer, "{{\"process\":{:?},{rest}", self.process),
            None => writer.write_str(&line),
        }
    }
}
