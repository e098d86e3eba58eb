//! As which user of the cluster the calls for a caller are made: a pure decision. Must not make a call.
//!
//! | caller | user | groups |
//! |---|---|---|
//! | with a Kubernetes token | the token's | the token's |
//! | with a client certificate without an entry in the keys file | the common name | the organizations |
//! | with a key, or a certificate with an entry | what the entry's `impersonate` says; without it refused | the same |
//! | whom the platform in front authenticated | refused | |
//! | not authenticated | refused | |
//!
//! Users and groups of Kubernetes itself (`system:`) are never impersonated, except for the service accounts that the
//! settings list. Groups and extra fields that they do not list are left out: a caller has fewer permissions then, and
//! not more.

use std::collections::BTreeMap;

use crate::{
    auth::{Caller, token_review::Identity},
    config::impersonation::{ImpersonationRules, SYSTEM},
    contract::error::{ActionError, Code},
    k8s::api::impersonation::{Impersonation, Person, service_account},
};

/// The impersonation of this caller; `None` if it is not authenticated.
///
/// # Errors
/// [`Code::CallerForbidden`] if the caller is no user of the cluster that may be impersonated.
pub(crate) fn impersonation_of(
    rules: &ImpersonationRules,
    caller: Option<&Caller>,
) -> Result<Impersonation, ActionError> {
    let person = person(caller)?;
    let user = &person.user;
    check_user(rules, user)?;
    let groups = person.groups.into_iter().filter(|group| rules.groups.contains(group)).collect();
    let mut extra = person.extra;
    extra.retain(|key, values| rules.extra.contains(key) && !values.is_empty());
    let refused = |what: String| {
        not_impersonated(&format!("'{}' cannot be impersonated: {what}", user.escape_debug()))
    };
    Impersonation::of(Person { user: user.clone(), uid: person.uid, groups, extra })
        .map_err(refused)
}

/// The caller as a user of the cluster.
fn person(caller: Option<&Caller>) -> Result<Person, ActionError> {
    match caller {
        Some(Caller::User(identity)) => {
            let Identity { user, uid, groups, extra } = identity.clone();
            Ok(Person {
                user,
                uid: uid.filter(|uid| !uid.is_empty()),
                groups: groups.unwrap_or_default(),
                extra: extra.unwrap_or_default(),
            })
        }
        Some(Caller::Key(entry)) => match &entry.impersonate {
            Some(user) => Ok(Person {
                user: user.user.to_string(),
                uid: None,
                groups: user.groups.iter().map(ToString::to_string).collect(),
                extra: BTreeMap::new(),
            }),
            None => {
                let what =
                    format!("the holder of key '{}' is not a user of the cluster", entry.name);
                Err(not_impersonated(&what).with_hint(format!(
                    "let `impersonate` of key '{}' in the keys file name the user, or use a Kubernetes token",
                    entry.name
                )))
            }
        },
        Some(Caller::Platform(name)) => {
            Err(not_impersonated(&format!("{name} is not a user of the cluster")))
        }
        None => Err(not_impersonated("the caller is not authenticated")),
    }
}

fn check_user(rules: &ImpersonationRules, user: &str) -> Result<(), ActionError> {
    let is_listed = rules.accounts.iter().any(|account| account.user() == user);
    if is_listed || !user.starts_with(SYSTEM) {
        return Ok(());
    }
    let refusal = not_impersonated(&format!("{} is a user of Kubernetes", user.escape_debug()));
    Err(match service_account(user) {
        Some((namespace, name)) => refusal.with_hint(format!(
            "an administrator can list the service account in ACTION_EXECUTOR_IMPERSONATE_ACCOUNTS, as {namespace}:{name}"
        )),
        None => refusal,
    })
}

fn not_impersonated(why: &str) -> ActionError {
    let detail = format!("callers act as themselves in the cluster, and {why}");
    ActionError::new(Code::CallerForbidden, detail)
        .with_hint("use a Kubernetes token of a person, or a client certificate")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{auth::keys::Keys, config::reload::ConfigFile};

    fn rules() -> ImpersonationRules {
        ImpersonationRules {
            groups: vec!["sre".to_owned(), "on-call".to_owned()],
            accounts: vec!["agents:agent".parse().expect("is one")],
            extra: vec!["example.com/team".to_owned()],
        }
    }

    fn identity(user: &str, groups: &[&str]) -> Identity {
        Identity::new(user.to_owned(), groups.iter().map(|it| (*it).to_owned()).collect())
    }

    fn key(more: &str) -> Caller {
        let keys = format!("keys: [{{name: pager, certificate: pager{more}}}]");
        let keys = Keys::parse(&keys, "keys.yaml").expect("are keys");
        Caller::Key(keys.of_certificate("pager").expect("is known"))
    }

    fn expected(user: &str, groups: &[&str]) -> Impersonation {
        let groups = groups.iter().map(|it| (*it).to_owned()).collect();
        let person = Person { user: user.to_owned(), groups, ..Person::default() };
        Impersonation::of(person).expect("can be sent")
    }

    fn refused(caller: Option<&Caller>) -> ActionError {
        let error = impersonation_of(&rules(), caller).expect_err("is refused");
        assert_eq!(error.code, Code::CallerForbidden, "{error}");
        error
    }

    #[test]
    fn a_user_is_impersonated_with_the_listed_groups_and_extra_fields_alone() {
        let groups = ["sre", "admins", "system:masters", "system:authenticated"];
        let extra = ["example.com/team", "example.com/else", "authentication.kubernetes.io/pod"];
        let identity = Identity {
            uid: Some("u-1".to_owned()),
            extra: Some(extra.map(|key| (key.to_owned(), vec!["a".to_owned()])).into()),
            ..identity("jo", &groups)
        };
        let person = Person {
            user: "jo".to_owned(),
            uid: Some("u-1".to_owned()),
            groups: vec!["sre".to_owned()],
            extra: [("example.com/team".to_owned(), vec!["a".to_owned()])].into(),
        };
        assert_eq!(
            impersonation_of(&rules(), Some(&Caller::User(identity))),
            Ok(Impersonation::of(person).expect("can be sent"))
        );
    }

    #[test]
    fn users_of_kubernetes_are_refused_unless_they_are_listed_service_accounts() {
        let agent = Caller::User(identity("system:serviceaccount:agents:agent", &["sre"]));
        assert_eq!(
            impersonation_of(&rules(), Some(&agent)),
            Ok(expected("system:serviceaccount:agents:agent", &["sre"]))
        );
        for user in
            ["system:admin", "system:node:a", "system:serviceaccount:agents:agent2", "system:"]
        {
            let error = refused(Some(&Caller::User(identity(user, &[]))));
            assert!(error.detail.contains(user), "{error}");
        }
        let other = refused(Some(&Caller::User(identity("system:serviceaccount:a:b", &[]))));
        assert!(other.hint.expect("has one").contains("as a:b"));
    }

    #[test]
    fn a_key_is_the_user_that_its_entry_names() {
        let error = refused(Some(&key("")));
        assert!(error.detail.contains("key 'pager'"), "{error}");
        let named = key(", impersonate: {user: jo, groups: [sre, admins]}");
        assert_eq!(impersonation_of(&rules(), Some(&named)), Ok(expected("jo", &["sre"])));
        refused(Some(&key(", impersonate: {user: 'system:admin'}")));
    }

    #[test]
    fn a_caller_that_is_no_cluster_user_is_refused() {
        refused(None);
        refused(Some(&Caller::Platform("arn:aws:iam::1:user/jo".to_owned())));
        for user in ["", " jo", "jo\r\nImpersonate-Group: system:masters"] {
            refused(Some(&Caller::User(identity(user, &[]))));
        }
    }
}
