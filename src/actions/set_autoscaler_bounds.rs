//! `set_autoscaler_bounds`: sets between which numbers of replicas a HorizontalPodAutoscaler scales its target.
//!
//! A difference is turned into an absolute number in the plan, and only that is sent, so it is never applied twice. The
//! patch tests the bounds and the target that were read: before Kubernetes 1.37 an autoscaler has no generation.

use json_patch::PatchOperation;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::ApiResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    actions::{
        BoundsChange, BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput, Plannable,
        Preview, plan::READ_AGAIN,
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::client::Cluster,
        applied_requests::AppliedRequests,
        autoscaling::{bounds, scaled_object_of},
        completion::Completion,
        conditional_patch::{add, test},
        effect::Effect,
        gitops,
        rbac::PolicyRule,
    },
};

/// The fields of the spec, in the order of the bounds.
const FIELDS: [&str; 2] = ["minReplicas", "maxReplicas"];

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "set_autoscaler_bounds",
    aliases: &[],
    description: "Set minReplicas and maxReplicas of a HorizontalPodAutoscaler, each to a number or by a \
                  difference. Refused for an autoscaler of KEDA, whose ScaledObject sets them, and for a \
                  maximum above the policy's factor. Unchanged if it has these bounds already.",
    takes_time: false,
    when: "an autoscaler is at its maximum and the load needs more pods, or its minimum is too low",
    when_not: "no autoscaler sets the number: use scale; pods crash: more of them crash too",
    destructive: true,
    example: r#"{"autoscaler":"web","max_replicas":12}"#,
    rules: &[PolicyRule {
        api_groups: &["autoscaling"],
        resources: &["horizontalpodautoscalers"],
        verbs: &["get", "patch"],
    }],
    cluster_rules: &[],
    integration: None,
};

/// What `set_autoscaler_bounds` acts upon, and the desired bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The HorizontalPodAutoscaler.
    pub autoscaler: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// The desired minimum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub min_replicas: Option<i32>,
    /// The desired maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2147483647))]
    pub max_replicas: Option<i32>,
    /// How much to add to the minimum, or to subtract if negative. Not with `min_replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -2147483648, max = 2147483647), extend("not" = { "const": 0 }))]
    pub min_by: Option<i32>,
    /// How much to add to the maximum, or to subtract if negative. Not with `max_replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -2147483648, max = 2147483647), extend("not" = { "const": 0 }))]
    pub max_by: Option<i32>,
    /// Act only if the minimum is this now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub current_min: Option<i32>,
    /// Act only if the maximum is this now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub current_max: Option<i32>,
}

/// What a request says about one bound.
struct RequestedBound {
    to: Option<i32>,
    by: Option<i32>,
    current: Option<i32>,
    /// The names of the parameters, in this order.
    names: [&'static str; 3],
    /// The least possible number.
    least: i32,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        let kind = "HorizontalPodAutoscaler";
        Target::named("autoscaling/v2", kind, &self.namespace, &self.autoscaler)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn check(&self) -> Result<(), ActionError> {
        let [min, max] = self.wanted();
        if [&min, &max].iter().all(|it| it.to.is_none() && it.by.is_none()) {
            return Err(ActionError::invalid_field(
                "parameters.max_replicas",
                "missing: give at least one of min_replicas, max_replicas, min_by and max_by",
            ));
        }
        min.check()?;
        max.check()?;
        match (min.to, max.to) {
            (Some(min), Some(max)) if min > max => Err(ActionError::invalid_field(
                "parameters.min_replicas",
                format!("must not be above max_replicas, which is {max}"),
            )),
            _ => Ok(()),
        }
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let [min, max] = self.wanted();
        let to = |wanted: &RequestedBound, field| Some(change(field, Value::Null, wanted.to?));
        let numbers = [to(&min, FIELDS[0]), to(&max, FIELDS[1])].into_iter().flatten();
        let mark = AppliedRequests::default().change(&input.mark);
        Preview {
            result: format!(
                "Simulated: the bounds of HorizontalPodAutoscaler '{}' would be set.",
                self.autoscaler
            ),
            changes: numbers.chain([mark]).collect(),
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let found = cluster.get(&self.namespace, &self.autoscaler, input.deadline).await?;
            self.decide(&found, input)
        })
    }
}

impl RequestedBound {
    fn check(&self) -> Result<(), ActionError> {
        let [to, by, current] = self.names.map(|name| format!("parameters.{name}"));
        let least = self.least;
        if self.to.is_some_and(|number| number < least) {
            return Err(ActionError::invalid_field(&to, format!("must not be below {least}")));
        }
        match (self.to, self.by) {
            (Some(_), Some(_)) => {
                let what = format!("cannot be combined with {}", self.names[0]);
                return Err(ActionError::invalid_field(&by, what));
            }
            (None, Some(0)) => return Err(ActionError::invalid_field(&by, "must not be 0")),
            _ => {}
        }
        match self.current {
            Some(number) if number < 0 => {
                Err(ActionError::invalid_field(&current, "must not be below 0"))
            }
            _ => Ok(()),
        }
    }

    /// The number that is wanted where it is `now`.
    fn resolve(&self, now: i32, target: &Target) -> Result<i32, ActionError> {
        let refused = |name: &str, detail: String| {
            ActionError::new(Code::PreconditionFailed, detail)
                .with_field(format!("parameters.{name}"))
                .with_hint(READ_AGAIN)
        };
        let [to, by, current] = self.names;
        if self.current.is_some_and(|expected| expected != now) {
            let detail = format!("{target} does not have the expected {to}: it is {now}");
            return Err(refused(current, detail));
        }
        let Some(difference) = self.by else { return Ok(self.to.unwrap_or(now)) };
        let sum = now.checked_add(difference).filter(|sum| *sum >= self.least);
        sum.ok_or_else(|| {
            refused(by, format!("the {to} of {target} is {now}: {difference:+} is not possible"))
        })
    }
}

impl Parameters {
    fn wanted(&self) -> [RequestedBound; 2] {
        let min = RequestedBound {
            to: self.min_replicas,
            by: self.min_by,
            current: self.current_min,
            names: ["min_replicas", "min_by", "current_min"],
            least: 0,
        };
        let max = RequestedBound {
            to: self.max_replicas,
            by: self.max_by,
            current: self.current_max,
            names: ["max_replicas", "max_by", "current_max"],
            least: 1,
        };
        [min, max]
    }

    fn decide(
        &self,
        found: &HorizontalPodAutoscaler,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let (target, metadata) = (self.target(), &found.metadata);
        let object = format!("HorizontalPodAutoscaler '{}'", self.autoscaler);
        let now = bounds(found);
        let completion = CompletionSpec::Known(Completion::Immediate(format!(
            "{object} uses the new bounds from its next check of the metrics"
        )));
        if input.has_changed(metadata)? {
            let did = format!("The bounds of {object} were set.");
            return Ok(Plan::already_applied(target, metadata, did, completion));
        }
        input.check_found(&target, metadata)?;
        let with_uid = |refusal: ActionError| refusal.object_uid(metadata.uid.as_deref());
        refuse_keda(&target, found).map_err(with_uid)?;
        let [min, max] = self.wanted();
        let wanted = [
            min.resolve(now[0], &target).map_err(with_uid)?,
            max.resolve(now[1], &target).map_err(with_uid)?,
        ];
        let etag = etag(found, wanted);
        self.check_resolved(wanted, now, &etag, input).map_err(with_uid)?;
        if wanted == now {
            let sentence = format!("{object} is bounded from {} to {} already.", now[0], now[1]);
            return Ok(Plan::new(target, metadata, Decision::NoOp(sentence), completion));
        }
        let mark = (&input.mark, input.precondition.as_ref());
        let resource = ApiResource::erase::<HorizontalPodAutoscaler>(&());
        let operations = operations(found, now, wanted);
        let effect = Effect::patch(resource, metadata, mark.0, mark.1, operations);
        let how =
            format!("from {} to {}, which were {} and {}", wanted[0], wanted[1], now[0], now[1]);
        let did = format!("{object} bounded {how}, at {}.", rfc3339_millis(input.at));
        let would = format!("Simulated: {object} would be bounded {how}.");
        let decision = Decision::apply(effect, did, would);
        let mut plan = Plan::new(target, metadata, decision, completion);
        let fields = FIELDS.into_iter().zip(now.into_iter().zip(wanted));
        let changed = fields.filter(|(_, (now, wanted))| now != wanted);
        plan.changes = changed.map(|(field, (now, to))| change(field, now.into(), to)).collect();
        plan.changes.push(AppliedRequests::from_metadata(metadata).change(&input.mark));
        plan.warnings = warnings(found, wanted);
        plan.bounds = Some(BoundsChange { from: now, to: wanted });
        plan.decision_etag = Some(etag);
        Ok(plan)
    }

    /// Refuses bounds that contradict each other, or that a difference means only by now.
    fn check_resolved(
        &self,
        wanted: [i32; 2],
        now: [i32; 2],
        etag: &str,
        input: &PlanInput,
    ) -> Result<(), ActionError> {
        let ([min, max], target) = (wanted, self.target());
        if min > max {
            let detail =
                format!("the minimum of {target} would be {min}, above its maximum, {max}");
            let field = if min != now[0] { "min_replicas" } else { "max_replicas" };
            return Err(ActionError::new(Code::PreconditionFailed, detail)
                .with_field(format!("parameters.{field}"))
                .with_hint("set both bounds in one request"));
        }
        // The policy check, the approval and the record are for these numbers, not for the difference.
        if input.decision_etag.as_ref().is_some_and(|decided| decided != etag) {
            let detail = format!(
                "{target} was changed while the request was running, and its bounds are {} and {} now; nothing was \
                 changed",
                now[0], now[1]
            );
            return Err(ActionError::new(Code::Conflict, detail)
                .with_retry_after(Some(std::time::Duration::from_secs(1))));
        }
        Ok(())
    }
}

/// Sets what differs. The bounds must still be those that were read.
fn operations(
    found: &HorizontalPodAutoscaler,
    now: [i32; 2],
    wanted: [i32; 2],
) -> Vec<PatchOperation> {
    let read_min = found.spec.as_ref().and_then(|spec| spec.min_replicas);
    let read = [json!(read_min), json!(now[1])];
    let scaled = found.spec.as_ref().map(|spec| &spec.scale_target_ref);
    let is_same = test(&["spec", "scaleTargetRef"], json!(scaled));
    let fields = FIELDS.into_iter().zip(read).zip(now.into_iter().zip(wanted));
    let bounds = fields.flat_map(|((field, read), (now, wanted))| {
        let path = ["spec", field];
        let set = (now != wanted).then(|| add(&path, wanted.into()));
        [Some(test(&path, read)), set].into_iter().flatten()
    });
    [is_same].into_iter().chain(bounds).collect()
}

/// What the plan decided on, and what an approval is of: the bounds before and after, and what is scaled.
fn etag(found: &HorizontalPodAutoscaler, wanted: [i32; 2]) -> String {
    let scaled = found.spec.as_ref().map(|spec| &spec.scale_target_ref);
    json!([wanted, bounds(found), scaled]).to_string()
}

fn change(field: &str, from: Value, to: i32) -> Change {
    Change { path: format!("/spec/{field}"), from, to: to.into() }
}

/// KEDA sets the bounds again from its own object.
fn refuse_keda(target: &Target, found: &HorizontalPodAutoscaler) -> Result<(), ActionError> {
    let Some(object) = scaled_object_of(found) else { return Ok(()) };
    let detail = format!("the bounds of {target} are managed by KEDA's ScaledObject '{object}'");
    Err(ActionError::new(Code::TargetManaged, detail)
        .with_hint(format!(
            "change minReplicaCount or maxReplicaCount of the ScaledObject, or pause it at a number with pause_keda \
             (name {object}, replicas), which needs the integration keda"
        )))
}

fn warnings(found: &HorizontalPodAutoscaler, [min, max]: [i32; 2]) -> Vec<String> {
    let status = found.status.as_ref();
    let current = status.and_then(|status| status.current_replicas);
    let at_once = current.and_then(|current| match current {
        0 => None,
        _ if current > max => {
            Some(format!("{current} replicas run now: {} are removed", current - max))
        }
        _ if current < min => {
            Some(format!("{current} replicas run now: {} are added", min - current))
        }
        _ => None,
    });
    let conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
    let inactive =
        conditions.filter(|it| it.type_ == "ScalingActive" && it.status == "False").map(|it| {
            let (reason, message) = (it.reason.as_deref(), it.message.as_deref());
            format!(
                "it does not scale now: {}: {}",
                reason.unwrap_or("unknown"),
                message.unwrap_or_default()
            )
        });
    let reverted = gitops::undo_warnings(&found.metadata, "the bounds");
    at_once.into_iter().chain(inactive).chain(reverted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn autoscaler(metadata: &str, min: &str, status: &str) -> HorizontalPodAutoscaler {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7'{metadata}}}\n\
             spec: {{scaleTargetRef: {{kind: Deployment, name: web}}, maxReplicas: 6{min}}}\n\
             status: {{currentReplicas: 6, desiredReplicas: 6{status}}}"
        ))
        .expect("is an autoscaler")
    }

    fn read(more: &str) -> Parameters {
        serde_json::from_str(&format!(r#"{{"autoscaler":"web","namespace":"shop",{more}}}"#))
            .expect("are parameters")
    }

    fn decide(more: &str) -> Result<Plan, ActionError> {
        read(more).decide(&autoscaler("", ", minReplicas: 2", ""), &PlanInput::example())
    }

    #[test]
    fn a_number_or_a_difference_becomes_one_patch_that_tests_what_was_read() {
        for (more, expected) in [
            (r#""max_replicas":9"#, [2, 9]),
            (r#""max_by":3,"current_max":6"#, [2, 9]),
            (r#""min_by":-1,"max_by":2"#, [1, 8]),
            (r#""min_replicas":3,"max_replicas":4"#, [3, 4]),
        ] {
            let plan = decide(more).expect("is planned");
            let effect = plan.expect_change().0;
            let operations = json!(effect.operations());
            let has =
                |operation: Value| operations.as_array().is_some_and(|it| it.contains(&operation));
            assert!(
                has(json!({ "op": "test", "path": "/spec/minReplicas", "value": 2 })),
                "{more}"
            );
            assert!(
                has(json!({ "op": "test", "path": "/spec/maxReplicas", "value": 6 })),
                "{more}"
            );
            let max = json!({ "op": "add", "path": "/spec/maxReplicas", "value": expected[1] });
            assert!(has(max), "{operations}");
            assert_eq!(plan.bounds, Some(BoundsChange { from: [2, 6], to: expected }), "{more}");
        }
        let without = autoscaler("", "", "");
        let plan =
            read(r#""max_by":1"#).decide(&without, &PlanInput::example()).expect("is planned");
        let effect = plan.expect_change().0;
        let operations = json!(effect.operations()).to_string();
        assert!(operations.contains(r#""path":"/spec/minReplicas","value":null"#), "{operations}");
    }

    #[test]
    fn impossible_bounds_are_refused() {
        for (more, field) in [
            (r#""current_max":5,"max_by":1"#, "parameters.current_max"),
            (r#""current_min":1,"max_by":1"#, "parameters.current_min"),
            (r#""max_by":-6"#, "parameters.max_by"),
            (r#""min_replicas":7"#, "parameters.min_replicas"),
            (r#""max_replicas":1"#, "parameters.max_replicas"),
        ] {
            let error = decide(more).expect_err("is refused");
            let found = (error.code, error.field.as_deref());
            assert_eq!(found, (Code::PreconditionFailed, Some(field)), "{more}");
        }
        for more in [
            r#""current_max":5"#,
            r#""max_replicas":1,"max_by":1"#,
            r#""max_by":0"#,
            r#""max_replicas":0"#,
            r#""min_replicas":-1"#,
            r#""min_replicas":3,"max_replicas":2"#,
            r#""max_by":1,"current_min":-1"#,
        ] {
            assert!(read(more).check().is_err(), "{more}");
        }
    }

    #[test]
    fn bounds_that_it_has_are_left() {
        let plan = decide(r#""max_replicas":6,"min_replicas":2"#).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
    }

    #[test]
    fn an_autoscaler_of_keda_is_refused_with_its_scaled_object() {
        let of_keda = autoscaler(", labels: {scaledobject.keda.sh/name: web-so}", "", "");
        let refusal = read(r#""max_by":1"#).decide(&of_keda, &PlanInput::example());
        let refusal = refusal.expect_err("is refused");
        assert_eq!(refusal.code, Code::TargetManaged);
        assert!(refusal.detail.contains("ScaledObject 'web-so'"), "{}", refusal.detail);
    }

    #[test]
    fn a_difference_is_never_applied_to_other_bounds_than_those_of_the_first_plan() {
        let found = autoscaler("", ", minReplicas: 2", "");
        let first = read(r#""max_by":1"#).decide(&found, &PlanInput::example());
        let decision_etag = first.expect("is planned").decision_etag;
        let input = PlanInput { decision_etag, ..PlanInput::example() };
        assert!(read(r#""max_by":1"#).decide(&found, &input).is_ok());
        let other_bounds = autoscaler("", ", minReplicas: 1", "");
        let mut other_target = found.clone();
        other_target.spec.as_mut().expect("has one").scale_target_ref.name = "api".to_owned();
        for changed in [other_bounds, other_target] {
            let error = read(r#""max_by":1"#).decide(&changed, &input).expect_err("is refused");
            assert_eq!(error.code, Code::Conflict);
        }
    }

    #[test]
    fn immediate_and_inactive_scaling_are_warned_of() {
        let warnings = |more: &str, status: &str| {
            let found = autoscaler("", ", minReplicas: 2", status);
            let plan = read(more).decide(&found, &PlanInput::example());
            plan.expect("is planned").warnings.join("; ")
        };
        assert_eq!(warnings(r#""max_by":1"#, ""), "");
        assert!(warnings(r#""max_by":-2"#, "").contains("2 are removed"));
        assert!(warnings(r#""min_replicas":8,"max_replicas":9"#, "").contains("2 are added"));
        let inactive = ", conditions: [{type: ScalingActive, status: 'False', reason: \
                        FailedGetResourceMetric, message: no metrics}]";
        assert!(
            warnings(r#""max_by":1"#, inactive).contains("FailedGetResourceMetric: no metrics")
        );
    }
}
