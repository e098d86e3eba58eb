//! Settings, read once from the environment.
//!
//! An empty variable is an absent one. What cannot be read is an error that names the variable and
//! never its value.

use std::{ffi::OsString, net::IpAddr, path::PathBuf, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;

use crate::{
    config::reload::Source,
    contract::error::{ActionError, Code},
};

pub mod reload;

/// Where a container's last words are read from, unless the pod says otherwise.
const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";

/// What the environment says about how to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Longest time for the calls of one action (`ACTION_EXECUTOR_DEADLINE_SECONDS`, default 30).
    pub deadline: Duration,
    /// How old a request may be, by its `issued_at` (`ACTION_EXECUTOR_REPLAY_WINDOW_SECONDS`, default
    /// 1800). It must be shorter than the cluster keeps Events (an hour, unless its API server was told
    /// otherwise), since what is not remembered cannot be recognised.
    pub replay_window: Duration,
    /// Where the policy is (`ACTION_EXECUTOR_POLICY`, or in `ACTION_EXECUTOR_POLICY_BASE64`).
    pub policy: Option<Source>,
    /// Where the callers' keys are (`ACTION_EXECUTOR_KEYS`, or in `ACTION_EXECUTOR_KEYS_BASE64`).
    pub keys: Option<Source>,
    /// The audience that callers' Kubernetes tokens are for (`ACTION_EXECUTOR_TOKEN_AUDIENCE`); none:
    /// they are not taken.
    pub token_audience: Option<String>,
    /// The files that TLS is served with (`ACTION_EXECUTOR_TLS_*`); none: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The host names that the server goes by (`ACTION_EXECUTOR_HOSTS`), in lower case.
    pub hosts: Vec<String>,
    /// How many requests a second one caller may make for long (`ACTION_EXECUTOR_CALLER_RATE`, default
    /// 20; 0: any number), and how many at once (`ACTION_EXECUTOR_CALLER_BURST`, default 40).
    pub caller_rate: u32,
    /// See `caller_rate`.
    pub caller_burst: u32,
    /// Most actions under way at once in a server (`ACTION_EXECUTOR_MAX_ACTIONS`, default 128).
    pub max_actions: usize,
    /// The log level (`ACTION_EXECUTOR_LOG`); none: the entry point's own.
    pub log_level: Option<tracing::Level>,
    /// The port to serve on (`PORT`, as Knative sets it; default 8000).
    pub port: u16,
    /// Where the termination message goes (`TERMINATION_LOG`; inside Kubernetes the usual file).
    pub termination_log: Option<PathBuf>,
}

/// Where a server's certificate and what belongs to it are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those between it and its authority (`ACTION_EXECUTOR_TLS_CERTIFICATE`).
    pub certificate: PathBuf,
    /// Its private key (`ACTION_EXECUTOR_TLS_KEY`).
    pub key: PathBuf,
    /// The authorities of clients' certificates (`ACTION_EXECUTOR_TLS_CLIENT_CA`); none: clients need
    /// none.
    pub client_ca: Option<PathBuf>,
}

/// The variables as they come.
#[derive(Deserialize)]
struct Variables {
    action_executor_caller_burst: Option<String>,
    action_executor_caller_rate: Option<String>,
    action_executor_deadline_seconds: Option<String>,
    action_executor_hosts: Option<String>,
    action_executor_keys: Option<PathBuf>,
    action_executor_keys_base64: Option<String>,
    action_executor_log: Option<String>,
    action_executor_max_actions: Option<String>,
    action_executor_policy: Option<PathBuf>,
    action_executor_policy_base64: Option<String>,
    action_executor_replay_window_seconds: Option<String>,
    action_executor_tls_certificate: Option<PathBuf>,
    action_executor_tls_client_ca: Option<PathBuf>,
    action_executor_tls_key: Option<PathBuf>,
    action_executor_token_audience: Option<String>,
    port: Option<String>,
    termination_log: Option<String>,
    kubernetes_service_host: Option<String>,
}

impl Settings {
    /// Reads the settings of this process.
    ///
    /// # Errors
    /// [`Code::Configuration`] naming the variable that cannot be read.
    pub fn from_env() -> Result<Self, ActionError> {
        Self::from_vars(std::env::vars_os())
    }

    /// Reads settings from these variables.
    ///
    /// # Errors
    /// [`Code::Configuration`] naming the variable that cannot be read.
    pub fn from_vars(
        vars: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ActionError> {
        let vars: Variables = envy::from_iter(text_only(vars))
            .map_err(|_| ActionError::new(Code::Internal, "the environment cannot be read"))?;
        let inside_kubernetes = vars.kubernetes_service_host.is_some();
        Ok(Settings {
            deadline: Duration::from_secs(within(
                "ACTION_EXECUTOR_DEADLINE_SECONDS",
                vars.action_executor_deadline_seconds,
                1..=600,
                30,
            )?),
            replay_window: Duration::from_secs(within(
                "ACTION_EXECUTOR_REPLAY_WINDOW_SECONDS",
                vars.action_executor_replay_window_seconds,
                60..=86_400,
                1800,
            )?),
            policy: source(
                ["ACTION_EXECUTOR_POLICY", "ACTION_EXECUTOR_POLICY_BASE64"],
                vars.action_executor_policy,
                vars.action_executor_policy_base64,
            )?,
            keys: source(
                ["ACTION_EXECUTOR_KEYS", "ACTION_EXECUTOR_KEYS_BASE64"],
                vars.action_executor_keys,
                vars.action_executor_keys_base64,
            )?,
            token_audience: vars.action_executor_token_audience,
            tls: tls_files(
                vars.action_executor_tls_certificate,
                vars.action_executor_tls_key,
                vars.action_executor_tls_client_ca,
            )?,
            hosts: hosts(vars.action_executor_hosts.as_deref().unwrap_or_default())?,
            caller_rate: within(
                "ACTION_EXECUTOR_CALLER_RATE",
                vars.action_executor_caller_rate,
                0..=100_000,
                20,
            )?,
            caller_burst: within(
                "ACTION_EXECUTOR_CALLER_BURST",
                vars.action_executor_caller_burst,
                1..=100_000,
                40,
            )?,
            max_actions: within(
                "ACTION_EXECUTOR_MAX_ACTIONS",
                vars.action_executor_max_actions,
                1..=1024,
                128,
            )?,
            log_level: level(vars.action_executor_log)?,
            port: within("PORT", vars.port, 0..=65535, 8000)?,
            termination_log: vars
                .termination_log
                .map(PathBuf::from)
                .or_else(|| inside_kubernetes.then(|| DEFAULT_TERMINATION_LOG.into())),
        })
    }
}

/// The variables that are text and not empty. `std::env::vars` would panic on the others.
pub(crate) fn text_only(
    vars: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (String, String)> {
    vars.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(_, value)| !value.is_empty())
}

/// The text in a variable that holds it in base64, where there is no disk to put a file on.
pub(crate) fn text_of_base64(encoded: &str) -> Option<String> {
    String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()
}

fn within<N>(
    name: &str,
    text: Option<String>,
    range: std::ops::RangeInclusive<N>,
    default: N,
) -> Result<N, ActionError>
where
    N: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let Some(text) = text else { return Ok(default) };
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        wrong(name, &format!("must be a whole number from {} to {}", range.start(), range.end()))
    })
}

/// A document's place: one of two variables, of which the second holds the document itself.
fn source(
    [file, content]: [&'static str; 2],
    path: Option<PathBuf>,
    encoded: Option<String>,
) -> Result<Option<Source>, ActionError> {
    match (path, encoded) {
        (Some(_), Some(_)) => Err(wrong(file, &format!("and {content} exclude each other"))),
        (path, None) => Ok(path.map(Source::File)),
        (None, Some(encoded)) => {
            let text =
                text_of_base64(&encoded).ok_or_else(|| wrong(content, "must be text in base64"))?;
            Ok(Some(Source::Variable(content, text)))
        }
    }
}

/// A certificate and its key are one thing in two files, and clients' authorities are nothing without
/// them.
fn tls_files(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
) -> Result<Option<TlsFiles>, ActionError> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key, client_ca })),
        (Some(_), None) => {
            Err(wrong("ACTION_EXECUTOR_TLS_CERTIFICATE", "needs ACTION_EXECUTOR_TLS_KEY"))
        }
        (None, Some(_)) => {
            Err(wrong("ACTION_EXECUTOR_TLS_KEY", "needs ACTION_EXECUTOR_TLS_CERTIFICATE"))
        }
        (None, None) if client_ca.is_some() => {
            let what = "needs ACTION_EXECUTOR_TLS_CERTIFICATE and ACTION_EXECUTOR_TLS_KEY";
            Err(wrong("ACTION_EXECUTOR_TLS_CLIENT_CA", what))
        }
        (None, None) => Ok(None),
    }
}

/// Host names and addresses, without ports.
fn hosts(text: &str) -> Result<Vec<String>, ActionError> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let checked = names.map(|name| {
        let bare = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let plain = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'.' | b'-' | b'_');
        if bare.parse::<IpAddr>().is_ok() || (!bare.is_empty() && bare.bytes().all(plain)) {
            return Ok(bare);
        }
        let what = "must be host names separated by commas, without schemes, ports and wildcards";
        Err(wrong("ACTION_EXECUTOR_HOSTS", what))
    });
    checked.collect()
}

fn level(text: Option<String>) -> Result<Option<tracing::Level>, ActionError> {
    let level = text.map(|text| text.parse()).transpose();
    level.map_err(|_| wrong("ACTION_EXECUTOR_LOG", "must be error, warn, info, debug or trace"))
}

fn wrong(name: &str, what: &str) -> ActionError {
    ActionError::new(Code::Configuration, format!("environment variable {name} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Settings, ActionError> {
        Settings::from_vars(vars.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn an_empty_environment_gives_the_defaults() {
        let settings = read(&[]).expect("is read");
        assert_eq!(settings.deadline, Duration::from_secs(30));
        assert_eq!(settings.port, 8000);
        assert_eq!(settings.termination_log, None);
    }

    #[test]
    fn an_empty_variable_is_an_absent_one() {
        assert_eq!(read(&[("PORT", "")]), read(&[]));
    }

    #[test]
    fn a_document_is_in_a_file_or_in_a_variable_and_not_in_both() {
        let file = read(&[("ACTION_EXECUTOR_POLICY", "/p.yaml")]).expect("is read");
        assert_eq!(file.policy, Some(Source::File("/p.yaml".into())));
        let text = read(&[("ACTION_EXECUTOR_POLICY_BASE64", "dmVyc2lvbjogMQ==")]).expect("is read");
        let expected = Source::Variable("ACTION_EXECUTOR_POLICY_BASE64", "version: 1".to_owned());
        assert_eq!(text.policy, Some(expected));
        let both = [("ACTION_EXECUTOR_POLICY", "/p"), ("ACTION_EXECUTOR_POLICY_BASE64", "e30=")];
        assert_eq!(read(&both).expect_err("is refused").code, Code::Configuration);
        let error = read(&[("ACTION_EXECUTOR_KEYS_BASE64", "hunter2!")]).expect_err("is refused");
        assert!(!error.detail.contains("hunter2"));
    }

    #[test]
    fn a_certificate_its_key_and_clients_authorities_belong_together() {
        let (certificate, key) = ("ACTION_EXECUTOR_TLS_CERTIFICATE", "ACTION_EXECUTOR_TLS_KEY");
        assert!(read(&[(certificate, "/c"), (key, "/k")]).expect("is read").tls.is_some());
        for alone in [certificate, key, "ACTION_EXECUTOR_TLS_CLIENT_CA"] {
            let error = read(&[(alone, "/x")]).expect_err("is refused");
            assert!(error.detail.contains(alone) && error.detail.contains("needs"), "{error}");
        }
    }

    #[test]
    fn hosts_are_names_and_addresses_and_nothing_else() {
        let hosts = |text| read(&[("ACTION_EXECUTOR_HOSTS", text)]).map(|it| it.hosts);
        let known = hosts("Hand.example.com, 10.0.0.1,[::1],").expect("are hosts");
        assert_eq!(known, ["hand.example.com", "10.0.0.1", "::1"]);
        for wrong in ["https://a", "a:80", "*", "*.a", "a b", "[]"] {
            assert!(hosts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_variable_is_named_and_its_value_is_not() {
        let error = read(&[("PORT", "hunter2")]).expect_err("is refused");
        assert_eq!(error.code, Code::Configuration);
        assert!(error.detail.contains("PORT") && !error.detail.contains("hunter2"));
        assert!(read(&[("ACTION_EXECUTOR_LOG", "loud")]).is_err());
        assert!(read(&[("ACTION_EXECUTOR_DEADLINE_SECONDS", "0")]).is_err());
    }

    #[test]
    fn inside_kubernetes_the_last_words_go_where_the_kubelet_looks() {
        let settings = read(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]).expect("is read");
        assert_eq!(settings.termination_log, Some(DEFAULT_TERMINATION_LOG.into()));
        let settings = read(&[("TERMINATION_LOG", "/tmp/x")]).expect("is read");
        assert_eq!(settings.termination_log, Some("/tmp/x".into()));
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_text_does_no_harm() {
        use std::os::unix::ffi::OsStringExt;
        let vars = [("JUNK".into(), OsString::from_vec(vec![0xff]))];
        assert!(Settings::from_vars(vars.into_iter()).is_ok());
    }
}
