//! The table of settings: the name of each environment variable, its default, its values and its meaning.
//!
//! [`Settings`](super::Settings) reads by this table; the reference and `--help` are printed from it. It must
//! not read the environment itself.

use std::collections::HashMap;

use crate::contract::error::{ActionError, Code};

/// The variables of a process that are text and not empty.
pub(crate) type Variables = HashMap<String, String>;

/// A setting.
pub(crate) struct Setting {
    pub name: &'static str,
    pub kind: SettingKind,
    pub meaning: &'static str,
}

pub(crate) enum SettingKind {
    /// A whole number within bounds.
    Number { default: u32, min: u32, max: u32 },
    /// Text, with its default and its values in words.
    Text { default: &'static str, values: &'static str },
}

const fn number(
    name: &'static str,
    default: u32,
    [min, max]: [u32; 2],
    meaning: &'static str,
) -> Setting {
    Setting { name, kind: SettingKind::Number { default, min, max }, meaning }
}

const fn text(
    name: &'static str,
    default: &'static str,
    values: &'static str,
    meaning: &'static str,
) -> Setting {
    Setting { name, kind: SettingKind::Text { default, values }, meaning }
}

pub(crate) const DEADLINE_SECONDS: Setting =
    number("ACTION_EXECUTOR_DEADLINE_SECONDS", 30, [1, 600], "limit on the calls of one action");
pub(crate) const REPLAY_WINDOW_SECONDS: Setting = number(
    "ACTION_EXECUTOR_REPLAY_WINDOW_SECONDS",
    1800,
    [60, 86_400],
    "how old a real request may be by its `issued_at`",
);
pub(crate) const POLICY: Setting = text(
    "ACTION_EXECUTOR_POLICY",
    "none",
    "path",
    "the policy file; without one the default limits apply",
);
pub(crate) const POLICY_BASE64: Setting =
    text("ACTION_EXECUTOR_POLICY_BASE64", "none", "base64", "the policy itself");
pub(crate) const KEYS: Setting =
    text("ACTION_EXECUTOR_KEYS", "none", "path", "the file of callers' keys");
pub(crate) const KEYS_BASE64: Setting =
    text("ACTION_EXECUTOR_KEYS_BASE64", "none", "base64", "the keys themselves");
pub(crate) const TOKEN_AUDIENCE: Setting = text(
    "ACTION_EXECUTOR_TOKEN_AUDIENCE",
    "none",
    "text",
    "the audience of callers' Kubernetes tokens; without one they are not accepted",
);
pub(crate) const OAUTH_ISSUER: Setting = text(
    "ACTION_EXECUTOR_OAUTH_ISSUER",
    "none",
    "URL",
    "the OAuth issuer of MCP clients' tokens, which the API server accepts for the audience, the URL of `/mcp`",
);
pub(crate) const IMPERSONATE: Setting = text(
    "ACTION_EXECUTOR_IMPERSONATE",
    "`none`",
    "`none`, `callers`",
    "the identity of the calls about a target: `none`: the server's own account; `callers`: the caller, by \
     impersonation",
);
pub(crate) const IMPERSONATE_GROUPS: Setting = text(
    "ACTION_EXECUTOR_IMPERSONATE_GROUPS",
    "none",
    "names, comma-separated",
    "the groups of callers that are passed on; others are left out",
);
pub(crate) const IMPERSONATE_ACCOUNTS: Setting = text(
    "ACTION_EXECUTOR_IMPERSONATE_ACCOUNTS",
    "none",
    "`namespace:name`, comma-separated",
    "the service accounts that may be impersonated; no other user whose name begins with `system:` is",
);
pub(crate) const IMPERSONATE_EXTRA: Setting = text(
    "ACTION_EXECUTOR_IMPERSONATE_EXTRA",
    "none",
    "keys, comma-separated",
    "the extra fields of callers that are passed on; others are left out",
);
pub(crate) const TLS_CERTIFICATE: Setting = text(
    "ACTION_EXECUTOR_TLS_CERTIFICATE",
    "none",
    "path",
    "PEM file with the server's certificate and its intermediates",
);
pub(crate) const TLS_KEY: Setting =
    text("ACTION_EXECUTOR_TLS_KEY", "none", "path", "PEM file with the server's private key");
pub(crate) const TLS_CLIENT_CA: Setting = text(
    "ACTION_EXECUTOR_TLS_CLIENT_CA",
    "none",
    "path",
    "PEM file with the authorities of clients' certificates",
);
pub(crate) const HOSTS: Setting = text(
    "ACTION_EXECUTOR_HOSTS",
    "none",
    "names, comma-separated",
    "host names that the server serves, without schemes, ports and wildcards",
);
pub(crate) const CALLER_RATE: Setting = number(
    "ACTION_EXECUTOR_CALLER_RATE",
    20,
    [0, 100_000],
    "requests per second that one caller may make; 0: no limit",
);
pub(crate) const CALLER_BURST: Setting = number(
    "ACTION_EXECUTOR_CALLER_BURST",
    40,
    [1, 100_000],
    "requests that one caller may make at once",
);
pub(crate) const PEER_SHARE: Setting = number(
    "ACTION_EXECUTOR_PEER_SHARE",
    50,
    [1, 100],
    "percent of a server's connections that one address may hold; 100 behind a load balancer, which is one address",
);
pub(crate) const MAX_ACTIONS: Setting = number(
    "ACTION_EXECUTOR_MAX_ACTIONS",
    128,
    [1, 1024],
    "maximum number of concurrent actions in a server; with a list of clusters each has an equal part of it",
);
pub(crate) const MCP_WAIT_SECONDS: Setting = number(
    "ACTION_EXECUTOR_MCP_WAIT_SECONDS",
    25,
    [1, 45],
    "the time until an MCP tool call is answered, even if the action still waits",
);
pub(crate) const MCP_TOOLS: Setting = text(
    "ACTION_EXECUTOR_MCP_TOOLS",
    "`auto`",
    "`auto`, `per_action`, `generic`",
    "the MCP tools: one for each action, or five in all; auto: one for each action that the caller may execute if \
     these are at most 10, else five",
);
pub(crate) const CLUSTER_NAME: Setting = text(
    "ACTION_EXECUTOR_CLUSTER_NAME",
    "the kubeconfig's context and server",
    "text",
    "the cluster's name in answers, records and pages",
);
pub(crate) const RECEIPT_KEY: Setting = text(
    "ACTION_EXECUTOR_RECEIPT_KEY",
    "none",
    "path",
    "PEM file with the ed25519 private key that signs receipts; without one there are none",
);
pub(crate) const RECEIPTS: Setting = text(
    "ACTION_EXECUTOR_RECEIPTS",
    "none",
    "path",
    "the file to which the receipts of real actions are appended; a sink gets them too",
);
pub(crate) const SINK: Setting = text(
    "ACTION_EXECUTOR_SINK",
    "none",
    "URL",
    "where the outcomes of real actions and pending approvals are sent as CloudEvents",
);
pub(crate) const SINK_SECRET: Setting = text(
    "ACTION_EXECUTOR_SINK_SECRET",
    "none",
    "path",
    "the file of the secret that signs what is sent to the sink: `whsec_` and base64; two lines while it is replaced",
);
pub(crate) const SINK_ALLOW_HTTP: Setting = text(
    "ACTION_EXECUTOR_SINK_ALLOW_HTTP",
    "`false`",
    "`true`, `false`",
    "whether the sink may be reached over plain HTTP; on this machine it may always",
);
pub(crate) const CLUSTERS: Setting = text(
    "ACTION_EXECUTOR_CLUSTERS",
    "none",
    "path",
    "the file that lists the clusters on which requests may act by name; without one there is one cluster",
);
pub(crate) const CLUSTERS_BASE64: Setting =
    text("ACTION_EXECUTOR_CLUSTERS_BASE64", "none", "base64", "the list of clusters itself");
pub(crate) const LOG: Setting = text(
    "ACTION_EXECUTOR_LOG",
    "`info`",
    "`error`, `warn`, `info`, `debug`, `trace`",
    "the log level",
);
pub(crate) const PORT: Setting =
    number("PORT", 8000, [0, 65_535], "the port that `serve` listens on");
pub(crate) const TERMINATION_LOG: Setting = text(
    "TERMINATION_LOG",
    "`/dev/termination-log` in Kubernetes",
    "path",
    "where a single request writes its termination message",
);

pub(crate) const POD_NAME: Setting = text(
    "POD_NAME",
    "none",
    "text",
    "the name of the pod in which the program runs: with `NODE_NAME`, a drain of that node evicts it last",
);
pub(crate) const NODE_NAME: Setting =
    text("NODE_NAME", "none", "text", "the node on which the program runs");

/// Every setting, in the order in which the reference lists them.
pub(crate) const SETTINGS: [&Setting; 35] = [
    &DEADLINE_SECONDS,
    &REPLAY_WINDOW_SECONDS,
    &POLICY,
    &POLICY_BASE64,
    &KEYS,
    &KEYS_BASE64,
    &TOKEN_AUDIENCE,
    &OAUTH_ISSUER,
    &IMPERSONATE,
    &IMPERSONATE_GROUPS,
    &IMPERSONATE_ACCOUNTS,
    &IMPERSONATE_EXTRA,
    &TLS_CERTIFICATE,
    &TLS_KEY,
    &TLS_CLIENT_CA,
    &HOSTS,
    &CALLER_RATE,
    &CALLER_BURST,
    &MAX_ACTIONS,
    &PEER_SHARE,
    &MCP_WAIT_SECONDS,
    &MCP_TOOLS,
    &CLUSTER_NAME,
    &RECEIPT_KEY,
    &RECEIPTS,
    &SINK,
    &SINK_SECRET,
    &SINK_ALLOW_HTTP,
    &CLUSTERS,
    &CLUSTERS_BASE64,
    &LOG,
    &PORT,
    &TERMINATION_LOG,
    &POD_NAME,
    &NODE_NAME,
];

impl Setting {
    /// The value in these variables, if there is one.
    pub(crate) fn get<'a>(&self, variables: &'a Variables) -> Option<&'a str> {
        variables.get(self.name).map(String::as_str)
    }

    /// The number in these variables, or the default.
    pub(crate) fn number<N: TryFrom<u32>>(&self, variables: &Variables) -> Result<N, ActionError> {
        let SettingKind::Number { default, min, max } = self.kind else {
            return Err(ActionError::new(Code::Internal, format!("{} is not a number", self.name)));
        };
        let number = match self.get(variables) {
            None => Some(default),
            Some(text) => text.parse().ok().filter(|number| (min..=max).contains(number)),
        };
        number
            .and_then(|number| N::try_from(number).ok())
            .ok_or_else(|| self.invalid(&format!("must be a whole number from {min} to {max}")))
    }

    /// The error that this variable has a wrong value, which is not repeated: it may be a secret.
    pub(crate) fn invalid(&self, what: &str) -> ActionError {
        ActionError::new(Code::Configuration, format!("environment variable {} {what}", self.name))
    }
}
