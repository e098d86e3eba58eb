//! `policy` and `rbac`: checks a policy, explains its decision about a request, and prints the Roles and admission
//! policies for it. Makes no calls.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    cli::{AdmissionArgs, CheckArgs, OutputFormat, RbacArgs},
    commands::{document, run::read_request},
    config::reload::Reloading,
    contract::{
        error::{ActionError, Code},
        names::Namespace,
    },
    diagnosis::parts,
    k8s::rbac::PolicyRule,
    manifests::{
        admission,
        impersonation::{self, Impersonated},
        rbac, yaml,
    },
    policy::{
        Policy,
        evaluate::{Effect, Evaluation, Facts},
    },
};

/// Checks a policy, and a request against it. Returns the output and the exit status: 0 allowed, 75 needs
/// approval, 77 denied.
///
/// # Errors
/// [`Code::Configuration`] with line and column, or what is wrong with the request.
pub fn check(args: &CheckArgs) -> Result<(String, u8), ActionError> {
    let policy = load(Some(&args.policy))?;
    let Some(file) = &args.request else {
        return Ok((document(&json!(policy), args.output)?, 0));
    };
    let request = read_request(file)?;
    let labels = args.labels.iter().cloned().collect();
    let labels = (!args.labels.is_empty()).then_some(&labels);
    let facts = Facts { labels, ..Facts::of(&request, None) };
    let evaluation = policy.judge(&facts);
    let (word, status) = conclusion(&evaluation);
    let text = match args.output {
        OutputFormat::Text => explain(&evaluation, word),
        output => document(&json!({ "verdict": word, "results": evaluation.results }), output)?,
    };
    Ok((text, status))
}

/// The admission policies for a policy.
///
/// # Errors
/// [`Code::Configuration`] with line and column.
pub fn admission(args: &AdmissionArgs) -> Result<String, ActionError> {
    let policy = load(args.policy.as_deref())?;
    yaml(&admission::manifests(&policy, &args.service_account))
}

/// The Roles for a policy.
///
/// # Errors
/// [`Code::Configuration`] with line and column.
pub fn rbac(args: &RbacArgs) -> Result<String, ActionError> {
    let policy = load(args.policy.as_deref())?;
    let namespaces = match args.namespace.as_slice() {
        [] => std::slice::from_ref(&args.service_account.namespace),
        namespaces => namespaces,
    };
    let account = &args.service_account;
    let mut documents = match args.impersonate {
        true => rbac::record_manifests(&policy, account, namespaces),
        false => rbac::manifests(&policy, account, namespaces),
    };
    let nodes = match (args.nodes, args.impersonate) {
        (true, true) => rbac::node_record_manifests(&policy, account),
        (true, false) => rbac::node_manifests(&policy, account),
        (false, _) => Vec::new(),
    };
    if args.history {
        let mut namespaces = namespaces.to_vec();
        // The records of actions on nodes are in `default`.
        if !nodes.is_empty() && !namespaces.contains(&Namespace::default()) {
            namespaces.push(Namespace::default());
        }
        documents.extend(rbac::history_manifests(account, &namespaces));
    }
    if args.diagnosis && !args.impersonate {
        documents.extend(rbac::diagnosis_manifests(account, namespaces, args.nodes));
    }
    documents.extend(nodes);
    if args.impersonate {
        documents.extend(impersonation_manifests(args, &policy, namespaces));
    }
    yaml(&documents)
}

/// The permissions to make calls in the name of others.
fn impersonation_manifests(
    args: &RbacArgs,
    policy: &Policy,
    namespaces: &[Namespace],
) -> Vec<Value> {
    let account = &args.service_account;
    let who = Impersonated {
        users: &args.impersonate_user,
        groups: &args.impersonate_group,
        accounts: &args.impersonate_account,
        extra: &args.impersonate_extra,
        constrained: args.constrained,
    };
    let mut documents = impersonation::manifests(&who, account);
    if !args.constrained {
        return documents;
    }
    let enabled = rbac::enabled(policy);
    let of_actions = enabled.iter().flat_map(|kind| kind.descriptor().rules);
    let of_diagnoses = parts::RULES.iter().filter(|_| args.diagnosis);
    let rules = distinct(of_actions.chain(of_diagnoses));
    documents.extend(impersonation::constrained(&rules, account, namespaces));
    if args.nodes {
        let of_actions = rbac::cluster_rules(&enabled);
        let of_diagnoses = parts::NODE_RULES.iter().filter(|_| args.diagnosis);
        let rules = distinct(of_actions.iter().chain(of_diagnoses));
        documents.extend(impersonation::constrained_in_cluster(&rules, account));
    }
    documents
}

fn distinct<'a>(rules: impl Iterator<Item = &'a PolicyRule>) -> Vec<PolicyRule> {
    let mut found: Vec<PolicyRule> = Vec::new();
    for rule in rules {
        if !found.contains(rule) {
            found.push(*rule);
        }
    }
    found
}

fn load(path: Option<&Path>) -> Result<Policy, ActionError> {
    Ok((*Reloading::<Policy>::new(path.map(|path| path.to_owned().into()))?.current()).clone())
}

fn conclusion(evaluation: &Evaluation) -> (&'static str, u8) {
    match evaluation.refuse() {
        Err(_) => ("denied", Code::PolicyDenied.exit_status()),
        Ok(()) if evaluation.requires_approval() => ("needs approval", 75),
        Ok(()) => ("allowed", 0),
    }
}

fn explain(evaluation: &Evaluation, word: &str) -> String {
    let mut lines: Vec<_> = evaluation
        .results
        .iter()
        .map(|result| {
            let finding = match result.effect {
                Effect::Allow => "ok",
                Effect::Deny => "DENIED",
                Effect::RequireApproval => "APPROVAL",
                Effect::Unknown => "later",
            };
            format!("{finding:<10}{:<29}{}", result.rule, result.reason)
        })
        .collect();
    for (rule, why) in [
        ("cooldown_seconds", "counted at execution"),
        ("budget", "counted at execution"),
        ("state", "the kill switch is checked at execution"),
    ] {
        lines.push(format!("{:<10}{rule:<29}{why}", "later"));
    }
    lines.push(format!("=> {word}"));
    lines.join("\n")
}
