//! A person's approval of one planned action.
//!
//! An approval is a ConfigMap in the target's namespace whose name holds a digest: of the request, of
//! the object as it was looked at, and of the record that asks. So it is good for that plan alone, and
//! for one time: who asks again after it was used, after it expired or after the object has changed
//! gets another digest. The executor can read approvals and cannot make them; whoever may create
//! ConfigMaps in the namespace can. That is the whole of the separation, and RBAC keeps it.

use k8s_openapi::api::core::v1::ConfigMap;
use tokio::time::Instant;

use crate::{
    actions::Plan,
    contract::{digest::sha256, error::ActionError},
    k8s::{
        api::{
            client::{Call, Cluster},
            error::ApiError,
        },
        rbac::PolicyRule,
    },
    ledger::record::{Record, RequestMetadata},
};

/// What RBAC must allow the executor where actions need approval.
pub const RULE: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["configmaps"], verbs: &["get"] };

/// What RBAC must allow those who approve: to see what is asked for, and to say yes.
pub const APPROVER: [PolicyRule; 2] = [
    PolicyRule { api_groups: &[""], resources: &["configmaps"], verbs: &["create"] },
    PolicyRule { api_groups: &[""], resources: &["events"], verbs: &["get", "list"] },
];

/// The digest of a plan, as the record asks for it.
#[must_use]
pub(crate) fn digest(subject: &RequestMetadata, record: &Record, plan: &Plan) -> String {
    let generation = plan.found.generation.unwrap_or(0);
    let uid = plan.found.uid.as_deref().unwrap_or_default();
    let whole = format!("{} {} {uid} {generation}", record.holder, subject.digest);
    sha256(whole.as_bytes())[..20].to_owned()
}

/// The ConfigMap that is the approval of this digest.
fn object_name(digest: &str) -> String {
    format!("action-executor-approval-{digest}")
}

/// The command by which a person approves.
#[must_use]
pub(crate) fn command(namespace: &str, digest: &str) -> String {
    let name = object_name(digest);
    format!("kubectl -n {namespace} create configmap {name} --from-literal=by=\"$USER\"")
}

/// Who approved the digest, in their own words; `None` if nobody did.
///
/// # Errors
/// Why the cluster could not be asked.
pub(crate) async fn given(
    cluster: &Cluster,
    namespace: &str,
    digest: &str,
    deadline: Instant,
) -> Result<Option<String>, ActionError> {
    let name = object_name(digest);
    match cluster.try_get::<ConfigMap>(namespace, &name, deadline).await {
        Ok(approval) => {
            let by = approval.data.and_then(|data| data.get("by").cloned()).unwrap_or_default();
            Ok(Some(by.chars().filter(|c| !c.is_control()).take(100).collect()))
        }
        Err(ApiError::NotFound) => Ok(None),
        Err(fault) => {
            let call = Call::of::<ConfigMap>("get", namespace, Some(&name));
            Err(cluster.explain(&call, fault).await)
        }
    }
}
