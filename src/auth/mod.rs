//! Authentication and authorization of callers.
//!
//! A caller authenticates with a bearer token (RFC 6750), which is a key of the [`keys`] file or a Kubernetes
//! token ([`token_review`]), or with a certificate ([`client_cert`]). The entry in the keys file or the cluster's
//! RBAC authorizes them. [`rate_limit`] limits requests and failures.
//!
//! With both credentials the token applies: it belongs to the request, while the certificate belongs to the
//! connection, which may be that of a proxy. A certificate never makes up for a wrong token.
//!
//! Authorization precedes the policy and does not replace it. The caller is the requester in the audit; a
//! requester that the request names is recorded as the one on whose behalf the caller acts. This module does not
//! know the transport.

use std::{net::IpAddr, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::{
    actions::{ActionKind, request::ActionRequest},
    auth::{
        client_cert::CertificateSubject,
        keys::Keys,
        rate_limit::{Failures, Rates},
        token_cache::TokenCache,
        token_review::{Identity, ObjectAccess},
    },
    config::{Settings, reload::Reloading},
    contract::{
        error::{ActionError, Code},
        names::AuditText,
    },
    k8s::api::client::Cluster,
};

pub mod client_cert;
pub(crate) mod impersonation;
pub mod keys;
pub(crate) mod permissions;
pub mod rate_limit;
pub mod token_cache;
pub mod token_review;

/// Limit on the authentication or authorization of one request.
const AUTH_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of tokens that are reviewed at once: their senders are not known yet.
const MAX_REVIEWS: usize = 64;

/// Authenticates callers.
pub(crate) struct Authenticator {
    keys: Option<Reloading<Keys>>,
    audience: Option<String>,
    /// Whether client certificates are accepted.
    certificates: bool,
    tokens: TokenCache,
    reviews: Semaphore,
    failures: Failures,
    rates: Rates,
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The holder of a key, or of a certificate with an entry in the keys file.
    Key(keys::KeyEntry),
    /// A user of the cluster.
    User(Identity),
    /// A caller whom the platform in front of the program authenticated and authorized.
    Platform(String),
}

/// The credentials of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Credentials {
    /// The value of the `Authorization` header, or why it cannot be read.
    pub authorization: Result<Option<String>, ActionError>,
    /// The subject of the verified client certificate.
    pub certificate: Option<CertificateSubject>,
    /// The caller whom the platform in front authenticated and authorized.
    pub recognised: Option<String>,
    /// The peer's address, if it is known.
    pub peer: Option<IpAddr>,
}

/// The access that a caller requests, as in a SubjectAccessReview.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AccessRequest<'a> {
    /// The verb.
    pub verb: Verb,
    /// The action; none: all of them, as for the history.
    pub kind: Option<ActionKind>,
    /// The target's namespace; empty: all.
    pub namespace: &'a str,
    /// The cluster, by its name in the list of clusters, if there is a list.
    pub cluster: Option<&'a str>,
}

/// A verb of RBAC on actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Execute the action.
    Execute,
    /// Simulate the action.
    Simulate,
    /// Read the state of a request.
    Get,
    /// List the history.
    List,
}

impl Verb {
    /// Its name in RBAC.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Verb::Execute => "execute",
            Verb::Simulate => "simulate",
            Verb::Get => "get",
            Verb::List => "list",
        }
    }
}

impl Default for Credentials {
    fn default() -> Self {
        Credentials { authorization: Ok(None), certificate: None, recognised: None, peer: None }
    }
}

impl<'a> AccessRequest<'a> {
    /// The access that a request needs on this cluster of the list.
    pub(crate) fn of(request: &'a ActionRequest, cluster: Option<&'a str>) -> Self {
        AccessRequest {
            cluster,
            verb: if request.simulate { Verb::Simulate } else { Verb::Execute },
            kind: Some(request.action.kind()),
            namespace: request.action.namespace(),
        }
    }
}

impl Authenticator {
    /// Authenticates by the keys file and by Kubernetes tokens for this audience. With neither,
    /// authentication is off.
    pub(crate) fn new(keys: Option<Reloading<Keys>>, audience: Option<String>) -> Self {
        Authenticator {
            keys,
            audience,
            certificates: false,
            tokens: TokenCache::default(),
            reviews: Semaphore::new(MAX_REVIEWS),
            failures: Failures::default(),
            rates: Rates::new(0, 1),
        }
    }

    /// The authenticator of the settings.
    ///
    /// # Errors
    /// [`Code::Configuration`] if the keys file cannot be used.
    pub(crate) fn from_settings(settings: &Settings) -> Result<Self, ActionError> {
        let keys = settings.keys.clone().map(|source| Reloading::new(Some(source))).transpose()?;
        Ok(Authenticator {
            certificates: settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()),
            rates: Rates::new(settings.caller_rate, settings.caller_burst),
            ..Authenticator::new(keys, settings.token_audience.clone())
        })
    }

    /// Whether authentication is on.
    pub(crate) fn is_required(&self) -> bool {
        self.keys.is_some() || self.audience.is_some() || self.certificates
    }

    /// Whether every caller needs an answer of the cluster that reviews callers: about tokens, or about the permissions
    /// of those with certificates. Where keys are accepted, their holders need none.
    pub(crate) fn needs_reviewer(&self) -> bool {
        self.keys.is_none() && (self.audience.is_some() || self.certificates)
    }

    /// Requests a minute that each caller may make; none: there is no limit.
    pub(crate) fn requests_per_minute(&self) -> Option<u32> {
        self.is_required().then(|| self.rates.per_minute())?
    }

    /// Why the present keys file is not in use, if it is not.
    pub(crate) fn load_error(&self) -> Option<ActionError> {
        self.keys.as_ref().and_then(Reloading::load_error)
    }

    /// Authenticates the caller, and counts the request against its rate limit. If authentication is off, the
    /// caller is the one whom the platform in front authenticated, if any, and there is no rate limit.
    ///
    /// # Errors
    /// [`Code::Unauthenticated`], [`Code::TooManyRequests`], or why the cluster could not answer.
    pub(crate) async fn authenticate(
        &self,
        credentials: &Credentials,
        cluster: Option<&Cluster>,
    ) -> Result<Option<Caller>, ActionError> {
        if !self.is_required() {
            return Ok(credentials.recognised.clone().map(Caller::Platform));
        }
        let caller = match (&credentials.authorization, &credentials.certificate) {
            (Ok(None), Some(subject)) => self.certificate_holder(subject),
            // Its future is large, and no part of that of each request.
            _ => Box::pin(self.token_holder(credentials, cluster)).await?,
        };
        self.rates.admit(caller.name())?;
        Ok(Some(caller))
    }

    fn certificate_holder(&self, subject: &CertificateSubject) -> Caller {
        let keys = self.keys.as_ref().map(Reloading::current);
        let entry = keys.and_then(|keys| keys.of_certificate(&subject.name));
        entry.map_or_else(|| Caller::User(subject.identity()), Caller::Key)
    }

    /// A known token is always accepted. An unknown one costs a call to the API server, and a wrong one counts
    /// as a failure of its peer.
    async fn token_holder(
        &self,
        credentials: &Credentials,
        cluster: Option<&Cluster>,
    ) -> Result<Caller, ActionError> {
        let (peer, now) = (credentials.peer, Instant::now());
        let authorization = credentials.authorization.as_ref().map_err(with_credentials_hint)?;
        let token = bearer(authorization.as_deref())?;
        if let Some(entry) = self.keys.as_ref().and_then(|keys| keys.current().find(token)) {
            return Ok(Caller::Key(entry));
        }
        if let Some(identity) = self.tokens.find(token, now.into_std()) {
            return Ok(Caller::User(identity));
        }
        self.failures.check(peer, now.into_std())?;
        let (Some(audience), Some(cluster)) = (&self.audience, cluster) else {
            self.failures.count(peer, now.into_std());
            return Err(unauthenticated("unknown key"));
        };
        let permit = timeout_at(now + AUTH_TIMEOUT, self.reviews.acquire()).await;
        let _permit = permit.map_err(|_| {
            ActionError::new(Code::Overloaded, "too many tokens wait for a review by the cluster")
        })?;
        // Others from there may have failed meanwhile.
        self.failures.check(peer, Instant::now().into_std())?;
        match token_review::review(cluster, token, audience, now + AUTH_TIMEOUT)
            .await
            .map_err(as_misconfiguration)?
        {
            Some(identity) => {
                self.tokens.insert(token, &identity, now.into_std());
                Ok(Caller::User(identity))
            }
            None => {
                self.failures.count(peer, now.into_std());
                let what = "the bearer token is neither a known key nor a valid Kubernetes token";
                Err(unauthenticated(what).with_hint(format!(
                    "`kubectl create token NAME --audience {audience}` creates a valid token"
                )))
            }
        }
    }
}

impl Caller {
    /// Authorizes a request on this cluster of the list, if there is a list, and makes the caller its requester.
    ///
    /// # Errors
    /// [`Code::CallerForbidden`] with the missing permission, or why the cluster could not answer.
    pub(crate) async fn authorize_request(
        &self,
        request: ActionRequest,
        reviewer: Option<&Cluster>,
        cluster: Option<&str>,
    ) -> Result<ActionRequest, ActionError> {
        self.authorize(&AccessRequest::of(&request, cluster), reviewer).await?;
        let requester = audit_requester(self.name(), request.requester.as_deref());
        Ok(ActionRequest { requester, ..request })
    }

    /// Authorizes an access.
    ///
    /// # Errors
    /// [`Code::CallerForbidden`] with the missing permission, or why the cluster could not answer.
    pub(crate) async fn authorize(
        &self,
        access: &AccessRequest<'_>,
        reviewer: Option<&Cluster>,
    ) -> Result<(), ActionError> {
        match (self, reviewer) {
            (Caller::Key(entry), _) => entry.check(access),
            (Caller::Platform(_), _) => Ok(()),
            (Caller::User(identity), Some(reviewer)) => {
                let deadline = Instant::now() + AUTH_TIMEOUT;
                token_review::check(reviewer, identity, access, deadline)
                    .await
                    .map_err(as_misconfiguration)
            }
            // Without a cluster RBAC cannot authorize.
            (Caller::User(_), None) => Err(forbidden(self.name(), access)),
        }
    }

    /// Authorizes a read of the cluster's own objects. RBAC knows users of the cluster alone: for others what they may
    /// do with actions decides.
    ///
    /// # Errors
    /// [`Code::CallerForbidden`] with the missing rule, or why the cluster could not answer.
    pub(crate) async fn authorize_objects(
        &self,
        access: &ObjectAccess<'_>,
        cluster: &Cluster,
    ) -> Result<(), ActionError> {
        let Caller::User(identity) = self else { return Ok(()) };
        let deadline = Instant::now() + AUTH_TIMEOUT;
        token_review::check_objects(cluster, identity, access, deadline)
            .await
            .map_err(as_misconfiguration)
    }

    /// The caller's name in the audit.
    pub(crate) fn name(&self) -> &str {
        match self {
            Caller::Key(entry) => &entry.name,
            Caller::User(identity) => &identity.user,
            Caller::Platform(name) => name,
        }
    }
}

/// The requester for the audit trail. What exceeds its maximum length is cut at the end, where the name that the caller
/// states is.
fn audit_requester(caller: &str, on_behalf_of: Option<&str>) -> Option<AuditText> {
    let text = match on_behalf_of {
        Some(other) if other != caller => format!("{caller} on behalf of {other}"),
        _ => caller.to_owned(),
    };
    AuditText::visible_part(&text)
}

/// The token of an `Authorization` header (RFC 6750, section 2.1; the scheme in any case).
fn bearer(authorization: Option<&str>) -> Result<&str, ActionError> {
    let Some(value) = authorization else {
        return Err(unauthenticated("the request has no credentials"));
    };
    match value.trim().split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(unauthenticated("the header Authorization has no bearer token")),
    }
}

/// If the executor may not create reviews, that is no error of the caller.
fn as_misconfiguration(error: ActionError) -> ActionError {
    match error.code {
        Code::Forbidden => ActionError { code: Code::Configuration, ..error },
        _ => error,
    }
}

fn unauthenticated(what: &str) -> ActionError {
    with_credentials_hint(&ActionError::new(Code::Unauthenticated, what))
}

fn with_credentials_hint(error: &ActionError) -> ActionError {
    error
        .clone()
        .with_hint("send the header `Authorization: Bearer` with a key or a Kubernetes token, or present a client certificate, if the server accepts them")
}

fn forbidden(caller: &str, access: &AccessRequest) -> ActionError {
    let (verb, action) = (access.verb.name(), access.kind.map_or("actions", ActionKind::name));
    let scope = match access.namespace {
        "" => "in all namespaces".to_owned(),
        namespace => format!("in namespace '{namespace}'"),
    };
    let scope = match access.cluster {
        Some(cluster) => format!("{scope} of cluster '{cluster}'"),
        None => scope,
    };
    ActionError::new(Code::CallerForbidden, format!("{caller} may not {verb} {action} {scope}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reload::Source;

    #[test]
    fn a_bearer_token_is_read_from_the_header() {
        assert_eq!(bearer(Some("Bearer abc")), Ok("abc"));
        assert_eq!(bearer(Some("bearer  abc ")), Ok("abc"));
        for wrong in [None, Some(""), Some("abc"), Some("Basic YTpi")] {
            let error = bearer(wrong).expect_err("is refused");
            assert_eq!(error.code, Code::Unauthenticated);
        }
    }

    #[test]
    fn the_callers_name_comes_first_in_the_audit() {
        let name = |caller: &str, other| audit_requester(caller, other).map(|it| it.to_string());
        assert_eq!(name("pager", None).as_deref(), Some("pager"));
        assert_eq!(name("pager", Some("pager")).as_deref(), Some("pager"));
        assert_eq!(name("pager", Some("jo")).as_deref(), Some("pager on behalf of jo"));
        let long = "x".repeat(600);
        let cut = name("pager", Some(&long)).expect("fits");
        assert!(cut.starts_with("pager on behalf of x") && cut.chars().count() == 512);
    }

    #[test]
    fn the_reviewing_cluster_is_needed_only_where_no_caller_can_have_a_key() {
        let source = || Source::Variable("KEYS", "keys: []".to_owned());
        let keys = || Reloading::<Keys>::new(Some(source())).expect("are keys");
        let audience = || Some("action-executor".to_owned());
        let by_certificates =
            |keys| Authenticator { certificates: true, ..Authenticator::new(keys, None) };
        for (callers, is_needed) in [
            (Authenticator::new(None, None), false),
            (Authenticator::new(None, audience()), true),
            (by_certificates(None), true),
            (Authenticator::new(Some(keys()), None), false),
            (Authenticator::new(Some(keys()), audience()), false),
            (by_certificates(Some(keys())), false),
        ] {
            assert_eq!(callers.needs_reviewer(), is_needed, "{}", callers.is_required());
        }
    }

    #[tokio::test]
    async fn authentication_is_off_without_keys_and_audience() {
        let open = Authenticator::new(None, None);
        assert_eq!(open.authenticate(&Credentials::default(), None).await, Ok(None));
        let credentials = Credentials {
            authorization: Ok(Some("Bearer x".to_owned())),
            recognised: Some("arn:aws:iam::1:user/jo".to_owned()),
            ..Credentials::default()
        };
        let caller = open.authenticate(&credentials, None).await.expect("is let in");
        assert_eq!(caller, Some(Caller::Platform("arn:aws:iam::1:user/jo".to_owned())));
        let asked = Authenticator::new(None, Some("action-executor".to_owned()));
        let error = asked.authenticate(&credentials, None).await.expect_err("is refused");
        assert_eq!(error.code, Code::Unauthenticated);
    }

    fn holder_of_a_certificate() -> Credentials {
        let subject = CertificateSubject { name: "jo".to_owned(), groups: vec!["sre".to_owned()] };
        Credentials { certificate: Some(subject), ..Credentials::default() }
    }

    #[tokio::test]
    async fn a_certificate_authenticates_its_subject() {
        let callers = Authenticator { certificates: true, ..Authenticator::new(None, None) };
        let caller =
            callers.authenticate(&holder_of_a_certificate(), None).await.expect("is known");
        assert!(matches!(caller, Some(Caller::User(it)) if it.user == "jo"));
        let nobody =
            callers.authenticate(&Credentials::default(), None).await.expect_err("is nobody");
        assert_eq!(nobody.code, Code::Unauthenticated);
    }

    #[tokio::test]
    async fn a_certificate_does_not_make_up_for_a_wrong_token() {
        let callers = Authenticator { certificates: true, ..Authenticator::new(None, None) };
        for wrong in ["Bearer wrong", "Basic YTpi", ""] {
            let authorization = Ok(Some(wrong.to_owned()));
            let both = Credentials { authorization, ..holder_of_a_certificate() };
            let error = callers.authenticate(&both, None).await.expect_err("is refused");
            assert_eq!(error.code, Code::Unauthenticated);
        }
    }
}
