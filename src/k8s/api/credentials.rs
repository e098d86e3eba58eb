//! Who we are to the API server: a header or a client certificate, from the kubeconfig, a token file or a plugin.
//!
//! A credential is obtained when a call needs it, and so within the call's deadline; calls at the same time share one
//! start of a plugin, and its answer is kept until it expires or the API server rejects it. Must not send a request.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, TimeDelta, Utc};
use http::HeaderValue;
use kube::config::{AuthInfo, AuthProviderConfig};
use serde::Deserialize;
use tokio::{sync::watch, time::Instant};
use tokio_rustls::rustls::{SignatureScheme, client::ResolvesClientCert, sign::CertifiedKey};

use crate::k8s::api::{
    error::CredentialsError,
    exec_plugin::{ExecPlugin, PluginCredential, bearer},
};

/// How long a token that was read from a file is used.
const TOKEN_FILE_TTL: TimeDelta = TimeDelta::seconds(60);

/// How long before its expiry a credential is replaced, and how long one is used at least: a plugin whose tokens
/// expire at once, by its clock or ours, must not be started for each call.
const EXPIRY_MARGIN: TimeDelta = TimeDelta::seconds(10);
const MIN_TTL: TimeDelta = TimeDelta::seconds(1);

/// What authenticates a call.
#[derive(Debug, Default)]
pub(crate) struct Credential {
    /// The value of `Authorization`.
    pub header: Option<HeaderValue>,
    /// Counts the certificates of a plugin, from 1; 0 without one. A connection is made with one certificate.
    pub certificate: u64,
    obtained: Option<Instant>,
    renew_at: Option<DateTime<Utc>>,
}

impl Credential {
    /// Whether it was obtained before this moment, so that another one may be accepted.
    pub(crate) fn is_older_than(&self, moment: Instant) -> bool {
        self.obtained.is_some_and(|obtained| obtained < moment)
    }
}

/// Where credentials come from. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Credentials(Option<Arc<Shared>>);

struct Shared {
    source: Source,
    state: Mutex<CredentialState>,
    certificate: Arc<PluginCertificate>,
}

enum Source {
    Header(HeaderValue),
    TokenFile(PathBuf),
    Plugin(Box<ExecPlugin>),
}

enum CredentialState {
    /// None is valid; the last one, if there was one.
    None(Option<Arc<Credential>>),
    Running(watch::Receiver<Option<Obtained>>),
    Known(Arc<Credential>),
}

/// Fields of a kubeconfig's user. kube keeps two of them in a type of a crate that this one does not depend on, and
/// shows them when it serialises the user.
#[derive(Default, Deserialize)]
struct Secrets {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

type Obtained = Result<Arc<Credential>, CredentialsError>;

impl Credentials {
    /// Those of a kubeconfig's user, in kubectl's order. They are taken out of it, so that kube neither starts a
    /// plugin nor writes a header. A client certificate in the kubeconfig stays: it belongs to the connection.
    ///
    /// # Errors
    /// If the kubeconfig's values cannot be used.
    pub(crate) fn take_from(user: &mut AuthInfo) -> Result<Self, CredentialsError> {
        let fields = serde_json::to_value(&*user).and_then(serde_json::from_value::<Secrets>);
        let Secrets { token, token_file, username, password } = fields.unwrap_or_default();
        (user.token, user.token_file, user.username, user.password) = (None, None, None, None);
        let (exec, provider) = (user.exec.take(), user.auth_provider.take());
        let is_set = |it: &String| !it.is_empty();
        let source = if let Some(path) = token_file.filter(is_set) {
            Source::TokenFile(path.into())
        } else if let Some(token) = token.filter(is_set) {
            Source::Header(bearer(&token).map_err(|_| not_a_header("token"))?)
        } else if let Some(name) = username.filter(is_set) {
            Source::Header(basic(&name, &password.unwrap_or_default())?)
        } else if let Some(exec) = exec {
            Source::Plugin(Box::new(ExecPlugin::new(exec)?))
        } else if let Some(provider) = provider {
            Source::Header(bearer(token_of(&provider)?).map_err(|_| not_a_header("id-token"))?)
        } else {
            return Ok(Credentials(None));
        };
        Ok(Credentials::of(source))
    }

    fn of(source: Source) -> Self {
        let state = match &source {
            Source::Header(header) => {
                let header = Some(header.clone());
                CredentialState::Known(Arc::new(Credential { header, ..Credential::default() }))
            }
            Source::TokenFile(_) | Source::Plugin(_) => CredentialState::None(None),
        };
        let shared = Shared { source, state: Mutex::new(state), certificate: Arc::default() };
        Credentials(Some(Arc::new(shared)))
    }

    /// What presents a plugin's certificate; none if there is no plugin.
    pub(crate) fn client_certificate(&self) -> Option<Arc<dyn ResolvesClientCert>> {
        let shared = self.0.as_ref()?;
        match shared.source {
            Source::Plugin(_) => Some(shared.certificate.clone()),
            _ => None,
        }
    }

    /// The name of the plugin that is being waited for.
    pub(crate) fn running_plugin(&self) -> Option<String> {
        let shared = self.0.as_ref()?;
        match (&shared.source, &*shared.lock()) {
            (Source::Plugin(plugin), CredentialState::Running(_)) => Some(plugin.name()),
            _ => None,
        }
    }

    /// The credential for a call that is sent now.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn get(&self) -> Obtained {
        let Some(shared) = &self.0 else { return Ok(Arc::default()) };
        let mut running = match shared.known_or_running() {
            Ok(credential) => return Ok(credential),
            Err(running) => running,
        };
        match running.wait_for(Option::is_some).await.map(|it| it.clone()) {
            Ok(Some(obtained)) => obtained,
            // The task that obtains it has panicked.
            _ => Err(CredentialsError::configuration(
                "they were not obtained".to_owned(),
                "see the log",
            )),
        }
    }

    /// Notes that the API server has rejected this credential: the next call obtains another one.
    pub(crate) fn reject(&self, rejected: &Credential) {
        let Some(shared) = &self.0 else { return };
        let mut state = shared.lock();
        if let CredentialState::Known(known) = &*state
            && known.obtained.is_some()
            && known.obtained == rejected.obtained
        {
            *state = CredentialState::None(None);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, CredentialState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The credential, or where it will be once it is obtained.
    fn known_or_running(
        self: &Arc<Self>,
    ) -> Result<Arc<Credential>, watch::Receiver<Option<Obtained>>> {
        let mut state = self.lock();
        let last = match &*state {
            CredentialState::Known(credential) if !credential.is_expired() => {
                return Ok(credential.clone());
            }
            // A sender that is gone has panicked.
            CredentialState::Running(running) if running.has_changed().is_ok() => {
                return Err(running.clone());
            }
            CredentialState::Known(last) => Some(last.clone()),
            CredentialState::Running(_) => None,
            CredentialState::None(last) => last.clone(),
        };
        let (done, running) = watch::channel(None);
        *state = CredentialState::Running(running.clone());
        let shared = self.clone();
        // A task of its own: a caller that gives up must not end what others wait for.
        tokio::spawn(async move {
            let obtained = shared.obtain(last.as_deref()).await;
            let state =
                obtained.clone().map_or(CredentialState::None(last), CredentialState::Known);
            *shared.lock() = state;
            done.send_replace(Some(obtained));
        });
        Err(running)
    }

    async fn obtain(&self, last: Option<&Credential>) -> Obtained {
        let last = last.and_then(|it| it.header.as_ref());
        let answer = match &self.source {
            Source::Header(header) => PluginCredential::of_header(header, None),
            Source::TokenFile(path) => read_token(path, last)?,
            Source::Plugin(plugin) => plugin.run().await?,
        };
        let renew_at = answer.expires.map(renewal);
        let certificate = self.certificate.replace(answer.certificate);
        let obtained = Some(Instant::now());
        Ok(Arc::new(Credential { header: answer.header, certificate, obtained, renew_at }))
    }
}

impl Credential {
    fn is_expired(&self) -> bool {
        self.renew_at.is_some_and(|renew_at| renew_at <= Utc::now())
    }
}

/// When a credential is replaced.
fn renewal(expires: DateTime<Utc>) -> DateTime<Utc> {
    let now = Utc::now();
    let margin = EXPIRY_MARGIN.min((expires - now) / 4);
    (expires - margin).max(now + MIN_TTL)
}

/// The certificate that a plugin has answered with last, and its number.
#[derive(Debug, Default)]
struct PluginCertificate(Mutex<(Option<Arc<CertifiedKey>>, u64)>);

impl PluginCertificate {
    fn lock(&self) -> MutexGuard<'_, (Option<Arc<CertifiedKey>>, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of the certificate, which stays if the certificate does.
    fn replace(&self, next: Option<Arc<CertifiedKey>>) -> u64 {
        let mut known = self.lock();
        let chain = |it: &Option<Arc<CertifiedKey>>| it.as_ref().map(|it| it.cert.clone());
        if chain(&known.0) != chain(&next) {
            known.1 += 1;
        }
        known.0 = next;
        known.1
    }
}

impl ResolvesClientCert for PluginCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.lock().0.clone()
    }

    fn has_certs(&self) -> bool {
        self.lock().0.is_some()
    }
}

/// The token of a file. If it cannot be read any more, the last one is used (kubernetes/kubernetes#68164).
fn read_token(
    path: &Path,
    last: Option<&HeaderValue>,
) -> Result<PluginCredential, CredentialsError> {
    let expires = Some(Utc::now() + TOKEN_FILE_TTL);
    let read = fs::read_to_string(path).and_then(|token| match token.trim() {
        // An empty token would make all calls anonymous.
        "" => Err(ErrorKind::InvalidData.into()),
        _ => Ok(token),
    });
    let token = match (read, last) {
        (Ok(token), _) => token,
        (Err(_), Some(last)) => return Ok(PluginCredential::of_header(last, expires)),
        (Err(error), None) => {
            let detail = format!("the token file {}: {}", path.display(), error.kind());
            return Err(CredentialsError::configuration(
                detail,
                "check the path and who may read it",
            ));
        }
    };
    let header = bearer(token.trim()).map_err(|_| {
        let detail = format!("the token file {} contains no token", path.display());
        CredentialsError::configuration(detail, "it must contain the token and nothing else")
    })?;
    Ok(PluginCredential::of_header(&header, expires))
}

/// The token of an `auth-provider`. As in kubectl since 1.26, only `oidc` is one; its token is not renewed.
fn token_of(provider: &AuthProviderConfig) -> Result<&str, CredentialsError> {
    let refuse = |what: &str| {
        let detail = format!("the kubeconfig's user has an `auth-provider` {what}");
        let hint = "use a credential plugin (`exec`), such as gke-gcloud-auth-plugin or kubelogin";
        CredentialsError::configuration(detail, hint)
    };
    match (provider.name.as_str(), provider.config.get("id-token")) {
        ("oidc", Some(token)) => Ok(token),
        ("oidc", None) => Err(refuse("`oidc` without an `id-token`")),
        _ => Err(refuse("other than `oidc`, which kubectl does not support either")),
    }
}

fn basic(name: &str, password: &str) -> Result<HeaderValue, CredentialsError> {
    let pair = BASE64_STANDARD.encode(format!("{name}:{password}"));
    let value = HeaderValue::try_from(format!("Basic {pair}"));
    let mut value = value.map_err(|_| not_a_header("password"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn not_a_header(what: &str) -> CredentialsError {
    let detail = format!("the {what} of the kubeconfig's user cannot be in an HTTP header");
    CredentialsError::configuration(detail, "check it for line ends and other control characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(yaml: &str) -> AuthInfo {
        serde_yaml_ng::from_str(yaml).expect("is a user")
    }

    async fn header(yaml: &str) -> Result<Option<String>, String> {
        let credentials = Credentials::take_from(&mut user(yaml)).map_err(|it| it.to_string())?;
        let credential = credentials.get().await.map_err(|it| it.to_string())?;
        let header = credential.header.as_ref();
        Ok(header.map(|it| it.to_str().expect("is text").to_owned()))
    }

    #[test]
    fn an_empty_token_file_is_one_that_cannot_be_read() {
        let path = std::env::temp_dir().join(format!("token-{}", uuid::Uuid::now_v7()));
        fs::write(&path, "\n").expect("is written");
        let last = HeaderValue::from_static("Bearer last");
        let kept = read_token(&path, Some(&last)).expect("is the last one");
        assert_eq!(kept.header.as_ref(), Some(&last));
        assert!(read_token(&path, None).is_err());
        fs::remove_file(path).expect("is removed");
    }

    #[tokio::test]
    async fn a_users_credentials_are_those_that_kubectl_uses() {
        let path = std::env::temp_dir().join(format!("token-{}", uuid::Uuid::now_v7()));
        fs::write(&path, "from-file\n").expect("is written");
        let file = path.display();
        for (yaml, expected) in [
            ("{}".to_owned(), None),
            ("{token: a, exec: {command: /nonexistent}}".to_owned(), Some("Bearer a")),
            (format!("{{token: a, tokenFile: {file}}}"), Some("Bearer from-file")),
            ("{username: jo, password: pw}".to_owned(), Some("Basic am86cHc=")),
            ("{token: '', username: jo, password: pw}".to_owned(), Some("Basic am86cHc=")),
            ("{auth-provider: {name: oidc, config: {id-token: b}}}".to_owned(), Some("Bearer b")),
        ] {
            assert_eq!(header(&yaml).await, Ok(expected.map(str::to_owned)), "{yaml}");
        }
        fs::remove_file(path).expect("is removed");
    }

    #[tokio::test]
    async fn no_error_repeats_a_value() {
        for yaml in [
            "{token: \"can\\nary\"}",
            "{auth-provider: {name: canary, config: {cmd-path: canary, cmd-args: canary}}}",
            "{auth-provider: {name: gcp, config: {access-token: canary, cmd-path: sh}}}",
            "{auth-provider: {name: oidc, config: {client-secret: canary}}}",
            "{exec: {args: [canary]}}",
            "{exec: {command: /nonexistent/plugin, args: [canary]}}",
        ] {
            let detail = header(yaml).await.expect_err(yaml);
            assert!(!detail.contains("canary"), "{detail}");
        }
    }

    #[tokio::test]
    async fn calls_at_the_same_time_share_one_start_and_its_failure() {
        let credentials = Credentials::take_from(&mut user("{tokenFile: /nonexistent/token}"));
        let credentials = credentials.expect("is one");
        let (one, two) = tokio::join!(credentials.get(), credentials.get());
        assert_eq!(one.expect_err("fails"), two.expect_err("fails"));
    }

    #[test]
    fn a_credential_is_kept_until_shortly_before_its_expiry() {
        let expires_in = |seconds| renewal(Utc::now() + TimeDelta::seconds(seconds)) - Utc::now();
        assert_eq!(expires_in(3600).num_seconds(), 3589);
        assert_eq!(expires_in(20).num_seconds(), 14);
        assert_eq!(expires_in(-60).num_milliseconds() / 100, 9, "not for each call");
    }
}
