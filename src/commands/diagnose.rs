//! `diagnose`: what is wrong with a target, as text or JSON, with the permissions of this process.

use std::fmt::Write;

use serde_json::json;

use crate::{
    cli::{DiagnoseArgs, OnceArgs, OutputFormat},
    commands::{cluster, run},
    config::Settings,
    contract::{error::ActionError, visible::one_line},
    diagnosis::{
        report::{EventLine, Report},
        target::Target,
    },
    executor::incoming::diagnose_as,
};

/// The report about a target.
///
/// # Errors
/// The target is not one, the policy forbids its namespace, or why it could not be read.
pub fn diagnose(args: &DiagnoseArgs, settings: &Settings) -> Result<String, ActionError> {
    let target = target(args, settings)?;
    let once = OnceArgs { output: args.output, join: false, cluster: args.cluster.clone() };
    let report = run::with_context(&once, settings, async |context| {
        let context = context.for_cluster(args.cluster.cluster.as_ref())?;
        diagnose_as(&context, None, &target, context.deadline()).await
    })?;
    Ok(match args.output {
        OutputFormat::Json => json!(report).to_string(),
        OutputFormat::Pretty => format!("{:#}", json!(report)),
        OutputFormat::Text => text(&report),
    })
}

/// The namespace is that of the kubeconfig's context if none is given, and a node has none.
fn target(args: &DiagnoseArgs, settings: &Settings) -> Result<Target, ActionError> {
    let named = Target::read(&args.target, args.namespace.clone())?;
    if named.namespace.is_none() || args.namespace.is_some() {
        return Ok(named);
    }
    match cluster::namespace(&args.cluster, settings)? {
        Some(namespace) => {
            let namespace = namespace
                .try_into()
                .map_err(|what: String| ActionError::invalid_field("namespace", what))?;
            Target::read(&args.target, Some(namespace))
        }
        None => Ok(named),
    }
}

/// The report for a person, in which nothing that the cluster says is more than one line.
fn text(report: &Report) -> String {
    let mut text = one_line(&format!("{}: {}", report.target, report.state)) + "\n";
    let mut add = |heading: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            // Writing to a String does not fail.
            let _ = writeln!(text, "\n{}", one_line(heading));
            for line in lines {
                let _ = writeln!(text, "  {}", one_line(&line));
            }
        }
    };
    add("Findings", report.findings.iter().map(|it| it.message.clone()).collect());
    if let Some(node) = &report.node {
        add("Conditions", node.conditions.clone());
        add("Taints", node.taints.clone());
    }
    if let Some(pods) = &report.pods {
        let lines = pods
            .listed
            .iter()
            .map(|pod| format!("{}  {}  {} restarts", pod.name, pod.status, pod.restarts));
        add(&format!("Pods ({} of {} ready)", pods.ready, pods.total), lines.collect());
    }
    let events = report.events.iter();
    let event =
        |it: &EventLine| format!("{}  {}  {}: {}", it.age, it.object, it.reason, it.message);
    add("Events", events.map(event).collect());
    if let Some(log) = &report.log {
        let before = if log.previous { ", the instance before" } else { "" };
        add(&format!("Log of {}, {}{before}", log.pod, log.container), log.lines.clone());
    }
    add("Owners", report.owners.clone());
    let done = report.history.iter().map(|done| {
        let of = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        format!("{}  {}  {}  {}", of(&done.at), of(&done.event), of(&done.kind), of(&done.id))
    });
    add("Done lately", done.collect());
    let unread = report.unread.iter().map(|unread| match &unread.hint {
        Some(hint) => format!("{}; {hint}", unread.why),
        None => unread.why.clone(),
    });
    add("Not read", unread.collect());
    add("Left out", report.cut.clone());
    text
}
