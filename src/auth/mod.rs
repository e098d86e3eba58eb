//! Who may ask for what, where strangers can reach the server: a caller proves who they are with a
//! bearer token (RFC 6750), which is either one of the [`keys`] of a file or a Kubernetes token, or with a
//! certificate ([`certificates`]), and is then allowed what the entry in that file or the cluster's RBAC
//! says. How often they may ask, and be wrong, is in `limits`.
//!
//! A request that comes with both is its token's: the token was put into this very request, the
//! certificate belongs to the connection, which may be a proxy's that speaks for many. A wrong token is
//! never made good by a certificate.
//!
//! This comes before the policy and does not replace it: the policy limits what is done, whoever asks.
//! Who was recognised stands in the audit as the requester; a requester that the request names itself is
//! the one on whose behalf they ask.

use std::{net::IpAddr, time::Duration};

use tokio::time::Instant;

use crate::{
    actions::{ActionKind, request::ActionRequest},
    auth::{
        client_cert::CertificateSubject,
        keys::Keys,
        rate_limit::{Failures, Rates},
        token_cache::TokenCache,
        token_review::Identity,
    },
    config::{Settings, reload::Reloading},
    contract::{
        error::{ActionError, Code},
        names::AuditText,
    },
    k8s::api::client::Cluster,
};

pub mod client_cert;
pub mod keys;
pub mod rate_limit;
pub mod token_cache;
pub mod token_review;

/// The longest that finding out who calls and what they may may take.
const AUTH_TIMEOUT: Duration = Duration::from_secs(5);

/// How callers are told apart.
pub struct Authenticator {
    keys: Option<Reloading<Keys>>,
    audience: Option<String>,
    /// Whether clients are asked for certificates.
    certificates: bool,
    tokens: TokenCache,
    failures: Failures,
    rates: Rates,
}

/// Somebody who has proved who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The holder of a key, or of a certificate that has an entry among the keys.
    Key(keys::KeyEntry),
    /// A user of the cluster.
    User(Identity),
    /// Whom the platform in front recognised and let through.
    Recognised(String),
}

/// What came beside a request to prove who it is from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The value of the `Authorization` header.
    pub authorization: Option<String>,
    /// Whom the client's certificate names, which the edge has verified.
    pub certificate: Option<CertificateSubject>,
    /// Whom the platform in front has recognised and let through.
    pub recognised: Option<String>,
    /// The address that the client's connection comes from, where we see it.
    pub peer: Option<IpAddr>,
}

/// What a caller asks for, in the words of an access review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessRequest<'a> {
    /// What is to become of it.
    pub verb: Verb,
    /// The action; none: any of them, as in a list of what was done.
    pub kind: Option<ActionKind>,
    /// The target's namespace; empty: any.
    pub namespace: &'a str,
}

/// What can be wished of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// To have it done.
    Execute,
    /// To be told what it would do.
    Simulate,
    /// To be told how one is getting on, or what came of it.
    Get,
    /// To be told of all that were done.
    List,
}

impl Verb {
    /// The verb as RBAC has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verb::Execute => "execute",
            Verb::Simulate => "simulate",
            Verb::Get => "get",
            Verb::List => "list",
        }
    }
}

impl<'a> AccessRequest<'a> {
    /// What this request asks for.
    #[must_use]
    pub fn of(request: &'a ActionRequest) -> Self {
        AccessRequest {
            verb: if request.simulate { Verb::Simulate } else { Verb::Execute },
            kind: Some(request.action.kind()),
            namespace: request.action.namespace(),
        }
    }
}

impl Authenticator {
    /// Callers who are known by a key in this file, or by a Kubernetes token for this audience. With
    /// neither, nobody is asked.
    #[must_use]
    pub fn new(keys: Option<Reloading<Keys>>, audience: Option<String>) -> Self {
        Authenticator {
            keys,
            audience,
            certificates: false,
            tokens: TokenCache::default(),
            failures: Failures::default(),
            rates: Rates::new(0, 1),
        }
    }

    /// Callers as the settings say.
    ///
    /// # Errors
    /// [`Code::Configuration`] if the keys' file cannot be read.
    pub fn from_settings(settings: &Settings) -> Result<Self, ActionError> {
        let keys = settings.keys.clone().map(|place| Reloading::new(Some(place))).transpose()?;
        Ok(Authenticator {
            certificates: settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()),
            rates: Rates::new(settings.caller_rate, settings.caller_burst),
            ..Authenticator::new(keys, settings.token_audience.clone())
        })
    }

    /// Whether callers are asked who they are.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.keys.is_some() || self.audience.is_some() || self.certificates
    }

    /// Why the keys' file is not what holds, if it is not.
    #[must_use]
    pub fn load_error(&self) -> Option<ActionError> {
        self.keys.as_ref().and_then(Reloading::load_error)
    }

    /// Finds out who calls. Where nobody is asked, it is whom the platform in front recognised, if it did.
    ///
    /// This is one of the requests that the caller may make in the time; where nobody is asked, nobody can
    /// be told from another, and there is no such limit.
    ///
    /// # Errors
    /// [`Code::Unauthenticated`], [`Code::TooManyRequests`], or why the cluster could not be asked.
    pub async fn authenticate(
        &self,
        credentials: &Credentials,
        cluster: Option<&Cluster>,
    ) -> Result<Option<Caller>, ActionError> {
        if !self.is_required() {
            return Ok(credentials.recognised.clone().map(Caller::Recognised));
        }
        let caller = match (&credentials.authorization, &credentials.certificate) {
            (None, Some(subject)) => self.holder(subject),
            _ => self.bearer(credentials, cluster).await?,
        };
        self.rates.admit(caller.name())?;
        Ok(Some(caller))
    }

    /// Who holds a certificate that was verified.
    fn holder(&self, subject: &CertificateSubject) -> Caller {
        let keys = self.keys.as_ref().map(Reloading::current);
        let entry = keys.and_then(|keys| keys.of_certificate(&subject.name));
        entry.map_or_else(|| Caller::User(subject.identity()), Caller::Key)
    }

    /// Who bears a token. One that is known opens always; one that is not costs a question to the API
    /// server, and its peer's failures are counted.
    async fn bearer(
        &self,
        credentials: &Credentials,
        cluster: Option<&Cluster>,
    ) -> Result<Caller, ActionError> {
        let (peer, now) = (credentials.peer, Instant::now());
        let token = bearer(credentials.authorization.as_deref())?;
        if let Some(entry) = self.keys.as_ref().and_then(|keys| keys.current().find(token)) {
            return Ok(Caller::Key(entry));
        }
        if let Some(identity) = self.tokens.find(token, now.into_std()) {
            return Ok(Caller::User(identity));
        }
        self.failures.check(peer, now.into_std())?;
        let (Some(audience), Some(cluster)) = (&self.audience, cluster) else {
            self.failures.count(peer, now.into_std());
            return Err(unauthenticated("the key is not known"));
        };
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
                let what = "the token is neither a known key nor a valid Kubernetes token";
                Err(unauthenticated(what).with_hint(format!(
                    "`kubectl create token NAME --audience {audience}` makes a token that is"
                )))
            }
        }
    }
}

impl Caller {
    /// The request as this caller may make it, in their name.
    ///
    /// # Errors
    /// [`Code::CallerForbidden`] with what is missing, or why the cluster could not be asked.
    pub async fn authorize_request(
        &self,
        request: ActionRequest,
        cluster: Option<&Cluster>,
    ) -> Result<ActionRequest, ActionError> {
        self.authorize(&AccessRequest::of(&request), cluster).await?;
        let requester = audit_requester(self.name(), request.requester.as_deref());
        Ok(ActionRequest { requester, ..request })
    }

    /// Whether this caller may have what they wish.
    ///
    /// # Errors
    /// [`Code::CallerForbidden`] with what is missing, or why the cluster could not be asked.
    pub async fn authorize(
        &self,
        wish: &AccessRequest<'_>,
        cluster: Option<&Cluster>,
    ) -> Result<(), ActionError> {
        match (self, cluster) {
            (Caller::Key(entry), _) => entry.check(wish),
            (Caller::Recognised(_), _) => Ok(()),
            (Caller::User(identity), Some(cluster)) => {
                let deadline = Instant::now() + AUTH_TIMEOUT;
                token_review::check(cluster, identity, wish, deadline)
                    .await
                    .map_err(as_misconfiguration)
            }
            // Nobody is recognised by a cluster that is not there.
            (Caller::User(_), None) => Err(forbidden(self.name(), wish)),
        }
    }

    /// Who it is, as it stands in the audit.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Caller::Key(entry) => &entry.name,
            Caller::User(identity) => &identity.user,
            Caller::Recognised(name) => name,
        }
    }
}

/// The requester for the audit, in the audit's bounds: what the caller says of others gives way first.
fn audit_requester(caller: &str, on_behalf_of: Option<&str>) -> Option<AuditText> {
    let text = match on_behalf_of {
        Some(other) if other != caller => format!("{caller} on behalf of {other}"),
        _ => caller.to_owned(),
    };
    let short: String = text.chars().filter(|it| !it.is_control()).take(512).collect();
    AuditText::try_from(short).ok()
}

/// The token of an `Authorization` header (RFC 6750, section 2.1; the scheme in any case).
fn bearer(authorization: Option<&str>) -> Result<&str, ActionError> {
    let Some(value) = authorization else {
        return Err(unauthenticated("the request does not say who it is from"));
    };
    match value.trim().split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(unauthenticated("the Authorization header holds no bearer token")),
    }
}

/// That we may not ask about callers is no fault of theirs.
fn as_misconfiguration(error: ActionError) -> ActionError {
    match error.code {
        Code::Forbidden => ActionError { code: Code::Configuration, ..error },
        _ => error,
    }
}

fn unauthenticated(what: &str) -> ActionError {
    ActionError::new(Code::Unauthenticated, what)
        .with_hint("send the header Authorization: Bearer, with a key or a Kubernetes token, or where clients' certificates are asked for, present one")
}

fn forbidden(who: &str, wish: &AccessRequest) -> ActionError {
    let (verb, action) = (wish.verb.name(), wish.kind.map_or("actions", ActionKind::name));
    let place = match wish.namespace {
        "" => "in all namespaces".to_owned(),
        namespace => format!("in namespace '{namespace}'"),
    };
    ActionError::new(Code::CallerForbidden, format!("{who} may not {verb} {action} {place}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_taken_from_the_header() {
        assert_eq!(bearer(Some("Bearer abc")), Ok("abc"));
        assert_eq!(bearer(Some("bearer  abc ")), Ok("abc"));
        for wrong in [None, Some(""), Some("abc"), Some("Basic YTpi")] {
            let error = bearer(wrong).expect_err("is refused");
            assert_eq!(error.code, Code::Unauthenticated);
        }
    }

    #[test]
    fn the_recognised_name_comes_first_in_the_audit() {
        let name = |caller: &str, other| audit_requester(caller, other).map(|it| it.to_string());
        assert_eq!(name("pager", None).as_deref(), Some("pager"));
        assert_eq!(name("pager", Some("pager")).as_deref(), Some("pager"));
        assert_eq!(name("pager", Some("jo")).as_deref(), Some("pager on behalf of jo"));
        let long = "x".repeat(600);
        let cut = name("pager", Some(&long)).expect("fits");
        assert!(cut.starts_with("pager on behalf of x") && cut.chars().count() == 512);
    }

    #[tokio::test]
    async fn nobody_is_asked_where_nothing_says_how() {
        let open = Authenticator::new(None, None);
        assert_eq!(open.authenticate(&Credentials::default(), None).await, Ok(None));
        let credentials = Credentials {
            authorization: Some("Bearer x".to_owned()),
            recognised: Some("arn:aws:iam::1:user/jo".to_owned()),
            ..Credentials::default()
        };
        let caller = open.authenticate(&credentials, None).await.expect("is let in");
        assert_eq!(caller, Some(Caller::Recognised("arn:aws:iam::1:user/jo".to_owned())));
        let asked = Authenticator::new(None, Some("action-executor".to_owned()));
        let error = asked.authenticate(&credentials, None).await.expect_err("is refused");
        assert_eq!(error.code, Code::Unauthenticated);
    }

    fn holder_of_a_certificate() -> Credentials {
        let subject = CertificateSubject { name: "jo".to_owned(), groups: vec!["sre".to_owned()] };
        Credentials { certificate: Some(subject), ..Credentials::default() }
    }

    #[tokio::test]
    async fn a_certificate_is_whom_it_names() {
        let callers = Authenticator { certificates: true, ..Authenticator::new(None, None) };
        let caller =
            callers.authenticate(&holder_of_a_certificate(), None).await.expect("is known");
        assert!(matches!(caller, Some(Caller::User(it)) if it.user == "jo"));
        let nobody =
            callers.authenticate(&Credentials::default(), None).await.expect_err("is nobody");
        assert_eq!(nobody.code, Code::Unauthenticated);
    }

    #[tokio::test]
    async fn a_wrong_token_is_not_made_good_by_a_certificate() {
        let callers = Authenticator { certificates: true, ..Authenticator::new(None, None) };
        for wrong in ["Bearer wrong", "Basic YTpi", ""] {
            let authorization = Some(wrong.to_owned());
            let both = Credentials { authorization, ..holder_of_a_certificate() };
            let error = callers.authenticate(&both, None).await.expect_err("is refused");
            assert_eq!(error.code, Code::Unauthenticated);
        }
    }
}
