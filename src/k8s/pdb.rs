//! PodDisruptionBudgets: which ones select a pod, whether they allow its eviction, and which pods block them.
//! Pure.
//!
//! The checks are those of the eviction subresource (`pkg/registry/core/pod/storage/eviction.go` of
//! Kubernetes), but they are made before the eviction and name the blocking pods.

use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::core::{Selector, SelectorExt};

use crate::k8s::pods;

/// The most pods that a reason names.
const MAX_NAMED_BLOCKING_PODS: usize = 5;

/// Whether the disruption budgets of its namespace allow a pod's eviction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PdbDecision<'a> {
    /// No disruption budget selects the pod, or none protects a pod in its state.
    Unprotected,
    /// This disruption budget allows the disruption.
    Allowed(&'a PodDisruptionBudget),
    /// This disruption budget allows none now.
    Blocked(&'a PodDisruptionBudget),
    /// This disruption budget was changed, and its status is not up to date.
    Stale(&'a PodDisruptionBudget),
    /// More than one disruption budget selects it, which the API server always refuses.
    Ambiguous(Vec<&'a PodDisruptionBudget>),
}

/// `pdbs` are all those of the pod's namespace.
pub(crate) fn classify<'a>(pod: &Pod, pdbs: &'a [PodDisruptionBudget]) -> PdbDecision<'a> {
    if is_no_disruption(pod) {
        return PdbDecision::Unprotected;
    }
    match *pdbs_of(pod, pdbs) {
        [] => PdbDecision::Unprotected,
        [pdb] => decide(pod, pdb),
        ref pdbs => PdbDecision::Ambiguous(pdbs.to_vec()),
    }
}

/// The disruption budgets that select the pod. An empty selector selects all pods, a missing one none.
pub(crate) fn pdbs_of<'a>(
    pod: &Pod,
    pdbs: &'a [PodDisruptionBudget],
) -> Vec<&'a PodDisruptionBudget> {
    pdbs.iter().filter(|pdb| selects(pdb, pod)).collect()
}

/// The selector of a disruption budget's pods; none if it selects no pod.
pub(crate) fn selector_of(pdb: &PodDisruptionBudget) -> Option<Selector> {
    Selector::try_from(pdb.spec.as_ref()?.selector.clone()?).ok()
}

/// The pods that block the disruption budget: it selects them, they have not finished, and they do not count as
/// healthy.
pub(crate) fn blocking_pods<'a>(pdb: &PodDisruptionBudget, pods: &'a [Pod]) -> Vec<&'a Pod> {
    let disrupted = pdb.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
    let is_disrupted = |pod: &Pod| {
        let name = pod.metadata.name.as_ref();
        name.is_some_and(|name| disrupted.is_some_and(|all| all.contains_key(name)))
    };
    pods.iter()
        .filter(|pod| selects(pdb, pod) && !pods::has_finished(pod))
        .filter(|pod| !pods::is_ready(pod) || is_disrupted(pod))
        .collect()
}

/// Why a disruption budget allows no disruption now, with the blocking pods.
pub(crate) fn reason(pdb: &PodDisruptionBudget, pods: &[Pod]) -> String {
    let name = name_of(pdb);
    let status = pdb.status.clone().unwrap_or_default();
    if is_stale(pdb) {
        return format!(
            "PodDisruptionBudget '{name}' was changed, and its status is not up to date yet"
        );
    }
    let PodDisruptionBudgetStatus { disruptions_allowed, current_healthy, desired_healthy, .. } =
        status;
    let summary = format!(
        "PodDisruptionBudget '{name}' allows {disruptions_allowed} disruptions now: \
         {current_healthy} pods are healthy, and {desired_healthy} must be"
    );
    // After a failure the numbers are not valid.
    let lead = sync_failure(&status).map_or(summary, |failure| {
        format!(
            "PodDisruptionBudget '{name}' allows no disruption, because its status could not be computed: {failure}"
        )
    });
    match &blocking_pods(pdb, pods)[..] {
        [] => lead,
        blocking => format!("{lead}; not healthy: {}", join_names(blocking)),
    }
}

/// The pods that an integer `minAvailable` requires. It counts the pods that are there, so only the number of replicas
/// of their controllers shows whether it can ever allow a disruption (`getExpectedPodCount` of Kubernetes).
pub(crate) fn min_available(pdb: &PodDisruptionBudget) -> Option<i32> {
    match pdb.spec.as_ref()?.min_available.as_ref()? {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(_) => None,
    }
}

/// Why a disruption budget never allows a disruption, if so: all pods that it expects must be healthy. `replicas` is
/// how many pods there are if none is missing, if that is known; it matters only to [`min_available`].
pub(crate) fn never_allows(pdb: &PodDisruptionBudget, replicas: Option<i32>) -> Option<String> {
    let status = pdb.status.clone().unwrap_or_default();
    if is_stale(pdb) || sync_failure(&status).is_some() {
        return None;
    }
    let (expected, required) = match min_available(pdb) {
        Some(number) => (replicas?, number),
        None => (status.expected_pods, status.desired_healthy),
    };
    (expected > 0 && required >= expected).then(|| {
        format!(
            "PodDisruptionBudget '{}' never allows a disruption: {required} pods must be healthy, and there are \
             {expected} at most",
            name_of(pdb)
        )
    })
}

/// What to do about a disruption budget that never allows a disruption.
pub(crate) fn way_out(pdb: &PodDisruptionBudget) -> String {
    let (namespace, name) = (pdb.metadata.namespace.as_deref(), name_of(pdb));
    let edit = format!("`kubectl -n {} edit pdb {name}`", namespace.unwrap_or_default());
    let deletion = "or delete the pods with restart_pod, which ignores disruption budgets";
    match min_available(pdb) {
        Some(_) => format!("lower its minAvailable ({edit}), add a replica first, {deletion}"),
        None => format!("let it allow at least one unavailable pod ({edit}), {deletion}"),
    }
}

pub(crate) fn name_of(pdb: &PodDisruptionBudget) -> &str {
    pdb.metadata.name.as_deref().unwrap_or_default()
}

/// How many disruptions it allows now.
pub(crate) fn disruptions_allowed(pdb: &PodDisruptionBudget) -> usize {
    if is_stale(pdb) {
        return 0;
    }
    let allowed = pdb.status.as_ref().map_or(0, |status| status.disruptions_allowed);
    usize::try_from(allowed).unwrap_or(0)
}

fn decide<'a>(pod: &Pod, pdb: &'a PodDisruptionBudget) -> PdbDecision<'a> {
    let status = pdb.status.clone().unwrap_or_default();
    if !is_healthy(pod) && allows_unhealthy(pdb, &status) {
        PdbDecision::Unprotected
    } else if is_stale(pdb) {
        PdbDecision::Stale(pdb)
    } else if status.disruptions_allowed > 0 {
        PdbDecision::Allowed(pdb)
    } else {
        PdbDecision::Blocked(pdb)
    }
}

/// The eviction of a pod that does not run or is terminating is no disruption.
fn is_no_disruption(pod: &Pod) -> bool {
    pods::is_terminating(pod) || pods::has_finished(pod) || pods::phase(pod) == "Pending"
}

/// For a pod that is not terminating.
fn is_healthy(pod: &Pod) -> bool {
    pods::is_ready(pod)
}

/// By `unhealthyPodEvictionPolicy`: `AlwaysAllow`, or the default `IfHealthyBudget`, which allows it while
/// enough pods are healthy.
fn allows_unhealthy(pdb: &PodDisruptionBudget, status: &PodDisruptionBudgetStatus) -> bool {
    let policy = pdb.spec.as_ref().and_then(|it| it.unhealthy_pod_eviction_policy.as_deref());
    policy == Some("AlwaysAllow")
        || (status.desired_healthy > 0 && status.current_healthy >= status.desired_healthy)
}

fn selects(pdb: &PodDisruptionBudget, pod: &Pod) -> bool {
    let same_namespace = pdb.metadata.namespace == pod.metadata.namespace;
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    same_namespace && selector_of(pdb).is_some_and(|selector| selector.matches(&labels))
}

/// Whether the disruption budget's status is about an earlier generation.
fn is_stale(pdb: &PodDisruptionBudget) -> bool {
    let observed = pdb.status.as_ref().and_then(|status| status.observed_generation);
    observed.unwrap_or(0) < pdb.metadata.generation.unwrap_or(0)
}

/// Why the disruption controller could not count the healthy pods.
fn sync_failure(status: &PodDisruptionBudgetStatus) -> Option<&str> {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let failed = conditions.iter().find(|condition| {
        condition.type_ == "DisruptionAllowed" && condition.reason == "SyncFailed"
    });
    failed.map(|condition| condition.message.as_str())
}

fn join_names(pods: &[&Pod]) -> String {
    let mut names: Vec<_> = pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    names.sort_unstable();
    pods::join_names(&names, MAX_NAMED_BLOCKING_PODS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: &str = "conditions: [{type: Ready, status: 'True'}]";

    fn pod(name: &str, status: &str) -> Pod {
        let text = format!(
            "metadata: {{name: {name}, namespace: shop, labels: {{app: web}}}}\nstatus: {{{status}}}"
        );
        serde_yaml_ng::from_str(&text).expect("is a pod")
    }

    fn running(name: &str) -> Pod {
        pod(name, &format!("phase: Running, {READY}"))
    }

    fn unready(name: &str) -> Pod {
        pod(name, "phase: Running")
    }

    /// A disruption budget with this spec, of whose two required pods this number is healthy.
    fn pdb(spec: &str, healthy: i32, allowed: i32) -> PodDisruptionBudget {
        let text = format!(
            "metadata: {{name: web, namespace: shop, generation: 2}}\nspec: {{{spec}}}\n\
             status: {{observedGeneration: 2, currentHealthy: {healthy}, desiredHealthy: 2, \
             disruptionsAllowed: {allowed}, expectedPods: 3}}"
        );
        serde_yaml_ng::from_str(&text).expect("is a PDB")
    }

    const OF_WEB: &str = "selector: {matchLabels: {app: web}}";

    #[test]
    fn a_pod_that_no_pdb_selects_is_unprotected() {
        for spec in ["selector: {matchLabels: {app: db}}", "minAvailable: 1"] {
            assert_eq!(
                classify(&running("a"), &[pdb(spec, 2, 0)]),
                PdbDecision::Unprotected,
                "{spec}"
            );
        }
        let mut elsewhere = pdb(OF_WEB, 2, 0);
        elsewhere.metadata.namespace = Some("bank".to_owned());
        assert_eq!(classify(&running("a"), &[elsewhere]), PdbDecision::Unprotected);
    }

    #[test]
    fn an_empty_selector_selects_every_pod() {
        let pdbs = [pdb("selector: {}", 2, 0)];
        assert_eq!(classify(&running("a"), &pdbs), PdbDecision::Blocked(&pdbs[0]));
    }

    #[test]
    fn a_pdb_allows_the_disruptions_of_its_status() {
        let pdbs = [pdb(OF_WEB, 3, 1)];
        assert_eq!(classify(&running("a"), &pdbs), PdbDecision::Allowed(&pdbs[0]));
        let pdbs = [pdb(OF_WEB, 2, 0)];
        assert_eq!(classify(&running("a"), &pdbs), PdbDecision::Blocked(&pdbs[0]));
    }

    #[test]
    fn a_pod_that_does_not_run_or_is_terminating_is_no_disruption() {
        let pdbs = [pdb(OF_WEB, 2, 0), pdb("selector: {}", 2, 0)];
        for phase in ["Pending", "Succeeded", "Failed"] {
            assert_eq!(
                classify(&pod("a", &format!("phase: {phase}")), &pdbs),
                PdbDecision::Unprotected
            );
        }
        let mut terminating = running("a");
        terminating.metadata.deletion_timestamp =
            serde_yaml_ng::from_str("'2026-01-31T12:00:00Z'").expect("is a time");
        assert_eq!(classify(&terminating, &pdbs), PdbDecision::Unprotected);
    }

    #[test]
    fn an_unready_pod_is_unprotected_while_enough_others_are_healthy() {
        assert_eq!(classify(&unready("a"), &[pdb(OF_WEB, 2, 0)]), PdbDecision::Unprotected);
        let pdbs = [pdb(OF_WEB, 1, 0)];
        assert_eq!(classify(&unready("a"), &pdbs), PdbDecision::Blocked(&pdbs[0]));
        // A disruption budget that requires no healthy pod does not allow all.
        let mut none = pdb(OF_WEB, 0, 0);
        none.status.as_mut().expect("has one").desired_healthy = 0;
        assert!(matches!(classify(&unready("a"), &[none]), PdbDecision::Blocked(_)));
    }

    #[test]
    fn an_unready_pod_is_unprotected_with_always_allow() {
        let pdbs = [pdb(&format!("{OF_WEB}, unhealthyPodEvictionPolicy: AlwaysAllow"), 0, 0)];
        assert_eq!(classify(&unready("a"), &pdbs), PdbDecision::Unprotected);
        assert_eq!(classify(&running("a"), &pdbs), PdbDecision::Blocked(&pdbs[0]));
    }

    #[test]
    fn a_changed_pdb_is_stale() {
        let mut changed = pdb(OF_WEB, 3, 1);
        changed.metadata.generation = Some(3);
        let pdbs = [changed];
        assert_eq!(classify(&running("a"), &pdbs), PdbDecision::Stale(&pdbs[0]));
        assert!(reason(&pdbs[0], &[]).contains("was changed"));
    }

    #[test]
    fn two_pdbs_for_one_pod_are_ambiguous() {
        let pdbs = [pdb(OF_WEB, 3, 1), pdb("selector: {}", 3, 1)];
        assert!(
            matches!(classify(&running("a"), &pdbs), PdbDecision::Ambiguous(two) if two.len() == 2)
        );
    }

    #[test]
    fn a_reason_names_the_blocking_pods() {
        let mut other = unready("db-1");
        other.metadata.labels = None;
        let pods = [
            running("web-1"),
            unready("web-3"),
            unready("web-2"),
            pod("web-4", "phase: Failed"),
            other,
        ];
        assert_eq!(
            reason(&pdb(OF_WEB, 1, 0), &pods),
            "PodDisruptionBudget 'web' allows 0 disruptions now: 1 pods are healthy, and 2 must be; \
             not healthy: web-2, web-3"
        );
        let many: Vec<_> = (0..8).map(|number| unready(&format!("web-{number}"))).collect();
        let reason = reason(&pdb(OF_WEB, 0, 0), &many);
        assert!(reason.ends_with("web-0, web-1, web-2, web-3, web-4 and 3 more"), "{reason}");
    }

    #[test]
    fn a_pod_that_was_just_evicted_blocks_the_pdb() {
        let mut pdb = pdb(OF_WEB, 2, 0);
        pdb.status.as_mut().expect("has one").disrupted_pods =
            serde_yaml_ng::from_str("{web-1: '2026-01-31T12:00:00Z'}").expect("are pods");
        let pods = [running("web-1"), running("web-2")];
        let names: Vec<_> =
            blocking_pods(&pdb, &pods).iter().map(|pod| pod.metadata.name.as_deref()).collect();
        assert_eq!(names, [Some("web-1")]);
    }

    #[test]
    fn a_reason_has_no_numbers_after_a_failure() {
        let mut pdb = pdb(OF_WEB, 0, 0);
        pdb.status.as_mut().expect("has one").conditions = serde_yaml_ng::from_str(
            "[{type: DisruptionAllowed, status: 'False', reason: SyncFailed, message: no scale, \
             lastTransitionTime: '2026-01-31T12:00:00Z'}]",
        )
        .expect("are conditions");
        let reason = reason(&pdb, &[]);
        assert!(reason.contains("no scale") && !reason.contains("healthy"), "{reason}");
    }

    #[test]
    fn a_pdb_that_requires_all_pods_never_allows_a_disruption() {
        // The status requires 2 of 3 expected pods.
        let of = |spec: &str, expected: i32| {
            let mut pdb = pdb(&format!("{OF_WEB}, {spec}"), 2, 0);
            pdb.status.as_mut().expect("has one").expected_pods = expected;
            pdb
        };
        for (spec, expected, replicas, never) in [
            ("maxUnavailable: 0", 2, None, true),
            ("maxUnavailable: 1", 3, None, false),
            ("minAvailable: '100%'", 2, Some(9), true),
            ("minAvailable: 2", 2, Some(2), true),
            ("minAvailable: 3", 2, Some(2), true),
            // A pod is missing now.
            ("minAvailable: 2", 2, Some(3), false),
            ("minAvailable: 2", 2, None, false),
            ("maxUnavailable: 0", 0, None, false),
        ] {
            let found = never_allows(&of(spec, expected), replicas);
            assert_eq!(found.is_some(), never, "{spec} {expected} {replicas:?}: {found:?}");
        }
        let mut stale = of("maxUnavailable: 0", 2);
        stale.metadata.generation = Some(3);
        assert_eq!(never_allows(&stale, None), None);
        let why = never_allows(&of("maxUnavailable: 0", 2), None).expect("is reported");
        assert!(why.contains("'web' never allows"), "{why}");
        assert!(way_out(&of("minAvailable: 2", 2)).contains("add a replica"));
        assert!(!way_out(&of("maxUnavailable: 0", 2)).contains("add a replica"));
    }
}
