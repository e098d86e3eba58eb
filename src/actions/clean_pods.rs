//! `clean_pods`: deletes the finished pods of a namespace, as `kubectl delete pods --field-selector
//! status.phase=Failed` does.
//!
//! The pods are chosen once, before anything is done: the plan names them, the policy judges each, and the budget
//! counts each. There is no one change to one object that could bear the request's mark, so the plan is a list of
//! deletions ([`Decision::DeleteEach`]), each bound to the uid and to the version of a pod that was just listed as
//! finished. A finished pod does not run again, and a deletion that is sent twice deletes nothing twice.
//!
//! What the decision rests on is the set of these pods (`k8s::pod_set`), which the record has. An attempt that takes
//! the request over after a crash plans again, and chooses from this set alone: it deletes no pod that came later, none
//! that the parameters do not choose by then, and none that policy, budget or approval do not allow. So a record that
//! someone else has written allows nothing. Pods of the set that are gone do not show who deleted them: the answer says
//! so, and if none is left, the outcome is unknown.
//!
//! More pods than `max_pods` are refused, and not the oldest of them deleted: which pods go would depend on the moment.

use std::collections::BTreeMap;

use k8s_openapi::api::{batch::v1::Job, core::v1 as core};
use kube::{ResourceExt, api::ApiResource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{
        AffectedObject, BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput,
        Plannable, Preview, shared::pod::MAX_NAMED_PODS,
    },
    contract::{
        counted::counted,
        error::{ActionError, Code},
        names::{Namespace, PodReason},
        response::{Change, Target},
    },
    k8s::{
        api::client::Cluster,
        cleanup_filter::{self, CleanupFilter, StayReason, ending},
        completion::Completion,
        effect::Effect,
        pod_set::PodSet,
        pods,
        rbac::PolicyRule,
    },
};

/// The default and the largest `max_pods`. The record, which is in annotations, names each pod.
const DEFAULT_MAX_PODS: u32 = 100;
const MAX_PODS: u32 = 300;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "clean_pods",
    aliases: &[],
    description: "Delete the finished pods of a namespace, with their logs: by default those that failed, such as \
                  pods that a kubelet evicted. Pods that run are never deleted, and pods of a Job that has not \
                  finished stay. Refused if more than max_pods match. Simulate it first: the answer names \
                  all pods that would be deleted.",
    takes_time: true,
    when: "failed or evicted pods pile up in a namespace",
    when_not: "their logs are still needed; pods that run are at fault: use restart_pod",
    destructive: true,
    example: r#"{"namespace":"shop","pod_reason":"Evicted"}"#,
    rules: &[
        // The target, for its labels.
        PolicyRule { api_groups: &[""], resources: &["namespaces"], verbs: &["get"] },
        PolicyRule { api_groups: &[""], resources: &["pods"], verbs: &["list", "watch", "delete"] },
        // Whether the Job of a pod has finished.
        PolicyRule { api_groups: &["batch"], resources: &["jobs"], verbs: &["list"] },
    ],
    cluster_rules: &[],
    integration: None,
};

/// How a pod has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FinishedPhase {
    /// Failed
    Failed,
    /// Succeeded
    Succeeded,
}

/// What `clean_pods` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The namespace to clean. It has no default, since nothing else names what is deleted.
    pub namespace: Namespace,
    /// The phases of the pods to delete: `Failed`, `Succeeded` or both.
    #[serde(default = "failed")]
    #[schemars(extend("minItems" = 1, "maxItems" = 2, "uniqueItems" = true))]
    pub phases: Vec<FinishedPhase>,
    /// Delete only pods with this reason in their status, for example `Evicted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_reason: Option<PodReason>,
    /// Delete only pods that finished at least so many seconds ago.
    #[serde(default)]
    pub older_than_seconds: u32,
    /// The most pods to delete: it is refused if more match. At most 300.
    #[serde(default = "default_max_pods")]
    #[schemars(extend("minimum" = 1, "maximum" = 300))]
    pub max_pods: u32,
}

fn failed() -> Vec<FinishedPhase> {
    vec![FinishedPhase::Failed]
}

fn default_max_pods() -> u32 {
    DEFAULT_MAX_PODS
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        Target::named("v1", "Namespace", &self.namespace, &self.namespace)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn check(&self) -> Result<(), ActionError> {
        if !matches!(self.phases[..], [_] | [_, _]) || self.phases.first() == self.phases.get(1) {
            let what = "must be one or both of Failed and Succeeded";
            return Err(ActionError::invalid_field("parameters.phases", what));
        }
        if !(1..=MAX_PODS).contains(&self.max_pods) {
            let what = format!("must be from 1 to {MAX_PODS}");
            return Err(ActionError::invalid_field("parameters.max_pods", &what));
        }
        Ok(())
    }

    fn preview(&self, _: &PlanInput) -> Preview {
        let result = format!(
            "Simulated: {} in namespace '{}' would be deleted.",
            self.described("pods"),
            self.namespace
        );
        Preview { result, changes: Vec::new() }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (namespace, pods, jobs) = tokio::try_join!(
                cluster.namespace(&self.namespace, input.deadline),
                cluster.finished_pods(&self.namespace, input.deadline),
                cluster.list::<Job>(&self.namespace, "", input.deadline),
            )?;
            self.decide(&namespace, &pods, &jobs, cluster.now(), input)
        })
    }
}

impl Parameters {
    /// From the namespace, its finished pods and its Jobs to the plan.
    fn decide(
        &self,
        namespace: &core::Namespace,
        pods: &[core::Pod],
        jobs: &[Job],
        now: chrono::DateTime<chrono::Utc>,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let (target, found) = (self.target(), &namespace.metadata);
        input.check_found(&target, found)?;
        let (chosen, staying) = self.choose(pods, jobs, now, input);
        let set: PodSet = chosen.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        let first = input.decision_etag.as_deref().map_or_else(|| set.clone(), PodSet::of_text);
        let with_uid = |refusal: ActionError| refusal.object_uid(found.uid.as_deref());
        if chosen.len() > self.max_pods as usize {
            return Err(with_uid(self.too_many(chosen.len())));
        }
        let gone = first.len() - set.len();
        if chosen.is_empty() && gone > 0 {
            return Err(with_uid(self.gone(gone)));
        }
        if chosen.is_empty() {
            let sentence = format!(
                "There are no {} to delete in namespace '{}'.",
                self.described("pods"),
                self.namespace
            );
            let completion = CompletionSpec::Known(Completion::Immediate(sentence.clone()));
            let mut plan = Plan::new(target, found, Decision::NoOp(sentence), completion);
            plan.warnings = warnings(&staying);
            return Ok(plan);
        }
        let names: Vec<_> =
            chosen.iter().map(|pod| format!("{} ({})", pod.name_any(), ending(pod))).collect();
        let would = format!(
            "Simulated: {} in namespace '{}' would be deleted, with their logs: {}.",
            counted(chosen.len(), "finished pod"),
            self.namespace,
            pods::join_names(&names, MAX_NAMED_PODS)
        );
        let resource = ApiResource::erase::<core::Pod>(&());
        let deletion = |pod: &&core::Pod| {
            let effect = Effect::deletion(resource.clone(), &pod.metadata, None);
            effect.bound_to(&pod.metadata)
        };
        let decision = Decision::DeleteEach(chosen.iter().map(deletion).collect(), would);
        let completion = CompletionSpec::Known(Completion::PodsGone {
            namespace: target.namespace.clone(),
            pods: set,
        });
        let mut plan = Plan::new(target, found, decision, completion);
        plan.changes = chosen.iter().map(|pod| removal(pod)).collect();
        plan.others = chosen.iter().map(|pod| AffectedObject::pod(&pod.metadata)).collect();
        plan.decision_etag = Some(first.to_text());
        plan.warnings = warnings(&staying);
        if gone > 0 {
            plan.warnings.push(format!(
                "{} of an earlier attempt no longer exist or no longer match: whether this request deleted them is \
                 unknown",
                counted(gone, "pod")
            ));
        }
        Ok(plan)
    }

    /// The pods to delete, by name, and those that match and stay, by reason. A later plan chooses from the first one's
    /// pods.
    fn choose<'a>(
        &self,
        pods: &'a [core::Pod],
        jobs: &[Job],
        now: chrono::DateTime<chrono::Utc>,
        input: &PlanInput,
    ) -> (Vec<&'a core::Pod>, BTreeMap<StayReason, Vec<String>>) {
        let filter = CleanupFilter {
            phases: self.phases.iter().map(|phase| phase.name()).collect(),
            reason: self.pod_reason.as_deref(),
            finished_before: cleanup_filter::before(now, self.older_than_seconds),
        };
        let first = input.decision_etag.as_deref().map(PodSet::of_text);
        let finished = cleanup_filter::finished(jobs);
        let mut staying: BTreeMap<StayReason, Vec<String>> = BTreeMap::new();
        let mut chosen: Vec<&core::Pod> = pods.iter().filter(|pod| filter.matches(pod)).collect();
        chosen.retain(|pod| first.as_ref().is_none_or(|set| set.contains(&pod.metadata)));
        chosen.retain(|pod| match cleanup_filter::stays(pod, &finished) {
            Some(reason) => {
                staying.entry(reason).or_default().push(pod.name_any());
                false
            }
            None => true,
        });
        chosen.sort_by_key(|pod| pod.name_any());
        (chosen, staying)
    }

    /// `pods that are Failed, with reason Evicted`
    fn described(&self, pods: &str) -> String {
        let phases: Vec<_> = self.phases.iter().map(|phase| phase.name()).collect();
        let reason = self.pod_reason.as_ref().map(|it| format!(", with reason {it}"));
        let age = match self.older_than_seconds {
            0 => String::new(),
            seconds => format!(" for at least {seconds} s"),
        };
        let reason = reason.unwrap_or_default();
        format!("{pods} that are {}{age}{reason}", phases.join(" or "))
    }

    /// None of the pods of an earlier attempt is left.
    fn gone(&self, number: usize) -> ActionError {
        let detail = format!(
            "{} that an earlier attempt was to delete in namespace '{}' are gone, or are not to be deleted any more; \
             whether this request or another client deleted them is unknown",
            counted(number, "pod"),
            self.namespace
        );
        ActionError::new(Code::OutcomeUnknown, detail).with_hint(
            "nothing is left to do for this request; a new request with a new id deletes what matches then",
        )
    }

    fn too_many(&self, number: usize) -> ActionError {
        let Parameters { namespace, max_pods, .. } = self;
        let detail = format!(
            "{number} {} match in namespace '{namespace}', more than max_pods, which is {max_pods}",
            self.described("pods")
        );
        ActionError::new(Code::PreconditionFailed, detail).with_hint(format!(
            "choose fewer with pod_reason or older_than_seconds, or raise max_pods, which is {MAX_PODS} at most"
        ))
    }
}

impl FinishedPhase {
    fn name(self) -> &'static str {
        match self {
            FinishedPhase::Failed => "Failed",
            FinishedPhase::Succeeded => "Succeeded",
        }
    }
}

/// The change of a namespace from which this pod is removed.
fn removal(pod: &core::Pod) -> Change {
    let path = format!("/pods/{}", pod.name_any());
    Change { path, from: ending(pod).into(), to: Value::Null }
}

/// The pods that match and stay, by reason.
fn warnings(staying: &BTreeMap<StayReason, Vec<String>>) -> Vec<String> {
    let warning = |(reason, names): (&StayReason, &Vec<String>)| {
        let (number, why) = (counted(names.len(), "pod"), reason.description());
        format!("not deleted: {number}, since {why}: {}", pods::join_names(names, MAX_NAMED_PODS))
    };
    staying.iter().map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::effect::Mutation;

    fn pod(name: &str, more: &str, status: &str) -> core::Pod {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: {name}, namespace: shop, uid: u-{name}, resourceVersion: '7', \
             creationTimestamp: '2026-01-31T11:00:00Z', labels: {{app: {name}}}{more}}}\n\
             status: {{{status}}}"
        ))
        .expect("is a pod")
    }

    const EVICTED: &str = "phase: Failed, reason: Evicted";

    fn decide_on(more: &str, pods: &[core::Pod], input: &PlanInput) -> Result<Plan, ActionError> {
        let parameters: Parameters =
            serde_json::from_str(&format!(r#"{{"namespace":"shop"{more}}}"#)).expect("are");
        parameters.check().expect("are valid");
        let namespace =
            serde_yaml_ng::from_str("metadata: {name: shop, uid: n1, labels: {team: a}}");
        let jobs = serde_yaml_ng::from_str("[{metadata: {uid: running}}]").expect("are Jobs");
        let jobs: Vec<Job> = jobs;
        let now = "2026-01-31T12:00:00Z".parse().expect("is a time");
        parameters.decide(&namespace.expect("is a namespace"), pods, &jobs, now, input)
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.others.iter().map(|other| other.target.name.as_str()).collect()
    }

    fn pods() -> Vec<core::Pod> {
        let of_job = ", ownerReferences: [{apiVersion: batch/v1, kind: Job, name: j, uid: running, \
                      controller: true}]";
        vec![
            pod("b", "", EVICTED),
            pod("a", "", "phase: Failed"),
            pod("done", "", "phase: Succeeded"),
            pod("step", of_job, EVICTED),
        ]
    }

    fn set_of(plan: &Plan) -> &PodSet {
        match &plan.completion {
            CompletionSpec::Known(Completion::PodsGone { pods, .. }) => pods,
            completion => panic!("{completion:?}"),
        }
    }

    #[test]
    fn failed_pods_are_chosen_once_and_each_is_judged_and_counted() {
        let plan = decide_on("", &pods(), &PlanInput::example()).expect("is planned");
        assert_eq!(names(&plan), ["a", "b"]);
        assert_eq!(plan.others[0].target.uid.as_deref(), Some("u-a"));
        assert_eq!(plan.others[0].labels["app"], "a");
        let Decision::DeleteEach(effects, would) = &plan.decision else {
            panic!("{:?}", plan.decision)
        };
        assert_eq!((effects[0].name.as_str(), effects[0].uid.as_str()), ("a", "u-a"));
        let bound =
            Mutation::Delete { resource_version: Some("7".to_owned()), grace_period_seconds: None };
        assert!(effects.iter().all(|effect| effect.mutation == bound), "{effects:?}");
        assert!(would.ends_with("with their logs: a (Failed), b (Failed, Evicted)."), "{would}");
        assert_eq!(plan.decision_etag, Some(set_of(&plan).to_text()));
        let changes: Vec<_> = plan.changes.iter().map(|it| (&*it.path, &it.from)).collect();
        assert_eq!(
            changes,
            [("/pods/a", &"Failed".into()), ("/pods/b", &"Failed, Evicted".into())]
        );
        assert_eq!(set_of(&plan).len(), 2);
        assert_eq!(plan.warnings.len(), 1);
        assert!(plan.warnings[0].starts_with("not deleted: 1 pod, since"), "{:?}", plan.warnings);
        assert_eq!(
            (plan.target.kind.as_str(), plan.target.uid.as_deref()),
            ("Namespace", Some("n1"))
        );
    }

    #[test]
    fn phases_reason_and_age_choose() {
        for (more, expected) in [
            (r#","pod_reason":"Evicted""#, vec!["b"]),
            (r#","phases":["Succeeded"]"#, vec!["done"]),
            (r#","phases":["Failed","Succeeded"]"#, vec!["a", "b", "done"]),
            (r#","older_than_seconds":3600"#, vec!["a", "b"]),
        ] {
            let plan = decide_on(more, &pods(), &PlanInput::example()).expect("is planned");
            assert_eq!(names(&plan), expected, "{more}");
        }
    }

    #[test]
    fn nothing_is_done_where_nothing_matches() {
        for (more, says) in [
            (r#","pod_reason":"NodeLost""#, "pods that are Failed, with reason NodeLost"),
            (r#","older_than_seconds":3601"#, "pods that are Failed for at least 3601 s"),
        ] {
            let plan = decide_on(more, &pods(), &PlanInput::example()).expect("is planned");
            let Decision::NoOp(sentence) = plan.decision else { panic!("{:?}", plan.decision) };
            assert!(sentence.contains(says), "{sentence}");
            assert!(plan.others.is_empty());
        }
    }

    #[test]
    fn more_pods_than_the_request_accepts_are_refused() {
        let error = decide_on(r#","max_pods":1"#, &pods(), &PlanInput::example());
        let error = error.expect_err("is refused");
        assert_eq!(error.code, Code::PreconditionFailed);
        assert!(error.detail.starts_with("2 pods that are Failed match"), "{}", error.detail);
        assert!(decide_on(r#","max_pods":2"#, &pods(), &PlanInput::example()).is_ok());
    }

    #[test]
    fn a_later_plan_chooses_from_the_pods_of_the_first_alone() {
        let first = decide_on(r#","pod_reason":"Evicted""#, &pods(), &PlanInput::example());
        let etag = first.expect("is planned").decision_etag;
        let input = PlanInput { decision_etag: etag.clone(), ..PlanInput::example() };
        let mut later = pods();
        later.push(pod("c", "", EVICTED));
        let plan = decide_on(r#","pod_reason":"Evicted""#, &later, &input).expect("is planned");
        assert_eq!((names(&plan), &plan.decision_etag), (vec!["b"], &etag));
        // None of them is left: that is not the same as that there never were any.
        let error =
            decide_on(r#","pod_reason":"Evicted""#, &later[1..], &input).expect_err("is refused");
        assert_eq!(error.code, Code::OutcomeUnknown);
        // A record alone allows nothing: what the parameters do not choose stays.
        let all = ["u-a", "u-b", "u-done", "u-step"].into_iter().collect::<PodSet>().to_text();
        let input = PlanInput { decision_etag: Some(all), ..PlanInput::example() };
        let plan = decide_on(r#","pod_reason":"Evicted""#, &pods(), &input).expect("is planned");
        assert_eq!((names(&plan), set_of(&plan).len()), (vec!["b"], 1));
        assert!(plan.warnings.join("; ").contains("is unknown"), "{:?}", plan.warnings);
    }

    #[test]
    fn wrong_phases_and_numbers_are_refused() {
        for (more, field) in [
            (r#","phases":[]"#, "parameters.phases"),
            (r#","phases":["Failed","Failed"]"#, "parameters.phases"),
            (r#","max_pods":0"#, "parameters.max_pods"),
            (r#","max_pods":301"#, "parameters.max_pods"),
        ] {
            let text = format!(r#"{{"namespace":"shop"{more}}}"#);
            let parameters: Parameters = serde_json::from_str(&text).expect("are");
            assert_eq!(parameters.check().expect_err("is wrong").field.as_deref(), Some(field));
        }
    }
}
