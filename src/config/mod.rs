//! Settings: read once from the environment, checked, and passed on as values.
//!
//! An empty variable counts as absent. A value that cannot be used is an error that names the variable, never
//! its value. Nothing else in the program reads a setting from the environment.

use std::{ffi::OsString, fmt, net::IpAddr, path::PathBuf, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::Uri;

use crate::{
    config::{
        impersonation::ImpersonationRules,
        reload::Source,
        variables::{Setting, Variables},
    },
    contract::{error::ActionError, names::AuditText},
};

pub mod clusters;
pub mod impersonation;
pub mod reload;
pub(crate) mod variables;

/// Where Kubernetes reads a container's termination message, unless the pod names another file.
const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";

/// The settings; `variables` has the variable, the default and the bounds of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Limit on the calls of one action.
    pub deadline: Duration,
    /// How old a real request may be by its `issued_at`. It must be shorter than the time that the API
    /// server keeps Events, because a request without a record is not recognised as a replay.
    pub replay_window: Duration,
    /// The policy; none: the shipped one.
    pub policy: Option<Source>,
    /// The callers' keys.
    pub keys: Option<Source>,
    /// The audience of callers' Kubernetes tokens; none: tokens are not accepted.
    pub token_audience: Option<String>,
    /// What is said of `/mcp` to OAuth clients; none: nothing.
    pub protected_resource: Option<ProtectedResource>,
    /// What of callers is passed on where they are impersonated; none: nobody is.
    pub impersonation: Option<ImpersonationRules>,
    /// The files for TLS; none: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The host names that the server serves, in lower case.
    pub hosts: Vec<String>,
    /// Requests per second that one caller may make; 0: no limit.
    pub caller_rate: u32,
    /// Requests that one caller may make at once.
    pub caller_burst: u32,
    /// Maximum number of concurrent actions in a server.
    pub max_actions: usize,
    /// Percent of a server's connections that one address may hold.
    pub peer_share: u32,
    /// How MCP is served.
    pub mcp: McpSettings,
    /// The cluster's name for people; none: by the kubeconfig.
    pub cluster_name: Option<String>,
    /// How receipts are signed and kept; none: there are none.
    pub receipts: Option<ReceiptSettings>,
    /// Where notifications are sent; none: nowhere.
    pub sink: Option<SinkSettings>,
    /// The list of clusters on which requests may act by name; none: there is one cluster.
    pub clusters: Option<Source>,
    /// The log level; none: the entry point's own.
    pub log_level: Option<tracing::Level>,
    /// The port that the server listens on.
    pub port: u16,
    /// Where a single request writes its termination message.
    pub termination_log: Option<PathBuf>,
    /// The pod in which the program runs, if it is known.
    pub own_pod: Option<OwnPod>,
}

/// The pod in which the program runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPod {
    /// Its name, in the namespace of the cluster's configuration.
    pub name: String,
    /// Its node.
    pub node: String,
}

/// `/mcp` as a resource that OAuth protects (RFC 9728).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtectedResource {
    /// Its URL, which is the audience of its tokens.
    pub resource: String,
    /// The URL of the issuer of its tokens.
    pub issuer: String,
}

/// How MCP is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct McpSettings {
    /// After how long a tool call is answered, whatever the action waits for.
    pub wait: Duration,
    /// The tools.
    pub tools: ToolSet,
}

/// Which tools MCP offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolSet {
    /// One for each action, while they are few.
    Auto,
    /// One for each action.
    PerAction,
    /// Four in all, for clients that can have few.
    Generic,
}

/// The PEM files of a server's TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and its intermediates.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The authorities of clients' certificates; none: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// How receipts are signed and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptSettings {
    /// The PEM file with the private key.
    pub key: PathBuf,
    /// The file to which they are appended; none: the sink alone gets them.
    pub file: Option<PathBuf>,
}

/// Where notifications are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkSettings {
    /// The URL, which may have a secret in its path.
    pub url: SecretText,
    /// The file of the secret that signs them.
    pub secret: PathBuf,
}

/// A text that is in no log.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[masked]")
    }
}

impl Settings {
    /// Reads the settings of this process.
    ///
    /// # Errors
    /// [`Code::Configuration`](crate::contract::error::Code::Configuration) naming the variable that is wrong.
    pub fn from_env() -> Result<Self, ActionError> {
        Self::from_vars(std::env::vars_os())
    }

    /// Reads settings from these variables.
    ///
    /// # Errors
    /// [`Code::Configuration`](crate::contract::error::Code::Configuration) naming the variable that is wrong.
    pub fn from_vars(
        vars: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ActionError> {
        let vars: Variables = text_only(vars).collect();
        let in_kubernetes = vars.contains_key("KUBERNETES_SERVICE_HOST");
        let termination_log = variables::TERMINATION_LOG.get(&vars).map(PathBuf::from);
        let sink = sink(&vars)?;
        Ok(Settings {
            deadline: Duration::from_secs(variables::DEADLINE_SECONDS.number(&vars)?),
            replay_window: Duration::from_secs(variables::REPLAY_WINDOW_SECONDS.number(&vars)?),
            policy: source(&variables::POLICY, &variables::POLICY_BASE64, &vars)?,
            keys: source(&variables::KEYS, &variables::KEYS_BASE64, &vars)?,
            token_audience: variables::TOKEN_AUDIENCE.get(&vars).map(str::to_owned),
            protected_resource: protected_resource(&vars)?,
            impersonation: impersonation::rules(&vars)?,
            tls: tls_files(&vars)?,
            hosts: hosts(variables::HOSTS.get(&vars).unwrap_or_default())?,
            caller_rate: variables::CALLER_RATE.number(&vars)?,
            caller_burst: variables::CALLER_BURST.number(&vars)?,
            max_actions: variables::MAX_ACTIONS.number::<u32>(&vars)? as usize,
            peer_share: variables::PEER_SHARE.number(&vars)?,
            mcp: McpSettings {
                wait: Duration::from_secs(variables::MCP_WAIT_SECONDS.number(&vars)?),
                tools: tool_set(variables::MCP_TOOLS.get(&vars))?,
            },
            cluster_name: cluster_name(variables::CLUSTER_NAME.get(&vars))?,
            receipts: receipts(&vars, sink.is_some())?,
            sink,
            clusters: clusters(&vars)?,
            log_level: log_level(variables::LOG.get(&vars))?,
            port: variables::PORT.number(&vars)?,
            termination_log: termination_log
                .or_else(|| in_kubernetes.then(|| DEFAULT_TERMINATION_LOG.into())),
            own_pod: variables::POD_NAME
                .get(&vars)
                .zip(variables::NODE_NAME.get(&vars))
                .map(|(name, node)| OwnPod { name: name.to_owned(), node: node.to_owned() }),
        })
    }

    /// Whether a cluster reviews callers: their Kubernetes tokens, or the permissions of those with client
    /// certificates.
    pub(crate) fn needs_reviewer(&self) -> bool {
        let client_ca = self.tls.as_ref().and_then(|tls| tls.client_ca.as_ref());
        self.token_audience.is_some() || client_ca.is_some()
    }
}

/// The variables that are text and not empty. `std::env::vars` would panic on the others.
pub(crate) fn text_only(
    vars: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (String, String)> {
    vars.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(_, value)| !value.is_empty())
}

pub(crate) fn text_of_base64(encoded: &str) -> Option<String> {
    String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()
}

/// A file of configuration: its path is in one variable, or its content in the other, for platforms without
/// a disk.
fn source(
    file: &Setting,
    content: &Setting,
    vars: &Variables,
) -> Result<Option<Source>, ActionError> {
    match (file.get(vars), content.get(vars)) {
        (Some(_), Some(_)) => {
            Err(file.invalid(&format!("and {} cannot be combined", content.name)))
        }
        (path, None) => Ok(path.map(|path| Source::File(path.into()))),
        (None, Some(encoded)) => {
            let text =
                text_of_base64(encoded).ok_or_else(|| content.invalid("must be text in base64"))?;
            Ok(Some(Source::Variable(content.name, text)))
        }
    }
}

/// The path of the resource that OAuth protects.
const RESOURCE_PATH: &str = "/mcp";

/// An issuer issues tokens for an audience, which is the resource (RFC 8707).
fn protected_resource(vars: &Variables) -> Result<Option<ProtectedResource>, ActionError> {
    use variables::{OAUTH_ISSUER, TOKEN_AUDIENCE};
    let Some(issuer) = OAUTH_ISSUER.get(vars) else { return Ok(None) };
    if path_of(issuer).is_none() {
        return Err(OAUTH_ISSUER.invalid("must be a URL, for example https://issuer.example.com"));
    }
    let resource = TOKEN_AUDIENCE.get(vars).unwrap_or_default();
    if path_of(resource) != Some(RESOURCE_PATH) {
        let needed = format!(
            "needs {}, the URL of the server's {RESOURCE_PATH}, for example https://actions.example.com{RESOURCE_PATH}",
            TOKEN_AUDIENCE.name
        );
        return Err(OAUTH_ISSUER.invalid(&needed));
    }
    Ok(Some(ProtectedResource { resource: resource.to_owned(), issuer: issuer.to_owned() }))
}

/// The path of a URL of HTTP that has no query; one without a path has an empty one.
fn path_of(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_plain =
        |it: u8| it.is_ascii_graphic() && !matches!(it, b'?' | b'#' | b'"' | b'\\' | b'@');
    (!authority.is_empty() && rest.bytes().all(is_plain)).then_some(path)
}

/// A certificate and its key need each other, and the clients' authorities need both.
fn tls_files(vars: &Variables) -> Result<Option<TlsFiles>, ActionError> {
    use variables::{TLS_CERTIFICATE, TLS_CLIENT_CA, TLS_KEY};
    let path = |setting: &Setting| setting.get(vars).map(PathBuf::from);
    let client_ca = path(&TLS_CLIENT_CA);
    match (path(&TLS_CERTIFICATE), path(&TLS_KEY)) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key, client_ca })),
        (Some(_), None) => Err(TLS_CERTIFICATE.invalid(&format!("needs {}", TLS_KEY.name))),
        (None, Some(_)) => Err(TLS_KEY.invalid(&format!("needs {}", TLS_CERTIFICATE.name))),
        (None, None) if client_ca.is_some() => {
            let needed = format!("needs {} and {}", TLS_CERTIFICATE.name, TLS_KEY.name);
            Err(TLS_CLIENT_CA.invalid(&needed))
        }
        (None, None) => Ok(None),
    }
}

/// A key needs a file or a sink, and a file needs a key: a receipt that nobody keeps, or nobody signs, is none.
fn receipts(vars: &Variables, has_sink: bool) -> Result<Option<ReceiptSettings>, ActionError> {
    use variables::{RECEIPT_KEY, RECEIPTS, SINK};
    let path = |setting: &Setting| setting.get(vars).map(PathBuf::from);
    match (path(&RECEIPT_KEY), path(&RECEIPTS)) {
        (Some(key), file) if file.is_some() || has_sink => Ok(Some(ReceiptSettings { key, file })),
        (Some(_), _) => {
            Err(RECEIPT_KEY.invalid(&format!("needs {} or {}", RECEIPTS.name, SINK.name)))
        }
        (None, Some(_)) => Err(RECEIPTS.invalid(&format!("needs {}", RECEIPT_KEY.name))),
        (None, None) => Ok(None),
    }
}

/// A sink and a secret need each other: a receiver has to know who sends.
fn sink(vars: &Variables) -> Result<Option<SinkSettings>, ActionError> {
    use variables::{SINK, SINK_ALLOW_HTTP, SINK_SECRET};
    let allows_http = match SINK_ALLOW_HTTP.get(vars) {
        Some("true") => true,
        None | Some("false") => false,
        Some(_) => return Err(SINK_ALLOW_HTTP.invalid("must be true or false")),
    };
    match (SINK.get(vars), SINK_SECRET.get(vars)) {
        (Some(url), Some(secret)) => {
            check_sink(url, allows_http)?;
            Ok(Some(SinkSettings { url: SecretText(url.to_owned()), secret: secret.into() }))
        }
        (Some(_), None) => Err(SINK.invalid(&format!("needs {}", SINK_SECRET.name))),
        (None, Some(_)) => Err(SINK_SECRET.invalid(&format!("needs {}", SINK.name))),
        (None, None) => Ok(None),
    }
}

fn check_sink(url: &str, allows_http: bool) -> Result<(), ActionError> {
    use variables::{SINK, SINK_ALLOW_HTTP};
    let uri: Option<Uri> = url.parse().ok();
    let parts = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.authority()?)));
    let parts = parts.filter(|(_, authority)| !authority.host().is_empty() && !url.contains('#'));
    let Some((scheme @ ("http" | "https"), authority)) = parts else {
        return Err(SINK.invalid("must be a URL, for example https://events.example.com/path"));
    };
    if authority.as_str().contains('@') {
        return Err(SINK.invalid("must not have a user: the signature shows who sends"));
    }
    let host = authority.host().trim_matches(['[', ']']);
    let is_own = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|it| it.is_loopback());
    if scheme == "https" || is_own || allows_http {
        return Ok(());
    }
    let needed = format!("must begin with https://, or set {} to true", SINK_ALLOW_HTTP.name);
    Err(SINK.invalid(&needed))
}

/// Host names and addresses, without ports.
fn hosts(text: &str) -> Result<Vec<String>, ActionError> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let checked = names.map(|name| {
        let bare = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let is_plain = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'.' | b'-' | b'_');
        if bare.parse::<IpAddr>().is_ok() || (!bare.is_empty() && bare.bytes().all(is_plain)) {
            return Ok(bare);
        }
        let what = "must be host names separated by commas, without schemes, ports and wildcards";
        Err(variables::HOSTS.invalid(what))
    });
    checked.collect()
}

fn tool_set(text: Option<&str>) -> Result<ToolSet, ActionError> {
    match text {
        None | Some("auto") => Ok(ToolSet::Auto),
        Some("per_action") => Ok(ToolSet::PerAction),
        Some("generic") => Ok(ToolSet::Generic),
        Some(_) => Err(variables::MCP_TOOLS.invalid("must be auto, per_action or generic")),
    }
}

fn cluster_name(text: Option<&str>) -> Result<Option<String>, ActionError> {
    let name = text.map(|text| AuditText::try_from(text.to_owned())).transpose();
    let name = name.map_err(|what| variables::CLUSTER_NAME.invalid(&what))?;
    Ok(name.map(|name| name.to_string()))
}

/// A list names each of its clusters itself.
fn clusters(vars: &Variables) -> Result<Option<Source>, ActionError> {
    use variables::{CLUSTER_NAME, CLUSTERS, CLUSTERS_BASE64};
    let list = source(&CLUSTERS, &CLUSTERS_BASE64, vars)?;
    if list.is_some() && CLUSTER_NAME.get(vars).is_some() {
        let what = format!("and {} cannot be combined: the list names the clusters", CLUSTERS.name);
        return Err(CLUSTER_NAME.invalid(&what));
    }
    Ok(list)
}

fn log_level(text: Option<&str>) -> Result<Option<tracing::Level>, ActionError> {
    let level = text.map(str::parse).transpose();
    level.map_err(|_| variables::LOG.invalid("must be error, warn, info, debug or trace"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::error::Code;

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
    fn an_empty_variable_counts_as_absent() {
        assert_eq!(read(&[("PORT", "")]), read(&[]));
    }

    #[test]
    fn a_policy_is_in_a_file_or_in_a_variable_and_not_in_both() {
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
    fn a_key_of_receipts_needs_a_file_or_a_sink_and_a_file_needs_a_key() {
        let (key, file) = ("ACTION_EXECUTOR_RECEIPT_KEY", "ACTION_EXECUTOR_RECEIPTS");
        let sink =
            [("ACTION_EXECUTOR_SINK", "https://a"), ("ACTION_EXECUTOR_SINK_SECRET", "/secret")];
        let both = read(&[(key, "/k"), (file, "/r")]).expect("is read").receipts;
        let expected = ReceiptSettings { key: "/k".into(), file: Some("/r".into()) };
        assert_eq!(both, Some(expected));
        let sent = read(&[(key, "/k"), sink[0], sink[1]]).expect("is read").receipts;
        assert_eq!(sent, Some(ReceiptSettings { key: "/k".into(), file: None }));
        for alone in [key, file] {
            let error = read(&[(alone, "/x")]).expect_err("is refused");
            assert!(error.detail.contains(alone) && error.detail.contains("needs"), "{error}");
        }
    }

    #[test]
    fn a_sink_has_a_secret_and_is_reached_over_tls_unless_it_is_on_this_machine() {
        let sink = |url, allows| {
            read(&[
                ("ACTION_EXECUTOR_SINK", url),
                ("ACTION_EXECUTOR_SINK_SECRET", "/secret"),
                ("ACTION_EXECUTOR_SINK_ALLOW_HTTP", allows),
            ])
        };
        for (url, allows) in [
            ("https://events.example.com/a?b=c", ""),
            ("https://events.example.com:8443", "false"),
            ("http://localhost:8080/a", ""),
            ("http://127.0.0.2", ""),
            ("http://[::1]:8080", ""),
            ("http://relay.shop", "true"),
        ] {
            let read = sink(url, allows).expect(url).sink.expect("is set");
            assert_eq!(read.url.as_str(), url);
            assert!(!format!("{read:?}").contains(url));
        }
        for (url, allows) in [
            ("http://relay.shop", ""),
            ("http://relay.shop", "false"),
            ("http://localhost.example.com", ""),
            ("http://127.0.0.1.example.com", ""),
            ("https://hunter2:hunter2@relay.shop", ""),
            ("https://relay.shop/hunter2#a", ""),
            ("ftp://relay.shop/hunter2", "true"),
            ("relay.shop/hunter2", "true"),
            ("/hunter2", "true"),
            ("https://", ""),
            ("https://relay.shop", "yes"),
        ] {
            let error = sink(url, allows).expect_err(url);
            assert_eq!(error.code, Code::Configuration);
            assert!(error.detail.contains("ACTION_EXECUTOR_SINK"), "{error}");
            assert!(!error.detail.contains("hunter2"), "{error}");
        }
        for alone in ["ACTION_EXECUTOR_SINK", "ACTION_EXECUTOR_SINK_SECRET"] {
            let error = read(&[(alone, "https://a")]).expect_err("is refused");
            assert!(error.detail.contains(alone) && error.detail.contains("needs"), "{error}");
        }
    }

    #[test]
    fn an_issuer_needs_an_audience_that_is_the_url_of_the_resource() {
        let both = |issuer, audience| {
            read(&[
                ("ACTION_EXECUTOR_OAUTH_ISSUER", issuer),
                ("ACTION_EXECUTOR_TOKEN_AUDIENCE", audience),
            ])
            .map(|settings| settings.protected_resource)
        };
        let (issuer, resource) = ("https://issuer.example.com/a", "https://a.example.com/mcp");
        let expected =
            ProtectedResource { resource: resource.to_owned(), issuer: issuer.to_owned() };
        assert_eq!(both(issuer, resource), Ok(Some(expected)));
        assert_eq!(both("", "action-executor"), Ok(None));
        for (issuer, audience) in [
            (issuer, ""),
            (issuer, "action-executor"),
            (issuer, "https://a.example.com"),
            (issuer, "https://a.example.com/mcp/"),
            (issuer, "https:///mcp"),
            ("issuer.example.com", resource),
            ("ftp://issuer.example.com", resource),
            ("https://issuer.example.com/?a=b", resource),
            ("https://issuer.example.com/\"", resource),
        ] {
            let error = both(issuer, audience).expect_err(issuer);
            assert!(error.detail.contains("ACTION_EXECUTOR_OAUTH_ISSUER"), "{error}");
        }
    }

    #[test]
    fn hosts_are_names_and_addresses_only() {
        let hosts = |text| read(&[("ACTION_EXECUTOR_HOSTS", text)]).map(|it| it.hosts);
        let known = hosts("Actions.example.com, 10.0.0.1,[::1],").expect("are hosts");
        assert_eq!(known, ["actions.example.com", "10.0.0.1", "::1"]);
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
        assert!(read(&[("ACTION_EXECUTOR_MCP_TOOLS", "all")]).is_err());
        assert!(read(&[("ACTION_EXECUTOR_MCP_WAIT_SECONDS", "46")]).is_err());
        assert!(read(&[("ACTION_EXECUTOR_DEADLINE_SECONDS", "0")]).is_err());
    }

    #[test]
    fn the_termination_log_has_kubernetes_default_path_in_a_pod() {
        let settings = read(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]).expect("is read");
        assert_eq!(settings.termination_log, Some(DEFAULT_TERMINATION_LOG.into()));
        let settings = read(&[("TERMINATION_LOG", "/tmp/x")]).expect("is read");
        assert_eq!(settings.termination_log, Some("/tmp/x".into()));
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_text_is_ignored() {
        use std::os::unix::ffi::OsStringExt;
        let vars = [("JUNK".into(), OsString::from_vec(vec![0xff]))];
        assert!(Settings::from_vars(vars.into_iter()).is_ok());
    }
}
