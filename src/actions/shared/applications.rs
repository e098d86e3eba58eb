//! What the actions on an Application of Argo CD have in common: how it is read, what its ApplicationSet would set
//! back, and how it is patched.

use json_patch::PatchOperation;
use kube::{api::DynamicObject, core::ObjectMeta};
use serde_json::Value;

use crate::{
    actions::{CompletionSpec, Decision, Plan, PlanInput, shared::annotations},
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
        completion::Completion,
        conditional_patch::{add, remove, test},
        effect::Effect,
        gitops,
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
const ENABLED: [&str; 4] = ["spec", "syncPolicy", "automated", "enabled"];
pub(crate) const ENABLED_POINTER: &str = "/spec/syncPolicy/automated/enabled";

pub(crate) fn target(namespace: &Namespace, name: &ObjectName) -> Target {
    APPLICATION.target(namespace, name)
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

/// How an Application is patched, beside the request's mark.
pub(crate) struct Edit {
    /// The digest of what the plan rests on.
    pub etag: String,
    pub operations: Vec<PatchOperation>,
    pub changes: Vec<Change>,
    /// What was done, and what would be.
    pub did: String,
    pub would: String,
}

impl Edit {
    /// The plan of this patch. It rests on no generation, which counts what Argo CD writes, too.
    pub(crate) fn plan(
        self,
        target: Target,
        metadata: &ObjectMeta,
        input: &PlanInput,
        completion: CompletionSpec,
    ) -> Plan {
        let found = argo_cd::without_generation(metadata);
        let effect = Effect::patch(
            APPLICATION.resource(),
            &found,
            &input.mark,
            input.precondition.as_ref(),
            self.operations,
        );
        let decision = Decision::apply(effect, self.did, self.would);
        let mut plan = Plan::new(target, &found, decision, completion);
        plan.decision_etag = Some(self.etag);
        plan.changes = self.changes;
        plan.changes.push(AppliedRequests::from_metadata(&found).change(&input.mark));
        plan
    }
}

/// How `spec.syncPolicy.automated.enabled` changes; `None` is a field that is left out.
pub(crate) struct Enabled {
    pub from: Option<bool>,
    pub to: Option<bool>,
    /// The annotations that are set, or removed, with it.
    pub annotations: Vec<annotations::Entry<'static>>,
}

impl Enabled {
    /// The change, for a person to read.
    pub(crate) fn change(&self) -> Change {
        let [from, to] = [self.from, self.to].map(Value::from);
        Change { path: ENABLED_POINTER.to_owned(), from, to }
    }

    fn operations(&self, metadata: &ObjectMeta) -> Vec<PatchOperation> {
        let set = match self.to {
            Some(to) => add(&ENABLED, Value::Bool(to)),
            None => remove(&ENABLED),
        };
        let mut operations = vec![test(&ENABLED, Value::from(self.from)), set];
        operations.extend(annotations::operations(metadata, &self.annotations));
        operations
    }

    fn changes(&self, metadata: &ObjectMeta) -> Vec<Change> {
        let mut changes = vec![self.change()];
        changes.extend(annotations::changes(metadata, &self.annotations));
        changes
    }
}

/// What a person reads of a change of automated sync.
pub(crate) struct Sentences {
    /// Once it is complete.
    pub completed: String,
    pub did: String,
    pub would: String,
    /// If there is nothing to change.
    pub unchanged: String,
}

/// The plan to change whether an Application is synced by itself, which is nothing if `change` has none.
///
/// # Errors
/// [`Code::PreconditionFailed`] if it has no automated sync, or is not what was approved; [`Code::TargetManaged`] if
/// its ApplicationSet would set it back.
pub(crate) fn plan_automated_sync(
    target: Target,
    found: &Owned,
    input: &PlanInput,
    sentences: Sentences,
    change: impl FnOnce(AutomatedSync) -> Option<Enabled>,
) -> Result<Plan, ActionError> {
    let Sentences { completed, did, would, unchanged } = sentences;
    let metadata = &found.application.metadata;
    let completion = CompletionSpec::Known(Completion::Immediate(completed));
    if input.has_changed(metadata)? {
        return Ok(Plan::already_applied(target, metadata, did, completion));
    }
    input.check_found(&target, metadata)?;
    let automated = AutomatedSync::of(&found.application);
    check_automated(&target, metadata, automated)?;
    let Some(change) = change(automated) else {
        return Ok(Plan::new(target, metadata, Decision::NoOp(unchanged), completion));
    };
    found.check_kept(&target, Some(ENABLED_POINTER))?;
    let etag = decision_etag(&found.application.data["spec"]["syncPolicy"]["automated"]);
    input
        .check_decision("automated sync", &target, &etag)
        .map_err(|refusal| refusal.object_uid(metadata.uid.as_deref()))?;
    let (operations, changes) = (change.operations(metadata), change.changes(metadata));
    let edit = Edit { etag, operations, changes, did, would };
    let mut plan = edit.plan(target, metadata, input, completion);
    plan.warnings = gitops::undo_warnings(metadata, "spec.syncPolicy.automated.enabled");
    Ok(plan)
}

/// Refuses an Application that has no automated sync, which could be suspended or resumed.
///
/// # Errors
/// [`Code::PreconditionFailed`].
fn check_automated(
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
