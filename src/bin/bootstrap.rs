//! The function runtime's binary: settings to entry point, and nothing else.

use std::process::ExitCode;

use action_executor::{config::Settings, lambda, telemetry::logging};

fn main() -> ExitCode {
    let settings = Settings::from_env();
    let level = settings.as_ref().ok().and_then(|settings| settings.log_level);
    // A function is frozen between invocations: nothing could be sent then.
    logging::start(level.unwrap_or(tracing::Level::INFO), None);
    ExitCode::from(lambda::run(settings))
}
