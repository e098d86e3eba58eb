//! Callers from the cluster: the API server says whose token it is (TokenReview) and whether RBAC lets
//! them ask for an action (SubjectAccessReview).
//!
//! The token must be for our audience, so that one that was made for the API server, or for another
//! service, opens nothing here, and ours opens nothing there. What a caller may is said by RBAC on
//! `actions.action-executor.dev`, a resource that nobody serves: verb `execute`, `simulate`, `get` or
//! `list`, resource name the action's, namespace the target's.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use tokio::time::Instant;

use crate::{
    auth::{AccessRequest, forbidden},
    contract::error::ActionError,
    k8s::{
        api::client::{Call, Cluster},
        rbac::PolicyRule,
    },
};

/// The API group and the resource of actions in RBAC.
pub const GROUP: &str = "action-executor.dev";
/// See [`GROUP`].
pub const RESOURCE: &str = "actions";

/// What RBAC must allow the server in the whole cluster, to ask about its callers.
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

/// A user as the API server knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user's name.
    pub user: String,
    uid: Option<String>,
    groups: Option<Vec<String>>,
    extra: Option<BTreeMap<String, Vec<String>>>,
}

impl Identity {
    /// A user of this name in these groups, whom somebody else than the API server has recognised.
    #[must_use]
    pub fn new(user: String, groups: Vec<String>) -> Self {
        Identity { user, groups: Some(groups), ..Identity::default() }
    }
}

/// Asks whose token this is; none, if nobody's or not for this audience.
pub(crate) async fn review(
    cluster: &Cluster,
    token: &str,
    audience: &str,
    deadline: Instant,
) -> Result<Option<Identity>, ActionError> {
    let question = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(vec![audience.to_owned()]),
        },
        ..TokenReview::default()
    };
    match cluster.create_review(&question, deadline).await {
        Ok(answer) => Ok(identity_of(answer, audience)),
        Err(fault) => Err(cluster.explain(&Call::about::<TokenReview>("create"), fault).await),
    }
}

/// An API server that knows no audiences leaves them out of its answer, and the token may then be for
/// anything (TokenReviewStatus in the API's reference).
fn identity_of(review: TokenReview, audience: &str) -> Option<Identity> {
    let status = review.status?;
    let ours = status.audiences?.iter().any(|it| it == audience);
    if !ours || status.authenticated != Some(true) {
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

/// Asks whether RBAC lets this user ask for this.
pub(crate) async fn check(
    cluster: &Cluster,
    identity: &Identity,
    wish: &AccessRequest<'_>,
    deadline: Instant,
) -> Result<(), ActionError> {
    let Identity { user, uid, groups, extra } = identity.clone();
    let question = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.clone()),
            uid,
            groups,
            extra,
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some(RESOURCE.to_owned()),
                verb: Some(wish.verb.name().to_owned()),
                name: wish.kind.map(|kind| kind.name().to_owned()),
                namespace: Some(wish.namespace.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    match cluster.create_review(&question, deadline).await {
        Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => Ok(()),
        Ok(_) => Err(forbidden(&user, wish).with_hint(missing(wish))),
        Err(fault) => {
            let call = Call::about::<SubjectAccessReview>("create");
            Err(cluster.explain(&call, fault).await)
        }
    }
}

/// The rule that would let them.
fn missing(wish: &AccessRequest<'_>) -> String {
    let role = match wish.namespace {
        "" => "a ClusterRole".to_owned(),
        namespace => format!("a Role in '{namespace}'"),
    };
    let names = wish.kind.map(|kind| format!("resourceNames [\"{}\"], ", kind.name()));
    format!(
        "{role} must allow them apiGroups [\"{GROUP}\"], resources [\"{RESOURCE}\"], {}verbs [\"{}\"]",
        names.unwrap_or_default(),
        wish.verb.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(status: &str) -> Option<Identity> {
        let review = format!("spec: {{}}\nstatus: {status}");
        identity_of(serde_yaml_ng::from_str(&review).expect("is a review"), "ours")
    }

    #[test]
    fn only_a_valid_token_for_our_audience_is_recognised() {
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
