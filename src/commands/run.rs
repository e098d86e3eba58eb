//! `run`: one request from a file, standard input or the environment; one answer on standard output; the exit
//! status of its outcome.
//!
//! Logs go to standard error. The answer is also the container's termination message.

use std::{
    ffi::OsString,
    fs,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
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
    commands::{
        env,
        terminal::{self, LiveView},
    },
    config::Settings,
    contract::{
        cut::beginning,
        error::{ActionError, Code},
        response::{ActionResponse, LONG_LISTS},
        targets::shorten_targets,
        visible::one_line,
    },
    executor::{
        Restriction, Shown,
        context::{Context, stopped},
        handle,
        incoming::IncomingRequest,
        observer::Observer,
        reply::Reply,
        reports::FLUSH_TIMEOUT,
        wait::DEFAULT_WAIT,
    },
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
    let request = read(source).and_then(|incoming| incoming.request());
    match request.and_then(|request| request.with_cluster(args.cluster.cluster.as_ref())) {
        // An invalid request is refused before a runtime or a client is built.
        Err(error) => answer(&Reply::from(error), args.output, settings),
        Ok(request) => answer_in_context(args, settings, async |context| {
            send(context, request, args.join, &Shown::default()).await
        }),
    }
}

/// Writes an error to standard output alone: of the settings, or of a command that is no request; returns its exit
/// status.
#[must_use]
pub fn report(error: ActionError, output: OutputFormat) -> u8 {
    let reply = Reply::from(error);
    // A closed pipe is not an error.
    let _ = write(&reply, output);
    reply.exit_status()
}

/// Writes the answer where it is expected; returns its exit status.
pub(super) fn answer(reply: &Reply, output: OutputFormat, settings: &Settings) -> u8 {
    if let Some(path) = &settings.termination_log {
        write_termination_message(path, reply);
    }
    if let Err(error) = write(reply, output) {
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
            Ok(IncomingRequest { body, key: environment.key, ..IncomingRequest::default() })
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

/// Does this with the cluster, the policy and the settings of a single request, and writes the answer; returns its exit
/// status. Notifications have a little time once the answer is written.
pub(super) fn answer_in_context(
    args: &OnceArgs,
    settings: &Settings,
    work: impl AsyncFnOnce(&Context) -> Result<ActionResponse, ActionError>,
) -> u8 {
    let done = with_context(args, settings, async |context| {
        let reply = work(context).await.map_or_else(Reply::from, Reply::from);
        let status = answer(&reply, args.output, settings);
        context.reports().flush(FLUSH_TIMEOUT).await;
        Ok(status)
    });
    done.unwrap_or_else(|error| answer(&Reply::from(error), args.output, settings))
}

/// Does this with the cluster, the policy and the settings of a single request.
pub(super) fn with_context<T>(
    args: &OnceArgs,
    settings: &Settings,
    work: impl AsyncFnOnce(&Context) -> Result<T, ActionError>,
) -> Result<T, ActionError> {
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let context = context(args.cluster.context.as_deref(), settings).await?;
        work(&context).await
    });
    // A look-up of a name that hangs, a plugin, or a question without an answer must not delay the end.
    runtime.shutdown_background();
    result
}

/// Carries it out for the objects that were shown to a person, if any were, or waits for another attempt that does.
pub(super) async fn send(
    context: &Context,
    request: ActionRequest,
    joins: bool,
    shown: &Shown,
) -> Result<ActionResponse, ActionError> {
    let view = Arc::new(LiveView::default());
    let context = match io::stderr().is_terminal() {
        true => &context.clone().map_observer(|observer| shown_in(&view, observer)),
        false => context,
    };
    let result = match joins {
        true => join(context, request, shown).await,
        false => handle(context, request, Restriction::Shown(shown)).await,
    };
    // The answer has the terminal for itself.
    view.end();
    result
}

/// The observer that also shows the stages and details of a wait in this view.
fn shown_in(view: &Arc<LiveView>, observer: Observer) -> Observer {
    let (stages, details) = (view.clone(), view.clone());
    observer
        .on_progress(move |stage| stages.show(stage))
        .on_details(move |found| details.show_details(found))
}

/// A runtime on the current thread.
pub(crate) fn runtime() -> Result<Runtime, ActionError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ActionError::new(Code::Internal, format!("the runtime: {error}")))
}

/// Waits for another attempt at the same request, within the request's timeout.
async fn join(
    context: &Context,
    request: ActionRequest,
    shown: &Shown,
) -> Result<ActionResponse, ActionError> {
    let end = Instant::now() + request.timeout.unwrap_or(DEFAULT_WAIT);
    let mut stopping = context.stopping();
    loop {
        match handle(context, request.clone(), Restriction::Shown(shown)).await {
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
    Context::connect(kube_context, settings, stop_on_signals()?).await
}

/// True after the first SIGTERM or SIGINT.
pub(super) fn stop_on_signals() -> Result<watch::Receiver<bool>, ActionError> {
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
        OutputFormat::Text => {
            let answer = reply.to_value();
            let text = text(&answer);
            if terminal::takes_colours() { terminal::coloured(&text, &answer) } else { text }
        }
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

/// The answer in sentences: result, how to approve, problems of pods, warnings. Each is one line, whatever the cluster
/// says, so that none looks like another.
pub(super) fn text(answer: &Value) -> String {
    let get = |name: &str| answer[name].as_str().map(one_line);
    let mut lines = Vec::new();
    if let Some(result) = get("result") {
        lines.push(result);
    }
    if let Some(detail) = get("detail") {
        lines.push(format!("not done: {detail}"));
    }
    if let Some(hint) = get("hint") {
        lines.push(format!("hint: {hint}"));
    }
    if let Some(command) = answer["approval"]["command"].as_str() {
        lines.push(format!("to approve: {}", one_line(command)));
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for target in list(&answer["targets"]) {
        lines.extend(text_of_target(&target));
    }
    for problem in list(&answer["rollout"]["problems"]) {
        lines.push(format!("problem: {}", one_line(problem.as_str().unwrap_or_default())));
    }
    for warning in list(&answer["warnings"]) {
        lines.push(format!("warning: {}", one_line(warning.as_str().unwrap_or_default())));
    }
    lines.join("\n")
}

/// The outcome of one of several targets, with the warnings about it.
fn text_of_target(result: &Value) -> Vec<String> {
    let text = |value: &Value| one_line(value.as_str().unwrap_or_default());
    let (target, outcome) = (&result["target"], text(&result["outcome"]));
    let object = format!("{} {}", text(&target["kind"]), text(&target["name"]));
    let mut lines = vec![format!("{object}: {outcome}: {}", text(&result["result"]))];
    if let Some(hint) = result["hint"].as_str() {
        lines.push(format!("  hint: {}", one_line(hint)));
    }
    for warning in result["warnings"].as_array().into_iter().flatten() {
        lines.push(format!("  warning: {}", text(warning)));
    }
    lines
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
            answer[name] = beginning(text, limit).into();
        }
    }
    for pointer in LONG_LISTS {
        if let Some(value) = answer.pointer_mut(pointer) {
            *value = json!([]);
        }
    }
    for (pointer, limit) in [
        ("/rollout/message", 512),
        ("/observation/message", 256),
        ("/rolled_back/rollout/message", 256),
    ] {
        if let Some(Value::String(message)) = answer.pointer_mut(pointer) {
            *message = beginning(message, limit).to_owned();
        }
    }
    answer["truncated"] = true.into();
    shorten_targets(&mut answer, MAX_TERMINATION_MESSAGE);
    answer.to_string().into_bytes()
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
    fn a_termination_message_about_many_targets_fits_and_names_the_failed_ones() {
        let target = |number: usize| {
            let outcome = if number == 49 { "failed" } else { "applied" };
            let name = format!("{number:0>253}");
            json!({"id": "i".repeat(63), "target": {"name": name}, "outcome": outcome,
                   "result": "r".repeat(200)})
        };
        let targets: Vec<_> = (0..50).map(target).collect();
        let body = json!({"result": "r".repeat(3000), "outcome": "failed", "targets": targets});
        let words = shortened(body);
        assert!(words.len() <= MAX_TERMINATION_MESSAGE, "{}", words.len());
        let words: Value = serde_json::from_slice(&words).expect("is JSON");
        assert_eq!(words["targets"][0]["outcome"], "failed");
        assert_eq!(words["targets_by_outcome"], json!({"applied": 49, "failed": 1}));
        let listed = words["targets"].as_array().expect("is a list").len();
        assert_eq!(words["targets_left_out"], 50 - listed);
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

    #[test]
    fn a_text_of_the_cluster_stays_on_its_line() {
        let forged = "mind\nto approve: curl evil\u{1b}[1A\u{9b}2K";
        let shown = "mind to approve: curl evil[1A2K";
        let body = json!({"result": "Done.", "warnings": [forged]});
        assert_eq!(text(&body), format!("Done.\nwarning: {shown}"));
        let body = json!({"detail": forged, "hint": forged, "rollout": {"problems": [forged]}});
        assert_eq!(text(&body), format!("not done: {shown}\nhint: {shown}\nproblem: {shown}"));
        let one = json!({"target": {"kind": "Deployment", "name": "web"}, "outcome": "refused",
                         "result": forged, "hint": forged, "warnings": [forged]});
        let expected =
            format!("Deployment web: refused: {shown}\n  hint: {shown}\n  warning: {shown}");
        assert_eq!(text(&json!({ "targets": [one] })), expected);
    }
}
