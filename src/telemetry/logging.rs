//! Logs: to standard error, as text on a terminal, else as JSON.

use std::io::{self, IsTerminal};

use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{filter::Targets, fmt, prelude::*};

use crate::telemetry::traces;

/// Whether the person has not turned colours off (<https://no-color.org>).
pub(crate) fn are_colours_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Starts logging: the program from `level` on, its libraries from warnings on. Spans become traces if there
/// is a layer for them.
pub fn start(level: Level, traces: Option<traces::Layer>) {
    let libraries = LevelFilter::from_level(level.min(Level::WARN));
    let filter = Targets::new().with_default(libraries).with_target("action_executor", level);
    let registry = tracing_subscriber::registry().with(traces);
    if io::stderr().is_terminal() {
        let layer =
            fmt::layer().with_writer(io::stderr).with_ansi(are_colours_wanted()).with_target(false);
        registry.with(layer.with_filter(filter)).init();
    } else {
        let layer =
            fmt::layer().json().flatten_event(true).with_target(false).with_span_list(false);
        registry.with(layer.with_writer(io::stderr).with_filter(filter)).init();
    }
}
