//! Runs a credential plugin (`exec` of a kubeconfig's user) and reads its answer. Must not keep a credential.
//!
//! A kubeconfig and the output of a plugin are secrets. So an error has the plugin's name, its exit status and the
//! end of its standard error without the values of its arguments and variables, and nothing else of them.
//! What kubectl does: `k8s.io/client-go/plugin/pkg/client/auth/exec/exec.go`.

use std::{
    io::{ErrorKind, IsTerminal, stdin},
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use http::{HeaderValue, header::InvalidHeaderValue};
use kube::config::{ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    time::timeout,
};
use tokio_rustls::rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::k8s::api::error::CredentialsError;

/// How long a plugin may run. The callers' deadlines are usually shorter; what it answers after them is used by the
/// next call.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// How much of each stream of a plugin is read, in bytes.
const MAX_OUTPUT: u64 = 1 << 20;

/// How much of a plugin's standard error, or of its hint, is reported.
const MAX_TEXT_CHARACTERS: usize = 300;

/// Shorter values of arguments and variables are no secrets, and words of ordinary messages.
const MIN_SECRET_CHARACTERS: usize = 4;

const DEFAULT_API_VERSION: &str = "client.authentication.k8s.io/v1";

/// A credential plugin, as the kubeconfig describes it.
pub(crate) struct ExecPlugin {
    config: ExecConfig,
    command: String,
}

/// What a plugin has answered.
#[derive(Debug)]
pub(crate) struct PluginCredential {
    pub header: Option<HeaderValue>,
    pub certificate: Option<Arc<CertifiedKey>>,
    /// None: until the API server rejects it.
    pub expires: Option<DateTime<Utc>>,
}

impl PluginCredential {
    /// A header alone.
    pub(crate) fn of_header(header: &HeaderValue, expires: Option<DateTime<Utc>>) -> Self {
        PluginCredential { header: Some(header.clone()), certificate: None, expires }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    api_version: Option<String>,
    kind: Option<String>,
    status: Option<ExecCredentialStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredentialStatus {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

impl ExecPlugin {
    /// # Errors
    /// If the kubeconfig names no command.
    pub(crate) fn new(config: ExecConfig) -> Result<Self, CredentialsError> {
        let command = config.command.clone().filter(|it| !it.is_empty());
        let command = command.ok_or_else(|| {
            let detail = "the kubeconfig's user has `exec` without a `command`";
            CredentialsError::configuration(detail.to_owned(), "name the credential plugin there")
        })?;
        Ok(ExecPlugin { config, command })
    }

    /// The command without its directory.
    pub(crate) fn name(&self) -> String {
        let name = Path::new(&self.command).file_name().unwrap_or_default();
        bounded(&name.to_string_lossy())
    }

    /// Starts the plugin and waits for its answer. A plugin whose answer is no longer waited for is killed.
    ///
    /// # Errors
    /// Why there is no credential.
    pub(crate) async fn run(&self) -> Result<PluginCredential, CredentialsError> {
        let is_interactive = self.is_interactive()?;
        let mut command = self.command(is_interactive);
        let mut child = command.spawn().map_err(|error| self.not_started(error.kind()))?;
        let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
        let ended = timeout(PLUGIN_TIMEOUT, async { tokio::join!(child.wait(), stdout, stderr) });
        let Ok((status, stdout, stderr)) = ended.await else {
            let seconds = PLUGIN_TIMEOUT.as_secs();
            return Err(self.refused(&format!("did not end within {seconds} s and was killed")));
        };
        let status = status.map_err(|error| self.not_started(error.kind()))?;
        if !status.success() {
            return Err(self.failed(status, &stderr));
        }
        self.parse(&stdout)
    }

    /// Our standard input is the request, so a plugin reads it only if that is a terminal.
    fn is_interactive(&self) -> Result<bool, CredentialsError> {
        match self.config.interactive_mode {
            Some(ExecInteractiveMode::Never) => Ok(false),
            Some(ExecInteractiveMode::Always) if !stdin().is_terminal() => {
                let what = "needs a terminal (`interactiveMode: Always`), and there is none";
                Err(self.misconfigured(what))
            }
            _ => Ok(stdin().is_terminal()),
        }
    }

    fn command(&self, is_interactive: bool) -> Command {
        let config = &self.config;
        let mut command = Command::new(&self.command);
        command.args(config.args.iter().flatten()).kill_on_drop(true).stdout(Stdio::piped());
        for variable in config.env.iter().flatten() {
            if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
                command.env(name, value);
            }
        }
        let spec = json!({
            "apiVersion": self.api_version(), "kind": "ExecCredential",
            "spec": { "interactive": is_interactive, "cluster": config.cluster },
        });
        command.env("KUBERNETES_EXEC_INFO", spec.to_string());
        if is_interactive {
            // A person may have to be shown where to log in.
            command.stdin(Stdio::inherit()).stderr(Stdio::inherit());
        } else {
            command.stdin(Stdio::null()).stderr(Stdio::piped());
        }
        command
    }

    fn api_version(&self) -> &str {
        self.config.api_version.as_deref().unwrap_or(DEFAULT_API_VERSION)
    }

    fn parse(&self, stdout: &[u8]) -> Result<PluginCredential, CredentialsError> {
        let credential: ExecCredential = serde_saphyr::from_slice(stdout).map_err(|error| {
            let at =
                error.location().map(|it| format!(" (line {}, column {})", it.line(), it.column()));
            self.misconfigured(&format!("printed no ExecCredential{}", at.unwrap_or_default()))
        })?;
        let is_expected = credential.kind.as_deref() == Some("ExecCredential")
            && credential.api_version.as_deref() == Some(self.api_version());
        if !is_expected {
            let what = format!("printed no ExecCredential of {}", self.api_version());
            return Err(self.misconfigured(&what));
        }
        let status = credential.status.ok_or_else(|| self.misconfigured("printed no status"))?;
        let expires = status.expiration_timestamp.as_deref().filter(|it| !it.is_empty());
        let expires = expires.map(DateTime::parse_from_rfc3339).transpose();
        let expires = expires.map_err(|_| {
            self.misconfigured("printed an expirationTimestamp that is not an RFC 3339 time")
        })?;
        let token = status.token.filter(|token| !token.is_empty());
        let header = token.map(|token| bearer(&token)).transpose();
        let header = header.map_err(|_| {
            self.misconfigured("printed a token that an HTTP header cannot contain")
        })?;
        let certificate = match (status.client_certificate_data, status.client_key_data) {
            (Some(certificate), Some(key)) => {
                let pair = certified_key(certificate.as_bytes(), key.as_bytes());
                let what = "printed a client certificate and key that cannot be used";
                Some(pair.ok_or_else(|| self.misconfigured(what))?)
            }
            (None, None) => None,
            _ => return Err(self.misconfigured("printed a client certificate or a key, not both")),
        };
        if header.is_none() && certificate.is_none() {
            return Err(self.misconfigured("printed neither a token nor a client certificate"));
        }
        let expires = expires.map(|it| it.to_utc());
        Ok(PluginCredential { header, certificate: certificate.map(Arc::new), expires })
    }

    fn not_started(&self, kind: ErrorKind) -> CredentialsError {
        if kind != ErrorKind::NotFound {
            return self.misconfigured(&format!("cannot be started: {kind}"));
        }
        let hint = self.config.install_hint.as_deref().map(bounded).filter(|it| !it.is_empty());
        let hint = hint.unwrap_or_else(|| {
            "install it where this program runs, or put its directory into PATH".to_owned()
        });
        CredentialsError::configuration(
            format!("the credential plugin '{}' is not installed", self.name()),
            hint,
        )
    }

    fn failed(&self, status: ExitStatus, stderr: &[u8]) -> CredentialsError {
        let text = self.without_secrets(&String::from_utf8_lossy(stderr));
        let text = match ending(&text) {
            text if text.is_empty() => "and printed nothing to standard error".to_owned(),
            text => format!("with: {text}"),
        };
        self.refused(&format!("failed ({status}) {text}"))
    }

    /// The text without the values that the kubeconfig gives to the plugin.
    fn without_secrets(&self, text: &str) -> String {
        let variables = self.config.env.iter().flatten().filter_map(|it| it.get("value"));
        let arguments = self.config.args.as_deref().unwrap_or_default();
        // `--name=VALUE`, and VALUE alone or after `--name`, but not the command's first word.
        let attached = arguments.iter().filter_map(|it| Some(it.split_once('=')?.1));
        let alone = arguments.iter().skip(1).filter(|it| !it.starts_with('-')).map(String::as_str);
        let secrets = variables.map(String::as_str).chain(attached).chain(alone);
        let mut secrets: Vec<_> =
            secrets.filter(|it| it.chars().count() >= MIN_SECRET_CHARACTERS).collect();
        // The longest first, since one may be a part of another.
        secrets.sort_by_key(|it| std::cmp::Reverse(it.len()));
        secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }

    fn misconfigured(&self, what: &str) -> CredentialsError {
        let detail = format!("the credential plugin '{}' {what}", self.name());
        CredentialsError::configuration(detail, "check `exec` of the kubeconfig's user")
    }

    fn refused(&self, what: &str) -> CredentialsError {
        let detail = format!("the credential plugin '{}' {what}", self.name());
        let hint = "run `kubectl get --raw /version` with the same kubeconfig, which runs the plugin too; a login may \
                    have expired";
        CredentialsError::refused(detail, hint)
    }
}

/// The header of a token.
pub(crate) fn bearer(token: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What was read before an error is reported.
        let _ = stream.take(MAX_OUTPUT).read_to_end(&mut bytes).await;
    }
    bytes
}

fn certified_key(certificate: &[u8], key: &[u8]) -> Option<CertifiedKey> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let key = PrivateKeyDer::from_pem_slice(key).ok()?;
    CertifiedKey::from_der(chain.ok()?, key, &ring::default_provider()).ok()
}

/// One line, without control characters.
fn on_one_line(text: &str) -> String {
    let text: String = text.chars().map(|it| if it.is_control() { ' ' } else { it }).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn bounded(text: &str) -> String {
    on_one_line(text).chars().take(MAX_TEXT_CHARACTERS).collect()
}

/// The end, where programs say what failed.
fn ending(text: &str) -> String {
    let line = on_one_line(text);
    let skipped = line.chars().count().saturating_sub(MAX_TEXT_CHARACTERS);
    line.chars().skip(skipped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::error::Code;

    fn plugin(yaml: &str) -> ExecPlugin {
        ExecPlugin::new(serde_yaml_ng::from_str(yaml).expect("is one")).expect("has a command")
    }

    fn parse(stdout: &str) -> Result<PluginCredential, String> {
        plugin("{command: /opt/get}").parse(stdout.as_bytes()).map_err(|it| it.to_string())
    }

    const HEAD: &str = "apiVersion: client.authentication.k8s.io/v1, kind: ExecCredential";

    #[test]
    fn a_token_may_be_printed_as_json_and_as_yaml() {
        let json = r#"{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
                       "status": {"token": "abc", "expirationTimestamp": "2026-01-02T03:04:05Z"}}"#;
        let answer = parse(json).expect("is one");
        assert_eq!(answer.header.expect("has one").as_bytes(), b"Bearer abc");
        let expires = answer.expires.expect("has one").to_rfc3339();
        assert_eq!(expires, "2026-01-02T03:04:05+00:00");
        assert!(
            parse(&format!("{{{HEAD}, status: {{token: abc}}}}"))
                .expect("is one")
                .expires
                .is_none()
        );
    }

    #[test]
    fn nothing_of_a_wrong_output_is_repeated() {
        for (wrong, what) in [
            ("canary", "printed no ExecCredential"),
            ("{status: {token: canary", "printed no ExecCredential"),
            ("{kind: Canary, status: {token: canary}}", "printed no ExecCredential of"),
            (&format!("{{{HEAD}}}"), "printed no status"),
            (&format!("{{{HEAD}, status: {{}}}}"), "printed neither a token nor"),
            (&format!("{{{HEAD}, status: {{token: \"can\\nary\"}}}}"), "HTTP header"),
            (&format!("{{{HEAD}, status: {{token: t, expirationTimestamp: canary}}}}"), "RFC 3339"),
            (&format!("{{{HEAD}, status: {{clientKeyData: canary}}}}"), "not both"),
            (
                &format!(
                    "{{{HEAD}, status: {{clientCertificateData: canary, clientKeyData: canary}}}}"
                ),
                "cannot be used",
            ),
        ] {
            let detail = parse(wrong).expect_err(wrong);
            assert!(detail.starts_with("the credential plugin 'get' "), "{detail}");
            assert!(detail.contains(what), "{wrong}: {detail}");
            assert!(!detail.to_lowercase().contains("canary"), "{detail}");
        }
    }

    #[test]
    fn standard_error_is_shortened_and_without_the_values_of_arguments_and_variables() {
        let plugin = plugin(
            "{command: get, args: [login, --secret=canary1, --password, canary2, -v], \
             env: [{name: A, value: canary3}]}",
        );
        let text = "login: wrong --secret=canary1 --password canary2 for A=canary3";
        let shown = plugin.without_secrets(text);
        assert_eq!(shown, "login: wrong --secret=*** --password *** for A=***");
        assert_eq!(ending("a\n\tb\u{7}c"), "a b c");
        assert_eq!(ending(&format!("{}end", "x".repeat(500))).chars().count(), MAX_TEXT_CHARACTERS);
        assert!(ending(&format!("{}end", "x".repeat(500))).ends_with("xend"));
    }

    #[test]
    fn a_missing_plugin_is_named_with_its_install_hint() {
        let error = plugin("{command: aws, installHint: 'brew install awscli'}");
        let error = error.not_started(ErrorKind::NotFound).to_action_error("https://c");
        assert_eq!(error.code, Code::Configuration);
        assert!(error.detail.ends_with("the credential plugin 'aws' is not installed"));
        assert_eq!(error.hint.as_deref(), Some("brew install awscli"));
    }
}
