//! Calls as another user of the cluster: the headers of an impersonation
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>), the client that sends
//! them, and the rules that the executor's own account needs for it. Must not decide who may be impersonated.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderName, HeaderValue, Request};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{Client, client::Body};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::service_fn;

use crate::{
    contract::error::{ActionError, Code},
    k8s::api::{
        client::{ApiCall, Cluster},
        error::ApiError,
    },
};

/// The extra field that names the executor, for admission policies and the audit log: the user name of its own account.
/// With impersonation the API server shows them the impersonated user alone.
pub(crate) const EXECUTOR: &str = "action-executor.dev/executor";

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// What the name of a header cannot have (RFC 9110, section 5.1), and the percent sign, as client-go encodes it
/// (`transport/round_trippers.go`, `headerKeyEscape`).
const ENCODED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'%')
    .add(b'(')
    .add(b')')
    .add(b',')
    .add(b'/')
    .add(b':')
    .add(b';')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'@')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'{')
    .add(b'}');

/// A user of the cluster, as calls are made in its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Person {
    pub user: String,
    pub uid: Option<String>,
    pub groups: Vec<String>,
    /// The keys are in lower case.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The impersonation of a person: what is sent with each call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Impersonation {
    person: Person,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Impersonation {
    /// The impersonation of this person.
    ///
    /// # Errors
    /// What an HTTP header cannot have, or would change.
    pub(crate) fn of(person: Person) -> Result<Self, String> {
        let Person { user, uid, groups, extra } = &person;
        let mut headers = vec![(USER, value("the user's name", user)?)];
        if let Some(uid) = uid {
            headers.push((UID, value("the user's uid", uid)?));
        }
        for group in groups {
            headers.push((GROUP, value("the name of a group", group)?));
        }
        for (key, values) in extra {
            let name = format!("{EXTRA_PREFIX}{}", utf8_percent_encode(key, ENCODED));
            let name = HeaderName::try_from(name)
                .map_err(|_| format!("the extra key '{}' cannot be sent", key.escape_debug()))?;
            for text in values {
                headers.push((name.clone(), value("an extra value", text)?));
            }
        }
        Ok(Impersonation { person, headers })
    }

    /// The same with the extra field that names the executor.
    ///
    /// # Errors
    /// As [`Impersonation::of`].
    pub(crate) fn by(self, executor: &str) -> Result<Self, String> {
        let mut person = self.person;
        person.extra.insert(EXECUTOR.to_owned(), vec![executor.to_owned()]);
        Impersonation::of(person)
    }

    /// The person's name.
    pub(crate) fn user(&self) -> &str {
        &self.person.user
    }

    /// The rules that the executor's own account needs for this impersonation.
    pub(crate) fn rules(&self) -> Value {
        let Person { user, uid, groups, extra } = &self.person;
        let rule = |group: &str, resource: &str, names: &[String]| {
            json!({
                "apiGroups": [group], "resources": [resource], "resourceNames": names,
                "verbs": ["impersonate"],
            })
        };
        const AUTHENTICATION: &str = "authentication.k8s.io";
        let mut rules = vec![match service_account(user) {
            Some((_, name)) => rule("", "serviceaccounts", &[name.to_owned()]),
            None => rule("", "users", std::slice::from_ref(user)),
        }];
        if !groups.is_empty() {
            rules.push(rule("", "groups", groups));
        }
        rules.extend(uid.iter().map(|uid| rule(AUTHENTICATION, "uids", std::slice::from_ref(uid))));
        rules.extend(
            extra
                .iter()
                .map(|(key, values)| rule(AUTHENTICATION, &format!("userextras/{key}"), values)),
        );
        rules.into()
    }

    /// A client whose calls are made as the person, over the connections and with the credentials of this one.
    pub(super) fn client(&self, own: Client) -> Client {
        let namespace = own.default_namespace().to_owned();
        let headers: Arc<[_]> = self.headers.clone().into();
        let send = service_fn(move |mut request: Request<Body>| {
            for (name, value) in headers.iter() {
                request.headers_mut().append(name, value.clone());
            }
            let own = own.clone();
            async move { own.send(request).await }
        });
        Client::new(send, namespace)
    }
}

impl Cluster {
    /// The same cluster, where all calls are made as this person.
    ///
    /// # Errors
    /// [`Code::Configuration`] if the kubeconfig impersonates a user already, or if impersonations do not reach the API
    /// server; why the cluster does not say who we are.
    pub(crate) async fn acting_as(
        &self,
        person: Impersonation,
        deadline: Instant,
    ) -> Result<Cluster, ActionError> {
        self.check_acts_as_itself()?;
        let person = person.by(self.own_name(deadline).await?).map_err(|what| {
            ActionError::new(Code::Configuration, format!("the executor's own account: {what}"))
        })?;
        let acting = self.with_person(person.client(self.client()), Arc::new(person.clone()));
        let seen = || acting.check_seen_as(&person, deadline);
        self.impersonation_seen_cell().get_or_try_init(seen).await?;
        Ok(acting)
    }

    /// Checks that the API server takes the calls for those of this person. A proxy before it may drop the headers, so
    /// that the calls would be our own; or those of extra fields alone, so that no admission policy would know the
    /// calls for the executor's.
    async fn check_seen_as(
        &self,
        person: &Impersonation,
        deadline: Instant,
    ) -> Result<(), ActionError> {
        let review = match self.create_review(&SelfSubjectReview::default(), deadline).await {
            Ok(review) => review,
            // The API server has read the headers.
            Err(ApiError::MayNotImpersonate(_) | ApiError::Forbidden(_)) => return Ok(()),
            Err(error) => {
                let call = ApiCall::of_kind::<SelfSubjectReview>("create");
                return Err(self.explain(&call, error).await);
            }
        };
        let seen = review.status.and_then(|status| status.user_info).unwrap_or_default();
        let user = seen.username.unwrap_or_default();
        let extra = seen.extra.unwrap_or_default();
        let what = match user == person.user() {
            true if extra.get(EXECUTOR) == person.person.extra.get(EXECUTOR) => return Ok(()),
            true => format!("of {user} without the field {EXECUTOR}"),
            false => format!("of {user}"),
        };
        let detail = format!(
            "callers cannot be impersonated: the API server sees them as calls {what}, so the headers of the \
             impersonation do not reach it"
        );
        Err(ActionError::new(Code::Configuration, detail).with_hint(
            "let the proxies before the API server pass the headers Impersonate-*, or call it directly",
        ))
    }

    /// Checks that no call impersonates a user yet: the API server would read the headers of two as one.
    ///
    /// # Errors
    /// [`Code::Configuration`] if the kubeconfig says so.
    pub(crate) fn check_acts_as_itself(&self) -> Result<(), ActionError> {
        if !self.impersonates() && self.person().is_none() {
            return Ok(());
        }
        let detail = "callers cannot be impersonated: the kubeconfig's user impersonates another";
        Err(ActionError::new(Code::Configuration, detail).with_hint(
            "remove `as` from the kubeconfig's user, or unset ACTION_EXECUTOR_IMPERSONATE",
        ))
    }
}

/// The namespace and the name of the service account with this user name.
pub(crate) fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

/// A header's value. The API server would take an empty user for none, and the executor's own account would act; spaces
/// around a value are no part of it (RFC 9110, section 5.5), so another user would act.
fn value(what: &str, text: &str) -> Result<HeaderValue, String> {
    if text.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if text.trim() != text || text.contains(char::is_control) {
        return Err(format!("{what} has characters that an HTTP header cannot have"));
    }
    // client-go sends UTF-8, too.
    HeaderValue::from_bytes(text.as_bytes())
        .map_err(|_| format!("{what} has characters that an HTTP header cannot have"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jo() -> Person {
        Person {
            user: "jo@example.com".to_owned(),
            uid: Some("u-1".to_owned()),
            groups: vec!["sre".to_owned(), "on call".to_owned()],
            extra: [("example.com/team".to_owned(), vec!["a".to_owned(), "b".to_owned()])].into(),
        }
    }

    fn sent(person: Person) -> Vec<(String, String)> {
        let headers = Impersonation::of(person).expect("can be sent").headers;
        let text = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec());
        let pair = |(name, value): &(HeaderName, HeaderValue)| {
            (name.to_string(), text(value).expect("is UTF-8"))
        };
        headers.iter().map(pair).collect()
    }

    #[test]
    fn a_person_is_sent_in_headers() {
        let expected = [
            ("impersonate-user", "jo@example.com"),
            ("impersonate-uid", "u-1"),
            ("impersonate-group", "sre"),
            ("impersonate-group", "on call"),
            ("impersonate-extra-example.com%2fteam", "a"),
            ("impersonate-extra-example.com%2fteam", "b"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(sent(jo()), expected);
        let with_user = |user: &str| Person { user: user.to_owned(), ..Person::default() };
        assert_eq!(sent(with_user("jö"))[0].1, "jö");
    }

    #[test]
    fn each_key_of_an_extra_field_has_a_header() {
        let all: String = (' '..='~').filter(|it| !it.is_ascii_uppercase()).collect();
        let person = Person { extra: [(all, vec!["a".to_owned()])].into(), ..jo() };
        assert!(Impersonation::of(person).is_ok());
    }

    #[test]
    fn names_that_a_header_would_change_are_refused() {
        for wrong in ["", " jo", "jo ", "jo\n", "j\to", "jo\0", "\u{a0}jo", "jo\u{85}", "\u{7f}"] {
            let person = |change: fn(&mut Person, String)| {
                let mut person = jo();
                change(&mut person, wrong.to_owned());
                Impersonation::of(person)
            };
            for refused in [
                person(|it, text| it.user = text),
                person(|it, text| it.uid = Some(text)),
                person(|it, text| it.groups.push(text)),
                person(|it, text| drop(it.extra.insert("key".to_owned(), vec![text]))),
            ] {
                assert!(refused.is_err(), "{wrong:?}");
            }
        }
    }

    #[test]
    fn the_executor_is_named_and_its_rules_are_known() {
        let by = Impersonation::of(jo()).expect("can be sent");
        let by = by.by("system:serviceaccount:ops:executor").expect("can be sent");
        let rules = by.rules();
        let rule = |index: usize| (&rules[index]["resources"][0], &rules[index]["resourceNames"]);
        assert_eq!(rule(0), (&json!("users"), &json!(["jo@example.com"])));
        assert_eq!(rule(1), (&json!("groups"), &json!(["sre", "on call"])));
        assert_eq!(rule(2), (&json!("uids"), &json!(["u-1"])));
        let executor = json!(["system:serviceaccount:ops:executor"]);
        assert_eq!(rule(3), (&json!("userextras/action-executor.dev/executor"), &executor));
        let account = "system:serviceaccount:agents:agent".to_owned();
        let agent = Impersonation::of(Person { user: account, ..Person::default() });
        let rules = agent.expect("can be sent").rules();
        assert_eq!(rules[0]["resources"][0], "serviceaccounts");
        assert_eq!(rules[0]["resourceNames"][0], "agent");
    }
}
