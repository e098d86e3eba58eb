//! The subcommand of an action: its flags as a request, a question before a real action on a terminal, and the answer.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;
use tokio::task::spawn_blocking;

use crate::{
    actions::request::ActionRequest,
    cli::action::ActionArgs,
    commands::{cluster, run},
    config::Settings,
    contract::{
        error::{ActionError, Code},
        response::ActionResponse,
        visible::one_line,
    },
    executor::{
        Restriction, Shown,
        context::{Context, stopped},
        handle,
        reply::Reply,
    },
    k8s::OWN_PREFIX,
};

/// Runs the action; returns its exit status.
#[must_use]
pub fn run(mut args: ActionArgs, settings: &Settings) -> u8 {
    let done = match with_namespace(&mut args, settings) {
        Ok(()) if args.common.print_request => {
            // A closed pipe is not an error.
            let request = args.request(!args.common.execute);
            let _ = writeln!(io::stdout(), "{request:#}");
            return 0;
        }
        Ok(()) => execute(&args, settings),
        Err(error) => Err(error),
    };
    done.unwrap_or_else(|error| run::answer(&Reply::from(error), args.common.output, settings))
}

/// The namespace is that of the kubeconfig's context if none is given; without a kubeconfig it is `default`.
fn with_namespace(args: &mut ActionArgs, settings: &Settings) -> Result<(), ActionError> {
    if args.kind.is_on_cluster() || args.parameters.contains_key("namespace") {
        return Ok(());
    }
    if let Some(namespace) = cluster::namespace(&args.common.cluster, settings)? {
        args.parameters.insert("namespace".to_owned(), namespace.into());
    }
    Ok(())
}

fn request(args: &ActionArgs, simulate: bool) -> Result<ActionRequest, ActionError> {
    ActionRequest::parse(args.request(simulate).to_string().as_bytes())
}

/// Executes it and answers; returns the exit status. An invalid request is refused before a runtime or a client is
/// built.
fn execute(args: &ActionArgs, settings: &Settings) -> Result<u8, ActionError> {
    let (wanted, simulated) = (request(args, !args.common.execute)?, request(args, true)?);
    let is_terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    let asks = args.common.execute && !args.common.yes && is_terminal;
    Ok(run::answer_in_context(&args.once(), settings, async |context| {
        let mut shown = Shown::default();
        if asks {
            let simulated = handle(context, simulated, Restriction::None).await?;
            confirm(context, question(&simulated)).await?;
            shown = Shown::by(&simulated);
        }
        run::send(context, wanted, args.common.join, &shown).await
    }))
}

/// What a person has to know before the action: where, on what, what changes, and what to mind.
fn question(simulated: &ActionResponse) -> String {
    let reply = Reply::from(simulated.clone()).to_value();
    let text = |value: &Value| one_line(value.as_str().unwrap_or_default());
    let target = &reply["target"];
    let mut lines = vec![format!("cluster: {}", text(&reply["cluster"]))];
    if target["namespace"].is_string() {
        lines.push(format!("namespace: {}", text(&target["namespace"])));
    }
    lines.push(format!("target: {} {}", text(&target["kind"]), text(&target["name"])));
    // Its own annotations, by which it recognises the request, do not matter to a person.
    let own = format!("/annotations/{}", OWN_PREFIX.replace('/', "~1"));
    let is_own = |change: &&Value| change["path"].as_str().is_some_and(|path| path.contains(&own));
    let changes = reply["changes"].as_array().into_iter().flatten();
    for change in changes.filter(|change| !is_own(change)) {
        lines.push(format!(
            "change: {} from {} to {}",
            text(&change["path"]),
            one_line(&change["from"].to_string()),
            one_line(&change["to"].to_string())
        ));
    }
    lines.push(run::text(&reply));
    lines.join("\n")
}

/// Asks on the terminal. Only `y` or `yes` is a yes, and a signal is a no.
///
/// # Errors
/// [`Code::Usage`] without a yes.
async fn confirm(context: &Context, question: String) -> Result<(), ActionError> {
    let asked = spawn_blocking(move || {
        let mut line = String::new();
        // Without an answer it is not confirmed.
        let _ = write!(io::stderr(), "{question}\nExecute this? [y/N] ");
        let _ = io::stderr().flush();
        let _ = io::stdin().read_line(&mut line);
        matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
    });
    let mut stopping = context.stopping();
    let is_confirmed = tokio::select! {
        answer = asked => answer.unwrap_or(false),
        () = stopped(&mut stopping) => false,
    };
    match is_confirmed {
        true => Ok(()),
        false => Err(ActionError::new(Code::Usage, "not confirmed; nothing was done")
            .with_hint("answer y, or set --yes")),
    }
}
