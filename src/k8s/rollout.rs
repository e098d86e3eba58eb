//! Is a Deployment's rollout complete? A verdict from the object alone.
//!
//! The checks and their order are those of `kubectl rollout status`
//! (`polymorphichelpers/rollout_status.go`), with one difference: the generation that counts is at
//! least the one that our own patch returned. A status that is older than that speaks of an earlier
//! rollout, and so does a `ProgressDeadlineExceeded` in it.

use k8s_openapi::api::apps::v1::Deployment;

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not there yet; says what is missing.
    Waiting(String),
    /// All replicas are updated and available, and no old one is left.
    Complete(String),
    /// It will not come; says why.
    Failed(String),
}

/// The verdict on `deployment`, for a change that the API server numbered `generation`.
///
/// # Caveats
/// Complete means that every updated replica is *available* now; it says nothing of whether it
/// stays so. A Deployment scaled to zero is complete at once.
#[must_use]
pub fn deployment(deployment: &Deployment, generation: i64) -> Verdict {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let status = deployment.status.clone().unwrap_or_default();
    let spec_replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let updated = status.updated_replicas.unwrap_or(0);
    let total = status.replicas.unwrap_or(0);
    let available = status.available_replicas.unwrap_or(0);

    let current = deployment.metadata.generation.unwrap_or(0).max(generation);
    if status.observed_generation.unwrap_or(0) < current {
        return Verdict::Waiting("waiting for the change to be observed".to_owned());
    }
    let exceeded = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "Progressing"
            && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
    });
    if let Some(condition) = exceeded {
        let message = condition.message.as_deref().unwrap_or_default();
        return Verdict::Failed(format!("ProgressDeadlineExceeded: {message}"));
    }
    if updated < spec_replicas {
        return Verdict::Waiting(format!(
            "{updated} of {spec_replicas} new replicas have been updated"
        ));
    }
    if total > updated {
        return Verdict::Waiting(format!(
            "{} old replicas are pending termination",
            total - updated
        ));
    }
    if available < updated {
        return Verdict::Waiting(format!(
            "{available} of {updated} updated replicas are available"
        ));
    }
    Verdict::Complete(format!(
        "Deployment '{name}' is rolled out: {available} of {spec_replicas} replicas are updated and available"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Deployment of generation 4 with three replicas wanted and the status given as YAML.
    fn verdict(status: &str) -> Verdict {
        verdict_after(4, status)
    }

    fn verdict_after(generation: i64, status: &str) -> Verdict {
        let text = format!(
            "metadata: {{name: web, generation: 4}}\n\
             spec: {{replicas: 3, selector: {{}}, template: {{}}}}\n\
             status: {status}"
        );
        deployment(&serde_yaml_ng::from_str(&text).expect("is a Deployment"), generation)
    }

    fn waits(status: &str, for_what: &str) {
        assert_eq!(verdict(status), Verdict::Waiting(for_what.to_owned()));
    }

    const DONE: &str =
        "{observedGeneration: 4, replicas: 3, updatedReplicas: 3, availableReplicas: 3}";

    #[test]
    fn is_complete_when_all_are_updated_and_available_and_no_old_one_is_left() {
        assert!(matches!(verdict(DONE), Verdict::Complete(_)));
    }

    #[test]
    fn a_status_older_than_the_change_says_nothing() {
        waits(
            "{observedGeneration: 3, replicas: 3, updatedReplicas: 3, availableReplicas: 3}",
            "waiting for the change to be observed",
        );
    }

    #[test]
    fn a_stale_object_is_not_taken_for_the_patched_one() {
        // A read served from before the patch still shows the old generation, and all is well there.
        assert!(matches!(verdict_after(5, DONE), Verdict::Waiting(_)));
    }

    #[test]
    fn a_stale_deadline_does_not_fail_the_new_rollout() {
        waits(
            "{observedGeneration: 3, conditions: [{type: Progressing, status: 'False', reason: ProgressDeadlineExceeded}]}",
            "waiting for the change to be observed",
        );
    }

    #[test]
    fn an_exceeded_deadline_fails_with_the_controllers_message() {
        let status = "{observedGeneration: 4, updatedReplicas: 1, conditions: [{type: Progressing, \
                      status: 'False', reason: ProgressDeadlineExceeded, message: no progress}]}";
        assert_eq!(
            verdict(status),
            Verdict::Failed("ProgressDeadlineExceeded: no progress".to_owned())
        );
    }

    #[test]
    fn waits_for_updated_replicas_first() {
        waits(
            "{observedGeneration: 4, replicas: 4, updatedReplicas: 1, availableReplicas: 3}",
            "1 of 3 new replicas have been updated",
        );
    }

    #[test]
    fn then_for_old_replicas_to_go() {
        waits(
            "{observedGeneration: 4, replicas: 4, updatedReplicas: 3, availableReplicas: 3}",
            "1 old replicas are pending termination",
        );
    }

    #[test]
    fn then_for_availability() {
        waits(
            "{observedGeneration: 4, replicas: 3, updatedReplicas: 3, availableReplicas: 2}",
            "2 of 3 updated replicas are available",
        );
    }

    #[test]
    fn an_empty_status_is_waited_for() {
        waits("{}", "waiting for the change to be observed");
    }
}
