//! Targets that a label selector chooses instead of a name: which workloads of a namespace they are, and how many may
//! be chosen and may fail.
//!
//! They are chosen once. The plan names them with their uids, and the record has them, so that an attempt that takes
//! the request over after a crash acts on no others. What is done to each is a request of its own, which the executor
//! plans and carries out (`executor::selection`). Must not depend on one action.

use std::collections::BTreeSet;

use kube::core::ObjectMeta;

use crate::{
    actions::{
        AffectedObject, CompletionSpec, Decision, Plan, PlanInput, Preview,
        plan::{READ_AGAIN, SelectedTarget},
    },
    contract::{
        counted::counted,
        error::{ActionError, Code},
        label_selector::LabelSelector,
        names::ObjectName,
        response::Target,
    },
    k8s::{api::client::Cluster, pods::join_names, workload::WorkloadKind},
};

/// The default and the largest `max_targets`. The record, which is in annotations, has the answer for each target.
pub(crate) const DEFAULT_MAX_TARGETS: u32 = 10;
pub(crate) const MAX_TARGETS: u32 = 50;

/// How the targets of a request are chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selection<'a> {
    pub kind: WorkloadKind,
    pub namespace: &'a str,
    pub selector: &'a LabelSelector,
    /// It is refused if more match.
    pub max_targets: u32,
    /// How many targets may fail before the others are left alone.
    pub max_failures: u32,
}

/// The parameters by which a target is named, or several are chosen.
pub(crate) struct Chosen<'a> {
    /// The field that names one target.
    pub field: &'static str,
    pub name: Option<&'a ObjectName>,
    pub selector: Option<&'a LabelSelector>,
    pub max_targets: Option<u32>,
    pub max_failures: Option<u32>,
}

impl<'a> Chosen<'a> {
    /// Checks that either one target is named or several are chosen.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] with the wrong field.
    pub(crate) fn check(&self) -> Result<(), ActionError> {
        let Chosen { field, name, selector, max_targets, max_failures } = *self;
        let invalid = |of: &str, what: &str| {
            Err(ActionError::invalid_field(format!("parameters.{of}"), what))
        };
        match (name, selector) {
            (None, None) => return invalid(field, "missing"),
            (Some(_), Some(_)) => {
                return invalid("selector", &format!("cannot be combined with {field}"));
            }
            (Some(_), None) if max_targets.is_some() => {
                return invalid("max_targets", "has no meaning without selector");
            }
            (Some(_), None) if max_failures.is_some() => {
                return invalid("max_failures", "has no meaning without selector");
            }
            _ => {}
        }
        if max_targets.is_some_and(|number| !(1..=MAX_TARGETS).contains(&number)) {
            return invalid("max_targets", &format!("must be from 1 to {MAX_TARGETS}"));
        }
        if max_failures.is_some_and(|number| number >= MAX_TARGETS) {
            let largest = MAX_TARGETS - 1;
            return invalid("max_failures", &format!("must be from 0 to {largest}"));
        }
        Ok(())
    }

    /// The target: the workload that is named, or the namespace of those that are chosen.
    pub(crate) fn target(&self, kind: WorkloadKind, namespace: &str) -> Target {
        match self.name {
            Some(name) => kind.target(namespace, name),
            None => Target::named("v1", "Namespace", namespace, namespace),
        }
    }

    /// How the targets are chosen, if they are not named.
    pub(crate) fn selection(
        &self,
        kind: WorkloadKind,
        namespace: &'a str,
    ) -> Option<Selection<'a>> {
        self.selector.map(|selector| Selection {
            kind,
            namespace,
            selector,
            max_targets: self.max_targets.unwrap_or(DEFAULT_MAX_TARGETS),
            max_failures: self.max_failures.unwrap_or(0),
        })
    }
}

impl Selection<'_> {
    /// `Deployments in namespace 'shop' matching 'app=web'`
    pub(crate) fn described(&self) -> String {
        let Selection { kind, namespace, selector, .. } = self;
        format!("{}s in namespace '{namespace}' matching '{selector}'", kind.name())
    }

    /// `2 Deployments in namespace 'shop' matching 'app=web'`
    pub(crate) fn counted(&self, number: usize) -> String {
        let Selection { kind, namespace, selector, .. } = self;
        format!("{} in namespace '{namespace}' matching '{selector}'", counted(number, kind.name()))
    }

    /// What is known without a cluster; `done` is for example `restarted`.
    pub(crate) fn preview(&self, done: &str) -> Preview {
        let result = format!("Simulated: all {} would be {done}.", self.described());
        Preview { result, changes: Vec::new() }
    }

    /// Finds the targets.
    ///
    /// # Errors
    /// Why they cannot be listed, that there are none, or more than the request allows.
    pub(crate) async fn resolve(
        &self,
        cluster: &Cluster,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let (resource, limit) = (self.kind.resource(), self.max_targets + 1);
        let (namespace, selector) = (self.namespace, &**self.selector);
        let found =
            cluster.list_metadata(&resource, namespace, selector, limit, input.deadline).await?;
        self.decide(&found, input)
    }

    /// From what matches to the plan.
    fn decide(&self, found: &[ObjectMeta], input: &PlanInput) -> Result<Plan, ActionError> {
        if found.len() > self.max_targets as usize {
            return Err(self.too_many());
        }
        let leaving = |it: &&ObjectMeta| it.deletion_timestamp.is_some();
        let names_of_leaving: Vec<_> =
            found.iter().filter(leaving).filter_map(|it| it.name.clone()).collect();
        let first: Option<BTreeSet<&str>> =
            input.decision_etag.as_deref().map(|uids| uids.split(' ').collect());
        let is_of_first = |it: &&ObjectMeta| {
            first.as_ref().is_none_or(|uids| uids.contains(it.uid.as_deref().unwrap_or_default()))
        };
        let mut chosen: Vec<_> =
            found.iter().filter(|it| !leaving(it)).filter(is_of_first).collect();
        chosen.sort_by(|one, other| one.name.cmp(&other.name));
        if chosen.is_empty() {
            return Err(self.none(first.is_some()));
        }
        let targets: Vec<_> = chosen.iter().map(|it| SelectedTarget::of(it)).collect();
        let sentence = format!("{} chosen.", counted(targets.len(), self.kind.name()));
        let namespace = Target::named("v1", "Namespace", self.namespace, self.namespace);
        let uids: Vec<_> = targets.iter().map(|target| target.uid.as_str()).collect();
        let decision_etag = input.decision_etag.clone().unwrap_or_else(|| uids.join(" "));
        let completion = CompletionSpec::EachTarget(targets);
        let decision = Decision::EachTarget(sentence);
        let mut plan = Plan::new(namespace, &ObjectMeta::default(), decision, completion);
        plan.others = chosen.iter().map(|it| AffectedObject::workload(self.kind, it)).collect();
        plan.decision_etag = Some(decision_etag);
        if !names_of_leaving.is_empty() {
            plan.warnings.push(format!(
                "not chosen, since being deleted: {}",
                join_names(&names_of_leaving, MAX_TARGETS as usize)
            ));
        }
        let missing = first.map_or(0, |uids| uids.len() - chosen.len());
        if missing > 0 {
            plan.warnings.push(format!(
                "{missing} of the targets that an earlier attempt chose no longer exist or no longer match"
            ));
        }
        Ok(plan)
    }

    fn none(&self, is_taken_over: bool) -> ActionError {
        let what = self.described();
        let detail = match is_taken_over {
            true => format!("none of the {what} is one of those that an earlier attempt chose"),
            false => format!("there are no {what}"),
        };
        let Selection { kind, namespace, selector, .. } = self;
        ActionError::new(Code::TargetNotFound, detail).with_hint(format!(
            "check `kubectl -n {namespace} get {} -l '{selector}'`",
            kind.for_kubectl()
        ))
    }

    fn too_many(&self) -> ActionError {
        let Selection { max_targets, .. } = self;
        let detail = format!("more than {max_targets} {}", self.described());
        ActionError::new(Code::PreconditionFailed, detail)
            .with_field("parameters.max_targets")
            .with_hint(format!(
                "choose fewer by the selector, or raise max_targets, which is {MAX_TARGETS} at most; \
                 {READ_AGAIN}"
            ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector() -> LabelSelector {
        LabelSelector::try_from("app=web".to_owned()).expect("is a selector")
    }

    fn decide_on(found: &str, input: &PlanInput) -> Result<Plan, ActionError> {
        let selector = selector();
        let selection = Selection {
            kind: WorkloadKind::Deployment,
            namespace: "shop",
            selector: &selector,
            max_targets: 3,
            max_failures: 0,
        };
        let found: Vec<ObjectMeta> = serde_yaml_ng::from_str(found).expect("are objects");
        selection.decide(&found, input)
    }

    fn uids(plan: &Plan) -> Vec<String> {
        let CompletionSpec::EachTarget(targets) = &plan.completion else { panic!("are targets") };
        targets.iter().map(|target| target.uid.clone()).collect()
    }

    const TWO: &str = "[{name: web, namespace: shop, uid: u2, labels: {a: b}}, \
                       {name: api, namespace: shop, uid: u1}]";

    #[test]
    fn the_targets_are_in_the_order_of_their_names_with_uids_and_labels() {
        let plan = decide_on(TWO, &PlanInput::example()).expect("is planned");
        assert_eq!(uids(&plan), ["u1", "u2"]);
        assert_eq!(plan.decision_etag.as_deref(), Some("u1 u2"));
        assert_eq!(plan.others[1].target.to_string(), "Deployment shop/web");
        assert_eq!(plan.others[1].labels.len(), 1);
        assert_eq!(plan.target.to_string(), "Namespace shop");
    }

    #[test]
    fn none_and_too_many_are_refused_and_what_is_being_deleted_is_warned_of() {
        let refusal =
            |found: &str| decide_on(found, &PlanInput::example()).expect_err("is refused");
        assert_eq!(refusal("[]").code, Code::TargetNotFound);
        let leaving = "{name: old, uid: u9, deletionTimestamp: '2026-01-31T12:00:00Z'}";
        assert_eq!(refusal(&format!("[{leaving}]")).code, Code::TargetNotFound);
        let four = "[{name: a}, {name: b}, {name: c}, {name: d}]";
        let error = refusal(four);
        assert_eq!(error.code, Code::PreconditionFailed);
        assert_eq!(error.field.as_deref(), Some("parameters.max_targets"));
        let both = format!("[{leaving}, {{name: web, uid: u1}}]");
        let plan = decide_on(&both, &PlanInput::example()).expect("is planned");
        assert_eq!(uids(&plan), ["u1"]);
        assert_eq!(plan.warnings, ["not chosen, since being deleted: old"]);
    }

    #[test]
    fn an_attempt_that_takes_over_chooses_from_the_targets_of_the_first_one() {
        let again = |etag: &str| {
            let input = PlanInput { decision_etag: Some(etag.to_owned()), ..PlanInput::example() };
            decide_on(TWO, &input)
        };
        let plan = again("u2 u7").expect("is planned");
        assert_eq!(uids(&plan), ["u2"]);
        assert_eq!(plan.decision_etag.as_deref(), Some("u2 u7"));
        assert!(plan.warnings[0].starts_with("1 of the targets"), "{:?}", plan.warnings);
        assert_eq!(again("u7").expect_err("is refused").code, Code::TargetNotFound);
    }

    #[test]
    fn a_name_or_a_selector_is_required() {
        let name = ObjectName::try_from("web".to_owned()).expect("is a name");
        let selector = selector();
        let refusal = |name, selector, max_targets, max_failures| {
            let chosen = Chosen { field: "deployment", name, selector, max_targets, max_failures };
            chosen.check().err().and_then(|error| error.field)
        };
        let (name, selector) = (Some(&name), Some(&selector));
        for (field, found) in [
            (Some("parameters.deployment"), refusal(None, None, None, None)),
            (Some("parameters.selector"), refusal(name, selector, None, None)),
            (Some("parameters.max_targets"), refusal(name, None, Some(1), None)),
            (Some("parameters.max_failures"), refusal(name, None, None, Some(1))),
            (Some("parameters.max_targets"), refusal(None, selector, Some(0), None)),
            (Some("parameters.max_targets"), refusal(None, selector, Some(51), None)),
            (Some("parameters.max_failures"), refusal(None, selector, None, Some(50))),
            (None, refusal(name, None, None, None)),
            (None, refusal(None, selector, Some(50), Some(49))),
        ] {
            assert_eq!(found.as_deref(), field);
        }
    }
}
