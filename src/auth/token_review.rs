//! Kubernetes tokens: authentication by TokenReview, authorization by SubjectAccessReview.
//!
//! A token must be for the executor's audience, so that a token for the API server or for another service is not
//! accepted here, and the other way round. RBAC authorizes on `actions.action-executor.dev`, a resource that no
//! API server serves: verb `execute`, `simulate`, `get` or `list`, the action as resource name, in the target's
//! namespace.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use tokio::time::Instant;

use crate::{
    auth::{AccessRequest, forbidden},
    contract::error::{ActionError, Code},
    k8s::{
        api::client::{ApiCall, Cluster},
        rbac::PolicyRule,
    },
};

/// The API group and the resource of actions in RBAC.
pub(crate) const GROUP: &str = "action-executor.dev";
/// See [`GROUP`].
pub(crate) const RESOURCE: &str = "actions";

/// The cluster-wide permissions that the server needs to review its callers.
pub const RULES: [PolicyRule; 2] = [
    PolicyRule {
        api_groups: &["authentication.k8s.io"],
        resources: &["tokenreviews"],
        verbs: &["create"],
    },
    PolicyRule {
        api_groups: &["authorization.k8s.io"],
        resources: &["subjectaccessreviews"],
        verbs: &["create"],
    },
];

/// A user of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    /// The user's name.
    pub user: String,
    pub(super) uid: Option<String>,
    pub(super) groups: Option<Vec<String>>,
    pub(super) extra: Option<BTreeMap<String, Vec<String>>>,
}

impl Identity {
    /// A user whom the API server did not authenticate itself.
    pub(crate) fn new(user: String, groups: Vec<String>) -> Self {
        Identity { user, groups: Some(groups), ..Identity::default() }
    }
}

/// The user of a token; none if it is not valid for this audience.
pub(crate) async fn review(
    cluster: &Cluster,
    token: &str,
    audience: &str,
    deadline: Instant,
) -> Result<Option<Identity>, ActionError> {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(vec![audience.to_owned()]),
        },
        ..TokenReview::default()
    };
    match cluster.create_review(&review, deadline).await {
        Ok(answer) => Ok(identity_of(answer, audience)),
        Err(fault) => Err(cluster.explain(&ApiCall::of_kind::<TokenReview>("create"), fault).await),
    }
}

/// An API server without support for audiences leaves them out of its answer; the token may then be for any
/// (TokenReviewStatus in the API's reference).
fn identity_of(review: TokenReview, audience: &str) -> Option<Identity> {
    let status = review.status?;
    let is_for_audience = status.audiences?.iter().any(|it| it == audience);
    if !is_for_audience || status.authenticated != Some(true) {
        return None;
    }
    let user = status.user?;
    Some(Identity {
        user: user.username.filter(|name| !name.is_empty())?,
        uid: user.uid,
        groups: user.groups,
        extra: user.extra,
    })
}

/// Checks that RBAC of this cluster allows the user the access, there or on another cluster of the list.
///
/// # Errors
/// [`Code::CallerForbidden`] with the missing rule, or why the cluster could not answer.
pub(crate) async fn check(
    reviewer: &Cluster,
    identity: &Identity,
    access: &AccessRequest<'_>,
    deadline: Instant,
) -> Result<(), ActionError> {
    let Identity { user, uid, groups, extra } = identity.clone();
    let subresource = subresource(access, reviewer.listed_name());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.clone()),
            uid,
            groups,
            extra,
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some(RESOURCE.to_owned()),
                subresource: subresource.map(str::to_owned),
                verb: Some(access.verb.name().to_owned()),
                name: access.kind.map(|kind| kind.name().to_owned()),
                namespace: Some(access.namespace.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    match reviewer.create_review(&review, deadline).await {
        Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => Ok(()),
        Ok(_) => Err(forbidden(&user, access).with_hint(missing_rule(access, subresource))),
        Err(fault) => {
            let call = ApiCall::of_kind::<SubjectAccessReview>("create");
            Err(reviewer.explain(&call, fault).await)
        }
    }
}

/// The subresource of actions that stands for the cluster of the access, if it is another one than the reviewer: RBAC
/// has no clusters, and a rule for `actions` does not allow a subresource of them.
fn subresource<'a>(access: &AccessRequest<'a>, reviewer: Option<&str>) -> Option<&'a str> {
    access.cluster.filter(|cluster| Some(*cluster) != reviewer)
}

/// A read of the cluster's own objects, as RBAC knows it.
pub(crate) struct ObjectAccess<'a> {
    pub rule: PolicyRule,
    /// Empty: all namespaces, or none.
    pub namespace: &'a str,
    /// Empty: any.
    pub name: &'a str,
}

/// Checks that RBAC allows the user to read these objects itself.
///
/// # Errors
/// [`Code::CallerForbidden`](crate::contract::error::Code::CallerForbidden) with the missing rule, or why the cluster
/// could not answer.
pub(crate) async fn check_objects(
    cluster: &Cluster,
    identity: &Identity,
    access: &ObjectAccess<'_>,
    deadline: Instant,
) -> Result<(), ActionError> {
    let Identity { user, uid, groups, extra } = identity.clone();
    let ObjectAccess { rule, namespace, name } = access;
    let (group, verb) = (rule.api_groups[0], rule.verbs[0]);
    let (resource, subresource) = match rule.resources[0].split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (rule.resources[0], None),
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.clone()),
            uid,
            groups,
            extra,
            resource_attributes: Some(ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                verb: Some(verb.to_owned()),
                name: Some((*name).to_owned()),
                namespace: Some((*namespace).to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    match cluster.create_review(&review, deadline).await {
        Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => Ok(()),
        Ok(_) => {
            let (role, place) = match *namespace {
                "" => ("a ClusterRole".to_owned(), "the cluster".to_owned()),
                name => (format!("a Role in '{name}'"), format!("namespace '{name}'")),
            };
            let what = rule.resources[0];
            let detail = format!("{user} may not {verb} {what} in {place}");
            Err(ActionError::new(Code::CallerForbidden, detail).with_hint(format!(
                "{role} must allow the caller apiGroups [\"{group}\"], resources [\"{what}\"], verbs [\"{verb}\"]"
            )))
        }
        Err(fault) => {
            let call = ApiCall::of_kind::<SubjectAccessReview>("create");
            Err(cluster.explain(&call, fault).await)
        }
    }
}

/// The RBAC rule that would allow it.
fn missing_rule(access: &AccessRequest<'_>, subresource: Option<&str>) -> String {
    let role = match access.namespace {
        "" => "a ClusterRole".to_owned(),
        namespace => format!("a Role in '{namespace}'"),
    };
    let names = access.kind.map(|kind| format!("resourceNames [\"{}\"], ", kind.name()));
    let subresource = subresource.map(|name| format!("/{name}")).unwrap_or_default();
    format!(
        "{role} must allow the caller apiGroups [\"{GROUP}\"], resources [\"{RESOURCE}{subresource}\"], {}verbs [\"{}\"]",
        names.unwrap_or_default(),
        access.verb.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Verb;

    fn review(status: &str) -> Option<Identity> {
        let review = format!("spec: {{}}\nstatus: {status}");
        identity_of(serde_yaml_ng::from_str(&review).expect("is a review"), "ours")
    }

    #[test]
    fn rbac_of_the_reviewer_knows_every_other_cluster_as_a_subresource() {
        let access =
            |cluster| AccessRequest { verb: Verb::List, kind: None, namespace: "", cluster };
        assert_eq!(subresource(&access(Some("blue")), Some("green")), Some("blue"));
        assert_eq!(subresource(&access(Some("green")), Some("green")), None);
        assert_eq!(subresource(&access(Some("blue")), None), Some("blue"));
        assert_eq!(subresource(&access(None), None), None);
        let rule = missing_rule(&access(Some("blue")), Some("blue"));
        assert!(rule.contains(r#"["actions/blue"]"#), "{rule}");
    }

    #[test]
    fn only_a_valid_token_for_the_audience_is_accepted() {
        let user = "user: {username: system:serviceaccount:agents:agent, groups: [a]}";
        let known = review(&format!("{{authenticated: true, audiences: [ours], {user}}}"));
        assert_eq!(known.expect("is known").user, "system:serviceaccount:agents:agent");
        for unknown in [
            format!("{{authenticated: false, audiences: [ours], {user}}}"),
            format!("{{audiences: [ours], {user}}}"),
            format!("{{authenticated: true, audiences: [theirs], {user}}}"),
            format!("{{authenticated: true, {user}}}"),
            "{authenticated: true, audiences: [ours], user: {username: ''}}".to_owned(),
            "{authenticated: true, audiences: [ours]}".to_owned(),
        ] {
            assert_eq!(review(&unknown), None, "{unknown}");
        }
    }
}
