//! Logs: to standard error, as text on a terminal, else as JSON, one object a line.

use std::{
    cell::RefCell,
    error::Error,
    fmt,
    io::{self, IsTerminal, Write},
};

use chrono::{SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    fmt::layer,
    layer::Context,
    prelude::*,
    registry::{LookupSpan, SpanRef},
};

use crate::telemetry::traces;

/// A longer line's memory is not kept for the next one.
const MAX_KEPT_BYTES: usize = 4096;

/// Starts logging: the program from `level` on, its libraries from warnings on. Spans become traces if there
/// is a layer for them.
pub fn start(level: Level, traces: Option<traces::Layer>) {
    let libraries = LevelFilter::from_level(level.min(Level::WARN));
    let filter = Targets::new().with_default(libraries).with_target("action_executor", level);
    let registry = tracing_subscriber::registry().with(traces);
    if io::stderr().is_terminal() {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let text = layer().with_writer(io::stderr).with_ansi(colours).with_target(false);
        registry.with(text.with_filter(filter)).init();
    } else {
        registry.with(JsonLines(io::stderr).with_filter(filter)).init();
    }
}

/// Writes events as JSON: time, level, message, fields, and the innermost span with its fields. Each line is
/// one write. The JSON of `tracing-subscriber` parses a span's fields anew for each event.
struct JsonLines<O>(O);

/// The fields of a span as members of a JSON object, each with a comma after it.
struct SpanFields(Vec<u8>);

impl<S, O, W> Layer<S> for JsonLines<O>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    O: Fn() -> W + 'static,
    W: Write,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Members(Vec::new());
        attributes.record(&mut fields);
        span.extensions_mut().insert(SpanFields(fields.0));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanFields(known)) = span.extensions_mut().get_mut() {
            let mut fields = Members(std::mem::take(known));
            values.record(&mut fields);
            *known = fields.0;
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        thread_local!(static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        let mut line = Members(LINE.take());
        line.0.clear();
        line.0.push(b'{');
        line.add("timestamp", &Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true));
        line.add("level", event.metadata().level().as_str());
        event.record(&mut line);
        if let Some(span) = context.event_span(event) {
            line.add_span(&span);
        }
        line.close();
        line.0.push(b'\n');
        // An error to log an error cannot be reported.
        let _ = self.0().write_all(&line.0);
        if line.0.capacity() <= MAX_KEPT_BYTES {
            LINE.set(line.0);
        }
    }
}

/// The members of a JSON object, each with a comma after it.
struct Members(Vec<u8>);

impl Members {
    fn add(&mut self, name: &str, value: &(impl Serialize + ?Sized)) {
        // Writing to memory does not fail, nor do strings and numbers.
        let _ = serde_json::to_writer(&mut self.0, name);
        self.0.push(b':');
        let _ = serde_json::to_writer(&mut self.0, value);
        self.0.push(b',');
    }

    fn add_span<S: for<'a> LookupSpan<'a>>(&mut self, span: &SpanRef<'_, S>) {
        self.0.extend_from_slice(b"\"span\":{");
        if let Some(SpanFields(fields)) = span.extensions().get() {
            self.0.extend_from_slice(fields);
        }
        self.add("name", span.name());
        self.close();
        self.0.push(b',');
    }

    /// Ends the object, which has a member.
    fn close(&mut self) {
        self.0.pop();
        self.0.push(b'}');
    }
}

impl Visit for Members {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.add(field.name(), &Text(format_args!("{value}")));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), &Text(format_args!("{value:?}")));
    }
}

/// A text that is escaped while it is formatted.
struct Text<'a>(fmt::Arguments<'a>);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;

    /// The lines that `act` logs at `INFO`, each as it was written, and without its time.
    fn logged(act: impl FnOnce()) -> Vec<Value> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let output = {
            let lines = lines.clone();
            move || Output(lines.clone())
        };
        let registry =
            tracing_subscriber::registry().with(JsonLines(output).with_filter(LevelFilter::INFO));
        tracing::subscriber::with_default(registry, act);
        let lines = lines.lock().expect("is whole");
        let read = lines.iter().map(|line: &Vec<u8>| {
            let text = std::str::from_utf8(line).expect("is text");
            assert_eq!(text.find('\n'), Some(text.len() - 1), "{text}");
            let mut line: Value = serde_json::from_str(text).expect("is JSON");
            let time = line.as_object_mut().expect("is an object").shift_remove("timestamp");
            let time = time.expect("is there").as_str().expect("is text").to_owned();
            assert_eq!((time.len(), time.ends_with('Z')), (27, true), "{time}");
            line
        });
        read.collect()
    }

    /// Each write, by itself.
    struct Output(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("is whole").push(bytes.to_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_with_its_fields_and_its_innermost_span() {
        let lines = logged(|| {
            let absent: Option<&str> = None;
            let error = io::Error::other("broken");
            let outer = tracing::info_span!("outer", secret = 1);
            let _outer = outer.enter();
            let span = tracing::info_span!(
                "answer",
                request_id = "r\"1",
                trace_id = tracing::field::Empty
            );
            span.record("trace_id", "t1");
            let _entered = span.enter();
            // A span that is not logged hides none that is.
            let quiet = tracing::debug_span!("quiet");
            let _quiet = quiet.enter();
            tracing::debug!("not logged");
            tracing::info!(
                yes = true, number = -1, size = 2_u64, share = 0.5, text = "a\nb", absent,
                shown = %"ä\"", debugged = ?Some("x"), error = &error as &dyn Error, "all {}", "well"
            );
        });
        assert_eq!(
            lines,
            [json!({
                "level": "INFO", "message": "all well", "yes": true, "number": -1, "size": 2, "share": 0.5,
                "text": "a\nb", "shown": "ä\"", "debugged": "Some(\"x\")", "error": "broken",
                "span": { "request_id": "r\"1", "trace_id": "t1", "name": "answer" },
            })]
        );
    }

    #[test]
    fn an_event_without_a_span_or_a_field_is_a_line_too() {
        let lines = logged(|| {
            tracing::warn!("first");
            tracing::error!(code = 7, "second");
        });
        assert_eq!(
            lines,
            [
                json!({ "level": "WARN", "message": "first" }),
                json!({ "level": "ERROR", "message": "second", "code": 7 }),
            ]
        );
    }

    #[test]
    fn the_members_of_a_line_have_their_order() {
        let line = &logged(|| {
            let _entered = tracing::info_span!("answer").entered();
            tracing::info!(b = 1, a = 2, "m");
        })[0];
        let names: Vec<_> = line.as_object().expect("is an object").keys().collect();
        assert_eq!(names, ["level", "message", "b", "a", "span"]);
    }
}
