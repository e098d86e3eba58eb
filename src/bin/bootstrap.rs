//! The binary for the runtime of AWS Lambda: settings to the entry point; nothing else.

use std::process::ExitCode;

use action_executor::{config::Settings, lambda, telemetry::logging};

fn main() -> ExitCode {
    let settings = Settings::from_env();
    let level = settings.as_ref().ok().and_then(|settings| settings.log_level);
    // No traces: a function is frozen between invocations, so they could not be sent.
    logging::start(level.unwrap_or(tracing::Level::INFO), None);
    ExitCode::from(lambda::run(settings))
}
