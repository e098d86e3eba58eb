//! `doctor`: whether this program can work here: its policy, its cluster, its identity, its permissions, the clock, the
//! kill switch. It changes nothing, and says of each what to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{TimeDelta, Utc};
use serde::Serialize;
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    actions::ActionKind,
    cli::{DoctorArgs, OutputFormat},
    commands::{cluster, document, run},
    config::{
        ReceiptSettings, Settings, SinkSettings,
        impersonation::ImpersonationRules,
        reload::{Reloading, Source},
    },
    contract::{
        error::{ActionError, Code},
        visible::one_line,
    },
    k8s::{
        api::{client::Cluster, self_review::ResourceAccess},
        rbac::PolicyRule,
    },
    ledger, notifications,
    policy::{
        Policy, approval,
        budget::{self, Budget},
    },
    receipts,
};

/// The time for all questions together.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How many permissions are asked about at the same time.
const MAX_PARALLEL: usize = 8;

/// How far the clock may be off: by more, requests with `issued_at` may be refused.
const MAX_CLOCK_SKEW: TimeDelta = TimeDelta::seconds(10);

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum CheckStatus {
    Ok,
    /// It works, with less.
    Warning,
    Failed,
}

/// One check, and what to do if it is not well.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Check {
    check: String,
    state: CheckStatus,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Check {
    fn new(check: &str, state: CheckStatus, detail: impl Into<String>) -> Self {
        Check { check: check.to_owned(), state, detail: detail.into(), hint: None }
    }

    fn failed(check: &str, error: &ActionError) -> Self {
        let hint = error.hint.as_deref().map(str::to_owned);
        Check { hint, ..Check::new(check, CheckStatus::Failed, error.detail.clone()) }
    }

    fn with_hint(self, hint: impl Into<String>) -> Self {
        Check { hint: Some(hint.into()), ..self }
    }

    fn line(&self) -> String {
        let state = match self.state {
            CheckStatus::Ok => "ok",
            CheckStatus::Warning => "WARNING",
            CheckStatus::Failed => "FAILED",
        };
        let hint = self.hint.iter().map(|hint| format!("\n{:<32}-> {}", "", one_line(hint)));
        let detail = one_line(&self.detail);
        format!("{state:<9}{:<23}{detail}{}", self.check, hint.collect::<String>())
    }
}

/// Checks everything; exit status 78 if something is not as it must be.
///
/// # Errors
/// The output could not be written as asked.
pub fn examine(args: &DoctorArgs, settings: &Settings) -> Result<(String, u8), ActionError> {
    let checks = run::runtime()?.block_on(checks(args, settings));
    let has_failed = checks.iter().any(|check| check.state == CheckStatus::Failed);
    let status = if has_failed { Code::Configuration.exit_status() } else { 0 };
    let text = match args.output {
        OutputFormat::Text => checks.iter().map(Check::line).collect::<Vec<_>>().join("\n"),
        output => document(&json!({ "findings": checks }), output)?,
    };
    Ok((text, status))
}

async fn checks(args: &DoctorArgs, settings: &Settings) -> Vec<Check> {
    let mut checks = Vec::new();
    let source = match cluster::policy(&args.cluster, settings) {
        Ok(source) => source,
        Err(error) => {
            checks.push(Check::failed("cluster", &error));
            return checks;
        }
    };
    let policy = match Reloading::<Policy>::new(source.clone()) {
        Ok(policy) => {
            checks.push(policy_check(&policy.current(), source.as_ref()));
            (*policy.current()).clone()
        }
        Err(error) => {
            checks.push(Check::failed("policy", &error));
            return checks;
        }
    };
    checks.extend(settings.receipts.as_ref().map(receipts_check));
    checks.extend(settings.sink.as_ref().map(sink_check));
    let cluster = match cluster::find(&args.cluster, settings).await {
        Ok(Some(cluster)) => cluster,
        Ok(None) => {
            let check = Check::new("cluster", CheckStatus::Failed, "no cluster is configured");
            checks
                .push(check.with_hint("set KUBECONFIG, or run where a service account is mounted"));
            return checks;
        }
        Err(error) => {
            checks.push(Check::failed("cluster", &error));
            return checks;
        }
    };
    let deadline = Instant::now() + TIMEOUT;
    let name = cluster.name().to_owned();
    let version = match cluster.ready().await {
        Ok(()) => cluster.version(deadline).await,
        Err(error) => Err(error),
    };
    match version {
        Ok(version) => {
            checks.push(Check::new(
                "cluster",
                CheckStatus::Ok,
                format!("{name}, Kubernetes {version}"),
            ));
        }
        Err(error) => {
            checks.push(Check::failed("cluster", &error));
            return checks;
        }
    }
    checks.push(Check::new("identity", CheckStatus::Ok, cluster.user_name().await));
    checks.push(clock(cluster.now() - Utc::now()));
    checks.push(kill_switch(&cluster, &policy, deadline).await);
    let namespace = args.namespace.as_deref().unwrap_or(cluster.default_namespace());
    let impersonation = settings.impersonation.as_ref();
    checks.extend(permissions(&cluster, &policy, impersonation, namespace, deadline).await);
    checks
}

fn policy_check(policy: &Policy, source: Option<&Source>) -> Check {
    let from = match source {
        Some(Source::File(path)) => path.display().to_string(),
        Some(Source::Variable(name, _)) => (*name).to_owned(),
        None => "no policy is set, so the default one applies".to_owned(),
    };
    let permitted = ActionKind::ALL.into_iter().filter(|kind| policy.permits(*kind)).count();
    if policy.read_only {
        let check = Check::new("policy", CheckStatus::Warning, format!("{from}: only simulations"));
        return check.with_hint("set read_only: false to allow real actions");
    }
    Check::new("policy", CheckStatus::Ok, format!("{from}: {permitted} actions"))
}

/// Whether the key can sign. The file is not opened, which would create it.
fn receipts_check(settings: &ReceiptSettings) -> Check {
    let file = settings.file.as_ref().map(|path| path.display().to_string());
    let place = file.unwrap_or_else(|| "the sink".to_owned());
    match receipts::key_in(&settings.key) {
        Ok(key) => {
            Check::new("receipts", CheckStatus::Ok, format!("{place}, with key {}", key.id()))
        }
        Err(error) => Check::failed("receipts", &error),
    }
}

/// Whether notifications can be signed. Nothing is sent.
fn sink_check(settings: &SinkSettings) -> Check {
    match notifications::check_secret(settings) {
        Ok(()) => Check::new(
            "sink",
            CheckStatus::Ok,
            "the secret of the sink can be used; no notification was sent",
        ),
        Err(error) => Check::failed("sink", &error),
    }
}

/// `ahead` is by how much the API server's clock is ahead of ours.
fn clock(ahead: TimeDelta) -> Check {
    let seconds = ahead.num_milliseconds().abs() as f64 / 1000.0;
    let detail = format!("{seconds:.1} s from that of the API server");
    if ahead.abs() <= MAX_CLOCK_SKEW {
        return Check::new("clock", CheckStatus::Ok, detail);
    }
    Check::new("clock", CheckStatus::Warning, detail).with_hint(
        "set the clock of this machine, for example by NTP: requests with issued_at may be refused as too old",
    )
}

async fn kill_switch(cluster: &Cluster, policy: &Policy, deadline: Instant) -> Check {
    let namespace = policy.state.namespace.as_deref().unwrap_or(cluster.default_namespace());
    let lease = format!("Lease {namespace}/{}", policy.state.name);
    let budget = Budget::new(policy.budget_limits(), namespace, &policy.state.name, cluster);
    match budget.check_switch(deadline).await {
        Ok(()) => Check::new("kill switch", CheckStatus::Ok, format!("off ({lease})")),
        Err(error) if error.code == Code::Stopped => {
            let check = Check::failed("kill switch", &error);
            Check { state: CheckStatus::Warning, ..check }
        }
        Err(error) => Check::failed("kill switch", &error),
    }
}

/// Where a permission is needed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Needed {
    access: ResourceAccess,
    /// The namespace; empty for the whole cluster.
    namespace: String,
    /// The only object that it is needed for, where a Role is restricted to its name.
    name: Option<String>,
}

fn needed(rule: &PolicyRule, namespace: &str) -> Vec<Needed> {
    let mut all = Vec::new();
    for group in rule.api_groups {
        for resource in rule.resources {
            for verb in rule.verbs {
                let access = ResourceAccess { group, resource, verb };
                all.push(Needed { access, namespace: namespace.to_owned(), name: None });
            }
        }
    }
    all
}

/// The permissions of the budget are for its Lease alone, where RBAC can restrict them (`manifests::rbac`).
fn needed_for_budget(policy: &Policy, namespace: &str) -> Vec<Needed> {
    let mut all = needed(&budget::RULE, namespace);
    for it in all.iter_mut().filter(|it| it.access.verb != "create") {
        it.name = Some(policy.state.name.to_string());
    }
    all
}

/// What the impersonation of callers needs for these rules; with constrained impersonation (KEP-5284), which does not
/// cover service accounts. Who the callers are is not known, and so not which users.
fn needed_to_impersonate(rules: &ImpersonationRules, constrained: bool) -> Vec<Needed> {
    const AUTHENTICATION: &str = "authentication.k8s.io";
    let (group, verb) = match constrained {
        true => (AUTHENTICATION, "impersonate:user-info"),
        false => ("", "impersonate"),
    };
    let needed = |access: ResourceAccess, namespace: &str, name: Option<String>| Needed {
        access,
        namespace: namespace.to_owned(),
        name,
    };
    let uids = ResourceAccess { group: AUTHENTICATION, resource: "uids", verb };
    let groups = ResourceAccess { group, resource: "groups", verb };
    let mut all = vec![needed(uids, "", None)];
    all.extend(rules.groups.iter().map(|name| needed(groups, "", Some(name.clone()))));
    let account = ResourceAccess { group: "", resource: "serviceaccounts", verb: "impersonate" };
    all.extend(rules.accounts.iter().map(|it| {
        let name = Some(it.name.to_string());
        needed(account, &it.namespace, name)
    }));
    all
}

/// The check of plain or constrained impersonation, whichever is granted.
fn impersonation_check(rules: &ImpersonationRules, granted: &BTreeMap<Needed, bool>) -> Check {
    let of = |constrained: bool| {
        permissions_check("impersonation", &needed_to_impersonate(rules, constrained), granted)
            .with_hint("`action-executor rbac --impersonate` prints the permissions")
    };
    let constrained = of(true);
    if constrained.state == CheckStatus::Ok { constrained } else { of(false) }
}

/// For the records, the budget, approvals and each action that the policy permits: which permissions are missing. Where
/// callers are impersonated, they need the permissions of the actions themselves.
async fn permissions(
    cluster: &Cluster,
    policy: &Policy,
    impersonation: Option<&ImpersonationRules>,
    namespace: &str,
    deadline: Instant,
) -> Vec<Check> {
    let state = policy.state.namespace.as_deref().unwrap_or(cluster.default_namespace());
    let mut checks = vec![
        ("records".to_owned(), needed(&ledger::RULE, namespace)),
        ("budget".to_owned(), needed_for_budget(policy, state)),
    ];
    if policy.requires_approval() {
        checks.push(("approvals".to_owned(), needed(&approval::RULE, namespace)));
    }
    let acts = impersonation.is_none();
    for kind in ActionKind::ALL.into_iter().filter(|kind| acts && policy.permits(*kind)) {
        let descriptor = kind.descriptor();
        let here = descriptor.rules.iter().flat_map(|rule| needed(rule, namespace));
        let everywhere = descriptor.cluster_rules.iter().flat_map(|rule| needed(rule, ""));
        checks.push((kind.name().to_owned(), here.chain(everywhere).collect()));
    }
    let mut all: BTreeSet<_> = checks.iter().flat_map(|(_, needed)| needed.clone()).collect();
    for constrained in [false, true] {
        all.extend(impersonation.iter().flat_map(|it| needed_to_impersonate(it, constrained)));
    }
    let granted = match review(cluster, all, deadline).await {
        Ok(granted) => granted,
        Err(error) => return vec![Check::failed("permissions", &error)],
    };
    let found = checks.iter().map(|(check, needed)| permissions_check(check, needed, &granted));
    found.chain(impersonation.map(|rules| impersonation_check(rules, &granted))).collect()
}

async fn review(
    cluster: &Cluster,
    all: BTreeSet<Needed>,
    deadline: Instant,
) -> Result<BTreeMap<Needed, bool>, ActionError> {
    let (mut asking, mut granted) = (JoinSet::new(), BTreeMap::new());
    let mut left = all.into_iter();
    loop {
        while asking.len() < MAX_PARALLEL
            && let Some(needed) = left.next()
        {
            let cluster = cluster.clone();
            asking.spawn(async move {
                let Needed { access, namespace, name } = &needed;
                let is_allowed =
                    cluster.is_allowed(*access, namespace, name.as_deref(), deadline).await;
                is_allowed.map(|is_allowed| (needed, is_allowed))
            });
        }
        match asking.join_next().await {
            Some(Ok(answer)) => granted.extend([answer?]),
            Some(Err(_)) => {}
            None => return Ok(granted),
        }
    }
}

fn permissions_check(check: &str, needed: &[Needed], granted: &BTreeMap<Needed, bool>) -> Check {
    let missing: Vec<_> =
        needed.iter().filter(|it| !granted.get(it).copied().unwrap_or(false)).collect();
    let named = |it: &&Needed| {
        let ResourceAccess { group, resource, verb } = it.access;
        let group = if group.is_empty() { String::new() } else { format!(".{group}") };
        let scope = match it.namespace.as_str() {
            "" => "in the cluster".to_owned(),
            namespace => format!("in {namespace}"),
        };
        let name = it.name.iter().map(|name| format!(" {name}")).collect::<String>();
        format!("{verb} {resource}{group}{name} {scope}")
    };
    let names: Vec<_> = missing.iter().map(named).collect();
    // Without a watch a wait polls.
    let state = match missing.iter().all(|it| it.access.verb == "watch") {
        _ if missing.is_empty() => {
            return Check::new(check, CheckStatus::Ok, "all permissions are granted");
        }
        true => CheckStatus::Warning,
        false => CheckStatus::Failed,
    };
    Check::new(check, state, format!("not granted: {}", names.join(", ")))
        .with_hint("`action-executor rbac` prints the Roles that the policy needs")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: PolicyRule =
        PolicyRule { api_groups: &["apps"], resources: &["deployments"], verbs: &["get", "watch"] };

    #[test]
    fn a_missing_permission_is_named_and_a_missing_watch_is_a_warning() {
        let needed = needed(&RULE, "shop");
        let without = |verb: &str| -> Check {
            let granted = needed.iter().map(|it| (it.clone(), it.access.verb != verb)).collect();
            permissions_check("scale", &needed, &granted)
        };
        assert_eq!(without("none").state, CheckStatus::Ok);
        assert_eq!(without("watch").state, CheckStatus::Warning);
        let failed = without("get");
        assert_eq!(failed.state, CheckStatus::Failed);
        assert_eq!(failed.detail, "not granted: get deployments.apps in shop");
        assert_eq!(
            permissions_check("scale", &needed, &BTreeMap::new()).state,
            CheckStatus::Failed
        );
    }

    #[test]
    fn impersonation_is_granted_plainly_or_constrained() {
        let rules = ImpersonationRules { groups: vec!["sre".to_owned()], ..Default::default() };
        let with = |constrained: bool| -> Check {
            let needed = needed_to_impersonate(&rules, constrained);
            impersonation_check(&rules, &needed.into_iter().map(|it| (it, true)).collect())
        };
        assert_eq!((with(false).state, with(true).state), (CheckStatus::Ok, CheckStatus::Ok));
        let missing = impersonation_check(&rules, &BTreeMap::new());
        assert_eq!(missing.state, CheckStatus::Failed);
        assert!(missing.detail.contains("impersonate groups sre in the cluster"), "{missing:?}");
        assert!(missing.hint.expect("has one").contains("rbac --impersonate"));
    }

    #[test]
    fn a_clock_that_is_far_off_is_a_warning_in_both_directions() {
        for (seconds, state) in [
            (0, CheckStatus::Ok),
            (9, CheckStatus::Ok),
            (11, CheckStatus::Warning),
            (-11, CheckStatus::Warning),
        ] {
            assert_eq!(clock(TimeDelta::seconds(seconds)).state, state, "{seconds}");
        }
    }

    #[test]
    fn a_line_has_the_state_the_check_and_what_to_do() {
        let check = Check::new("clock", CheckStatus::Warning, "off").with_hint("set it");
        let line = check.line();
        assert!(line.starts_with("WARNING  clock                  off\n"), "{line}");
        assert!(line.ends_with("-> set it"), "{line}");
        let forged = Check::new("kill switch", CheckStatus::Warning, "stopped\nok\u{1b}[2J");
        assert_eq!(forged.line(), "WARNING  kill switch            stopped ok[2J");
    }
}
