//! A person's approval of one planned action.
//!
//! An approval is a ConfigMap in the target's namespace whose name has a digest: of the request, of what it is
//! about to do to which objects, and of the record that asks. So it is valid for that plan alone, and once. After
//! it was used, after it expired or after the object changed, a resent request gets another digest. The
//! executor can read approvals and cannot create them; users who may create ConfigMaps in the namespace can.
//! RBAC keeps the two apart.
//!
//! A record never stands for an approval, since more accounts may write Events than may approve. Each attempt reads
//! the ConfigMap of the digest that it computes itself.

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::ConfigMap;
use tokio::time::Instant;

use crate::{
    actions::{Plan, SelectedTarget},
    contract::{digest::sha256, error::ActionError},
    k8s::{api::client::Cluster, rbac::PolicyRule},
    ledger::record::RequestMetadata,
};

/// The length of a digest: 128 bits.
const DIGEST_CHARACTERS: usize = 32;

/// The permissions of the executor where actions need approval.
pub const RULE: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["configmaps"], verbs: &["get"] };

/// The permissions of approvers: to see what is requested, and to approve it.
pub const APPROVER: [PolicyRule; 2] = [
    PolicyRule { api_groups: &[""], resources: &["configmaps"], verbs: &["create"] },
    PolicyRule { api_groups: &[""], resources: &["events"], verbs: &["get", "list"] },
];

/// The digest of a plan, as the record with this nonce asks for it. The fence of the effect tests the same: uid and
/// generation.
pub(crate) fn digest(request: &RequestMetadata, nonce: &str, plan: &Plan) -> String {
    if let Some(targets) = plan.completion.targets() {
        return digest_of_targets(request, nonce, targets);
    }
    let mut others: Vec<_> = plan.uids_of_others().into_iter().collect();
    others.sort_unstable();
    let whole = serde_json::json!([
        nonce,
        request.id,
        request.digest,
        plan.found.uid,
        plan.found.generation,
        plan.replicas,
        plan.decision_etag,
        others,
    ]);
    sha256(whole.to_string().as_bytes())[..DIGEST_CHARACTERS].to_owned()
}

/// The same for targets that a selector chose: of each its uid, and the digest of what is planned for it.
pub(crate) fn digest_of_targets(
    request: &RequestMetadata,
    nonce: &str,
    targets: &[SelectedTarget],
) -> String {
    let whole = serde_json::json!([nonce, request.id, request.digest, targets]);
    sha256(whole.to_string().as_bytes())[..DIGEST_CHARACTERS].to_owned()
}

/// The name of the ConfigMap that approves this digest.
fn object_name(digest: &str) -> String {
    format!("action-executor-approval-{digest}")
}

/// The command that approves this digest. Of several clusters it names the one whose record asks, as a context: kubectl
/// refuses one that it does not know, so that no other cluster gets the approval. Its `--cluster` would send that
/// cluster the credentials of the current context.
pub(crate) fn command(cluster: Option<&str>, namespace: &str, digest: &str) -> String {
    let context = cluster.map(|name| format!("--context {name} ")).unwrap_or_default();
    let name = object_name(digest);
    format!("kubectl {context}-n {namespace} create configmap {name} --from-literal=by=\"$USER\"")
}

/// A ConfigMap that approves a digest.
pub(crate) struct Approved {
    /// The approver, as the ConfigMap names them.
    pub by: String,
    /// When it was created, by the API server's clock.
    pub at: Option<DateTime<Utc>>,
}

/// The approval of this digest; `None` if it is not approved.
///
/// # Errors
/// Why the ConfigMap could not be read.
pub(crate) async fn find(
    cluster: &Cluster,
    namespace: &str,
    digest: &str,
    deadline: Instant,
) -> Result<Option<Approved>, ActionError> {
    let name = object_name(digest);
    let approval = cluster.get_opt::<ConfigMap>(namespace, &name, deadline).await?;
    Ok(approval.map(|approval| {
        let created = approval.metadata.creation_timestamp.as_ref();
        let at = created.and_then(|it| DateTime::from_timestamp(it.0.as_second(), 0));
        let by = approval.data.and_then(|data| data.get("by").cloned()).unwrap_or_default();
        let by = by.chars().filter(|c| !c.is_control()).take(100).collect();
        Approved { by, at }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_the_cluster_of_a_list_as_a_context() {
        assert_eq!(
            command(Some("blue"), "shop", "d1"),
            "kubectl --context blue -n shop create configmap action-executor-approval-d1 --from-literal=by=\"$USER\""
        );
        assert!(command(None, "shop", "d1").starts_with("kubectl -n shop create configmap "));
    }
}
