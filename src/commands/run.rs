//! `run`: one request from a file, standard input or the environment; one answer on standard output; the exit
//! status of its outcome.
//!
//! Logs go to standard error. The answer is also the container's termination message.

use std::{
    ffi::OsString,
    fs,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    actions::request::{ActionRequest, MAX_REQUEST_BYTES},
    cli::{OnceArgs, OutputFormat},
    commands::env,
    config::{Settings, reload::Reloading},
    contract::{
        error::{ActionError, Code},
        response::ActionResponse,
    },
    executor::{
        context::{Context, stopped},
        handle,
        incoming::IncomingRequest,
        reply::Reply,
        wait::DEFAULT_WAIT,
    },
    k8s::api::connect::connect,
};

/// How often `--join` checks the other attempt.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The maximum length of a termination message in Kubernetes, in bytes.
const MAX_TERMINATION_MESSAGE: usize = 4096;

/// The source of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestSource {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
    /// Standard input if it is not a terminal and not empty, else the environment.
    Auto,
}

/// Runs one request; returns its exit status.
#[must_use]
pub fn run(source: &RequestSource, args: &OnceArgs, settings: &Settings) -> u8 {
    let reply = match read(source) {
        Ok(incoming) => execute(&incoming, args, settings),
        Err(error) => Reply::from(error),
    };
    if let Some(path) = &settings.termination_log {
        write_termination_message(path, &reply);
    }
    if let Err(error) = write(&reply, args.output) {
        tracing::error!(%error, "answer not written to standard output");
    }
    reply.exit_status()
}

fn read(source: &RequestSource) -> Result<IncomingRequest, ActionError> {
    let environment = env::request(std::env::vars_os())?;
    let piped = match source {
        RequestSource::File(path) => Some(read_file(path)?),
        RequestSource::Stdin => Some(read_bounded(io::stdin().lock(), "standard input")?),
        RequestSource::Auto if io::stdin().is_terminal() => None,
        RequestSource::Auto => Some(read_bounded(io::stdin().lock(), "standard input")?)
            .filter(|text| !text.is_empty()),
    };
    match (piped, environment.body) {
        (Some(body), None) | (None, Some(body)) => {
            Ok(IncomingRequest { body, key: environment.key, event: None })
        }
        (None, None) => Err(ActionError::new(Code::Usage, "no request").with_hint(
            "pipe JSON into standard input, run `action-executor run FILE`, or set ACTION_REQUEST or \
             ACTION_TYPE",
        )),
        (Some(_), Some(_)) => Err(ActionError::new(
            Code::Usage,
            "two requests: one in ACTION_ environment variables and one in the input",
        )
        .with_hint("remove one; `env | grep ^ACTION_` lists the variables")),
    }
}

/// The request in this file, `-` for standard input.
///
/// # Errors
/// Why the file cannot be read or the request is not valid.
pub(crate) fn read_request(file: &Path) -> Result<ActionRequest, ActionError> {
    let body = if file == Path::new("-") {
        read_bounded(io::stdin().lock(), "standard input")?
    } else {
        read_file(file)?
    };
    ActionRequest::parse(&body)
}

fn read_file(path: &Path) -> Result<Vec<u8>, ActionError> {
    let name = path.display().to_string();
    let file = fs::File::open(path)
        .map_err(|error| ActionError::new(Code::Usage, format!("{name}: {error}")))?;
    read_bounded(file, &name)
}

/// Reads at most one byte more than allowed, so that the parser detects a request that is too long.
fn read_bounded(from: impl Read, name: &str) -> Result<Vec<u8>, ActionError> {
    let mut bytes = Vec::new();
    from.take(MAX_REQUEST_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| ActionError::new(Code::Usage, format!("{name}: {error}")))?;
    Ok(bytes)
}

/// An invalid request is refused before a runtime or a client is built.
fn execute(incoming: &IncomingRequest, args: &OnceArgs, settings: &Settings) -> Reply {
    let request = match incoming.request() {
        Ok(request) => request,
        Err(error) => return Reply::from(error),
    };
    let result = runtime().and_then(|runtime| {
        let result = runtime.block_on(async {
            let context = context(args.context.as_deref(), settings).await?;
            if args.join { join(&context, request).await } else { handle(&context, request).await }
        });
        // A look-up of a name that hangs, or a plugin, must not delay the answer.
        runtime.shutdown_background();
        result
    });
    result.map_or_else(Reply::from, Reply::from)
}

/// A runtime on the current thread.
pub(crate) fn runtime() -> Result<Runtime, ActionError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ActionError::new(Code::Internal, format!("the runtime: {error}")))
}

/// Waits for another attempt at the same request, within the request's timeout.
async fn join(context: &Context, request: ActionRequest) -> Result<ActionResponse, ActionError> {
    let end = Instant::now() + request.timeout.unwrap_or(DEFAULT_WAIT);
    let mut stopping = context.stopping();
    loop {
        match handle(context, request.clone()).await {
            Err(error)
                if error.code == Code::InProgress && Instant::now() + POLL_INTERVAL < end =>
            {
                context.observer().progress(&error.detail);
                tokio::select! {
                    () = stopped(&mut stopping) => return Err(error),
                    () = sleep(POLL_INTERVAL) => {}
                }
            }
            result => return result,
        }
    }
}

async fn context(kube_context: Option<&str>, settings: &Settings) -> Result<Context, ActionError> {
    let policy = Reloading::new(settings.policy.clone())?;
    let cluster = connect(kube_context).await?;
    let context = Context::new(cluster, policy, settings, stop_on_signals()?);
    if io::stderr().is_terminal() {
        return Ok(
            context.map_observer(|observer| observer.on_progress(|stage| eprintln!("{stage}")))
        );
    }
    Ok(context)
}

/// True after the first SIGTERM or SIGINT.
fn stop_on_signals() -> Result<watch::Receiver<bool>, ActionError> {
    let listen = |kind| {
        signal(kind).map_err(|error| ActionError::new(Code::Internal, format!("signals: {error}")))
    };
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Without a receiver there is nothing to stop.
        let _ = stop.send(true);
    });
    Ok(stopping)
}

fn write(reply: &Reply, output: OutputFormat) -> io::Result<()> {
    let text = match output {
        OutputFormat::Json => String::from_utf8_lossy(&reply.to_json()).into_owned(),
        OutputFormat::Pretty => format!("{:#}", reply.to_value()),
        OutputFormat::Text => text(&reply.to_value()),
    };
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// A reply of another process, as a Job's pod leaves it behind, in this format.
pub(crate) fn formatted(body: &[u8], output: OutputFormat) -> String {
    match output {
        OutputFormat::Json => String::from_utf8_lossy(body).into_owned(),
        OutputFormat::Pretty => format!("{:#}", parsed(body)),
        OutputFormat::Text => text(&parsed(body)),
    }
}

fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

/// The answer in sentences: result, how to approve, problems of pods, warnings.
fn text(answer: &Value) -> String {
    let get = |name: &str| answer[name].as_str();
    let mut lines = Vec::new();
    if let Some(result) = get("result") {
        lines.push(result.to_owned());
    }
    if let Some(detail) = get("detail") {
        lines.push(format!("not done: {detail}"));
    }
    if let Some(hint) = get("hint") {
        lines.push(format!("hint: {hint}"));
    }
    if let Some(command) = answer["approval"]["command"].as_str() {
        lines.push(format!("to approve: {command}"));
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for problem in list(&answer["rollout"]["problems"]) {
        lines.push(format!("problem: {}", problem.as_str().unwrap_or_default()));
    }
    for warning in list(&answer["warnings"]) {
        lines.push(format!("warning: {}", warning.as_str().unwrap_or_default()));
    }
    lines.join("\n")
}

/// A file that cannot be written is logged and does not change the outcome.
fn write_termination_message(path: &Path, reply: &Reply) {
    let message = termination_message(reply);
    if let Err(error) = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(&message))
    {
        tracing::warn!(path = %path.display(), %error, "termination message not written");
    }
}

/// The reply in JSON if it fits, else a shortened form.
fn termination_message(reply: &Reply) -> Vec<u8> {
    let json = reply.to_json();
    if json.len() <= MAX_TERMINATION_MESSAGE { json } else { shortened(reply.to_value()) }
}

/// A reply's most important fields, cut so that all of it fits.
fn shortened(mut answer: Value) -> Vec<u8> {
    for (name, limit) in [("result", 1024), ("detail", 1024), ("hint", 512)] {
        if let Some(text) = answer[name].as_str() {
            answer[name] = shorten(text, limit).into();
        }
    }
    for pointer in ["/changes", "/warnings", "/rollout/problems"] {
        if let Some(value) = answer.pointer_mut(pointer) {
            *value = json!([]);
        }
    }
    if let Some(Value::String(message)) = answer.pointer_mut("/rollout/message") {
        *message = shorten(message, 512);
    }
    answer["truncated"] = true.into();
    answer.to_string().into_bytes()
}

/// At most `limit` bytes, cut between characters.
fn shorten(text: &str, limit: usize) -> String {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

/// Whether standard input is a terminal and there is no request.
#[must_use]
pub fn is_idle_terminal(vars: impl Iterator<Item = (OsString, OsString)>) -> bool {
    io::stdin().is_terminal() && env::request(vars).is_ok_and(|found| found.body.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_termination_message_fits_and_is_json() {
        let long = "ü".repeat(3000);
        let body = json!({
            "result": long, "outcome": "failed", "changes": [long], "warnings": [long],
            "rollout": {"state": "failed", "message": long, "problems": [long]},
        });
        let words = shortened(body);
        assert!(words.len() <= MAX_TERMINATION_MESSAGE, "{}", words.len());
        let words: Value = serde_json::from_slice(&words).expect("is JSON");
        assert_eq!(words["outcome"], "failed");
        assert_eq!(words["truncated"], true);
    }

    #[test]
    fn a_termination_message_that_fits_is_the_reply_itself() {
        let reply = Reply::from(ActionError::new(Code::Usage, "no request"));
        assert_eq!(termination_message(&reply), reply.to_json());
    }

    #[test]
    fn text_has_the_result_the_problems_the_warnings_and_the_command_that_approves() {
        let body = json!({
            "result": "Done.", "warnings": ["mind this"],
            "rollout": {"problems": ["pod a: broken"]},
        });
        assert_eq!(text(&body), "Done.\nproblem: pod a: broken\nwarning: mind this");
        let body = json!({"detail": "no such thing", "hint": "look"});
        assert_eq!(text(&body), "not done: no such thing\nhint: look");
        let body = json!({"result": "Waits.", "approval": {"command": "kubectl create"}});
        assert_eq!(text(&body), "Waits.\nto approve: kubectl create");
    }
}
