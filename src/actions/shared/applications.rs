//! What the actions on an Application of Argo CD have in common: how it is read, and what its ApplicationSet would set
//! back.

use kube::{
    api::{ApiResource, DynamicObject},
    core::ObjectMeta,
};
use serde_json::Value;

use crate::{
    actions::PlanInput,
    contract::{
        digest::sha256,
        error::{ActionError, Code},
        names::{Namespace, ObjectName},
        response::{Change, Target},
    },
    k8s::{
        api::client::Cluster,
        applied_requests::AppliedRequests,
        argo_cd::{self, AutomatedSync},
        integrations::{APPLICATION, APPLICATION_SET},
        rbac::PolicyRule,
    },
};

/// To change it, and to wait.
pub(crate) const APPLICATIONS: PolicyRule = PolicyRule {
    api_groups: &["argoproj.io"],
    resources: &["applications"],
    verbs: &["get", "patch", "watch"],
};

/// The same without a wait.
pub(crate) const UNAWAITED_APPLICATIONS: PolicyRule =
    PolicyRule { verbs: &["get", "patch"], ..APPLICATIONS };

/// To know what the owner of an Application sets back.
pub(crate) const APPLICATION_SETS: PolicyRule =
    PolicyRule { api_groups: &["argoproj.io"], resources: &["applicationsets"], verbs: &["get"] };

/// What automated sync hangs on.
pub(crate) const ENABLED: [&str; 4] = ["spec", "syncPolicy", "automated", "enabled"];
pub(crate) const ENABLED_POINTER: &str = "/spec/syncPolicy/automated/enabled";

pub(crate) fn target(namespace: &Namespace, name: &ObjectName) -> Target {
    APPLICATION.target(namespace, name)
}

pub(crate) fn resource() -> ApiResource {
    APPLICATION.resource()
}

/// An Application, and the ApplicationSet that controls it, if one does.
pub(crate) struct Owned {
    pub application: DynamicObject,
    pub set: Option<DynamicObject>,
}

impl Owned {
    pub(crate) async fn read(
        cluster: &Cluster,
        namespace: &Namespace,
        name: &ObjectName,
        input: &PlanInput,
    ) -> Result<Self, ActionError> {
        let deadline = input.deadline;
        let application = cluster.get_custom(&APPLICATION, namespace, name, deadline).await?;
        let set = match argo_cd::application_set_of(&application.metadata) {
            None => None,
            Some(set) => {
                match cluster.get_custom(&APPLICATION_SET, namespace, set, deadline).await {
                    // The garbage collector deletes the Application.
                    Err(error) if error.code == Code::TargetNotFound => None,
                    set => Some(set?),
                }
            }
        };
        Ok(Owned { application, set })
    }

    /// Refuses an Application whose ApplicationSet sets back this field, or the request's mark.
    ///
    /// # Errors
    /// [`Code::TargetManaged`] with what its owner can write.
    pub(crate) fn check_kept(
        &self,
        target: &Target,
        field: Option<&str>,
    ) -> Result<(), ActionError> {
        let Some(set) = &self.set else { return Ok(()) };
        let Some((what, hint)) = argo_cd::set_back(set, &target.name, field) else { return Ok(()) };
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let detail =
            format!("{target} is managed by ApplicationSet '{name}', which sets back {what}");
        Err(ActionError::new(Code::TargetManaged, detail)
            .with_hint(hint)
            .object_uid(self.application.metadata.uid.as_deref()))
    }
}

/// Refuses an Application that has no automated sync, which could be suspended or resumed.
///
/// # Errors
/// [`Code::PreconditionFailed`].
pub(crate) fn check_automated(
    target: &Target,
    metadata: &ObjectMeta,
    automated: AutomatedSync,
) -> Result<(), ActionError> {
    if automated != AutomatedSync::None {
        return Ok(());
    }
    let detail =
        format!("{target} has no automated sync: its spec.syncPolicy.automated is not set");
    Err(ActionError::new(Code::PreconditionFailed, detail)
        .with_hint("Argo CD syncs it only on request; sync_argo_cd requests one")
        .object_uid(metadata.uid.as_deref()))
}

/// The digest of what a plan rests on: a part of the spec. The generation counts what Argo CD writes, too.
pub(crate) fn decision_etag(part: &Value) -> String {
    sha256(part.to_string().as_bytes())
}

/// How the request's mark changes it.
pub(crate) fn mark(metadata: &ObjectMeta, input: &PlanInput) -> Change {
    AppliedRequests::from_metadata(&argo_cd::without_generation(metadata)).change(&input.mark)
}
