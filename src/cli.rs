//! The command line: commands, arguments and help. Parses only; `commands` has what each one does.
//!
//! [`action`] has a subcommand for each action.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    actions::ActionKind,
    cli::action::ActionArgs,
    config::variables::{SETTINGS, SettingKind},
    contract::{
        error::{ActionError, Code, EXIT_STATUSES},
        names::{ClusterName, Namespace, ObjectName, ServiceAccount},
    },
    ledger::record::HistoryState,
};

pub mod action;

const EXAMPLES: &str = r#"Examples:
  # Simulate (the default), and execute; `action-executor help restart-k8s` lists the flags
  action-executor restart-k8s web -n shop
  action-executor restart-k8s web -n shop --execute --wait --reason 'p99 is high'

  # A request as JSON
  echo '{"type":"restart_k8s","parameters":{"deployment":"web","namespace":"shop"}}' | action-executor

  # Execute, and wait until the rollout is complete
  action-executor run --output text <<< '{"type":"restart_k8s","parameters":{"deployment":"web","namespace":"shop"},"simulate":false,"wait":true}'

  # The same request in environment variables, as in a Kubernetes Job
  ACTION_TYPE=restart_k8s ACTION_PARAM_DEPLOYMENT=web ACTION_SIMULATE=false action-executor < /dev/null

  # Explain what a policy decides about a request, rule by rule
  action-executor policy check policy.yaml request.json

  # Execute in the cluster, as a Job, and print its answer
  action-executor job request.json --apply --wait

  # Serve HTTP
  action-executor serve --bind 127.0.0.1:8000
"#;

/// The end of the help: examples, exit statuses and environment variables.
fn after_help() -> String {
    let mut text = format!("Actions:\n{}\n{EXAMPLES}\nExit status:\n", action::list());
    for exit in &EXIT_STATUSES {
        text += &format!("  {:<3} {}\n", exit.status, exit.meaning);
    }
    text += "\nEnvironment:\n  ACTION_REQUEST, or ACTION_TYPE and more ACTION_ variables: the request\n  \
             ACTION_ID: the id of the request\n  KUBECONFIG: the files of the kubeconfig\n  \
             NO_COLOR: no colours in answers and logs\n";
    for setting in SETTINGS {
        let default = match setting.kind {
            SettingKind::Number { default, .. } => format!(" [default: {default}]"),
            SettingKind::Text { default: "none", .. } => String::new(),
            SettingKind::Text { default, .. } => {
                format!(" [default: {}]", default.replace('`', ""))
            }
        };
        text += &format!("  {}: {}{default}\n", setting.name, setting.meaning.replace('`', ""));
    }
    text
}

/// Runs one checked action on a Kubernetes cluster, at most once, and prints its answer.
///
/// Without a command it reads one request from standard input or from ACTION_ environment variables.
#[derive(Debug, Parser)]
#[command(name = "action-executor", version, after_help = after_help())]
pub struct Cli {
    /// The command; without one, a single request.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Arguments of the single request.
    #[command(flatten)]
    pub once: OnceArgs,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// An action, by its own subcommand.
    Action(ActionArgs),
    /// Everything else.
    Program(Cli),
}

/// The whole command line: the program's commands, and one for each action.
#[must_use]
pub fn command() -> clap::Command {
    let of_actions = ActionKind::ALL.into_iter().map(action::command);
    Cli::command().subcommands(of_actions.map(|command| command.defer(action::with_arguments)))
}

/// Parses the arguments of the process.
///
/// # Errors
/// Wrong usage, or a request for help or for the version.
pub fn parse() -> Result<Invocation, clap::Error> {
    let matches = command().try_get_matches()?;
    match action::read(&matches) {
        Some(args) => args.map(Invocation::Action),
        None => Cli::from_arg_matches(&matches).map(Invocation::Program),
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one request.
    Run(RunArgs),
    /// Serve HTTP.
    Serve(ServeArgs),
    /// Serve the Model Context Protocol over standard input and output, for an agent that starts this program.
    Mcp(McpArgs),
    /// Run one request in the cluster, as a Job.
    ///
    /// Prints the Job, unless --apply is given. The name of the Job comes from the id of the request, so the
    /// same request is the same Job. However often its pod starts, the action is done once.
    Job(JobArgs),
    /// Check a policy, or print its admission policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Print the Roles that the actions of a policy need.
    Rbac(RbacArgs),
    /// Check that a server is healthy; exit status 0 if it is.
    Healthcheck(HealthcheckArgs),
    /// List what was done, by whom and why.
    History(HistoryArgs),
    /// Say what is wrong with a target. Changes nothing.
    ///
    /// Prints what is wrong, the most important first, with the state, the pods, the last Events, the end of the log of
    /// the container that fails, the owners, and what was done lately. Secrets in texts are masked. What may not be
    /// read is left out and named with the rule that is missing.
    Diagnose(DiagnoseArgs),
    /// Check whether this program can work here: policy, cluster, identity, permissions, clock, kill switch.
    ///
    /// It changes nothing. Exit status 78 if something is not as it must be.
    Doctor(DoctorArgs),
    /// Verify receipts and print what they say; exit status 0 if all are valid, 65 if one is not.
    ///
    /// A receipt is a signed line about a real action. The page on receipts in the documentation says what is in it.
    VerifyReceipt(VerifyReceiptArgs),
    /// Explain an error by its code, or an exit status: when it comes, and what to do.
    Explain {
        /// The code, for example policy_denied, or the exit status, for example 75.
        #[arg(value_name = "CODE")]
        what: String,
    },
    /// Print a JSON Schema (2020-12), or the OpenAPI document.
    Schema {
        /// The document.
        #[arg(value_enum, default_value_t = SchemaOf::Request)]
        of: SchemaOf,
    },
    /// Print a table of the reference, as Markdown.
    Reference {
        /// The table.
        #[arg(value_enum)]
        of: ReferenceOf,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page (roff).
    Man,
}

/// The commands of `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Validate a policy and print it with its defaults, or explain its decision about a request.
    ///
    /// Exit status: 0 allowed, 75 needs approval, 77 denied, 65 invalid request, 78 invalid policy.
    Check(CheckArgs),
    /// Print ValidatingAdmissionPolicies with which the API server enforces the same policy.
    Admission(AdmissionArgs),
}

/// Arguments of `policy check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The policy file.
    pub policy: PathBuf,
    /// The request file; `-` for standard input.
    pub request: Option<PathBuf>,
    /// The labels of the target.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// The output format.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// Arguments of `policy admission`.
#[derive(Args, Debug)]
pub struct AdmissionArgs {
    /// The policy file [default: the built-in policy].
    pub policy: Option<PathBuf>,
    /// The service account that it applies to.
    #[arg(long, value_name = "NAMESPACE:NAME")]
    pub service_account: ServiceAccount,
}

/// Arguments of `rbac`.
#[derive(Args, Debug)]
pub struct RbacArgs {
    /// The policy file [default: the built-in policy].
    pub policy: Option<PathBuf>,
    /// The service account that needs the permissions.
    #[arg(long, value_name = "NAMESPACE:NAME")]
    pub service_account: ServiceAccount,
    /// A namespace of targets; can be repeated [default: the service account's].
    #[arg(short, long, value_name = "NAME", value_parser = namespace)]
    pub namespace: Vec<Namespace>,
    /// Include the permissions of the actions on nodes, which are cluster-wide.
    #[arg(long)]
    pub nodes: bool,
    /// Include the permissions of a server that lists the history.
    #[arg(long)]
    pub history: bool,
    /// Include the permissions of a server that diagnoses; among them to read the logs of all containers.
    #[arg(long)]
    pub diagnosis: bool,
    /// The permissions of a server that impersonates its callers, in place of those of actions and diagnoses.
    #[arg(long)]
    pub impersonate: bool,
    /// A user who may be impersonated; can be repeated [default: any, unless accounts are given].
    #[arg(long, value_name = "NAME", requires = "impersonate")]
    pub impersonate_user: Vec<String>,
    /// A group that may be impersonated; can be repeated.
    #[arg(long, value_name = "NAME", requires = "impersonate")]
    pub impersonate_group: Vec<String>,
    /// A service account that may be impersonated; can be repeated.
    #[arg(long, value_name = "NAMESPACE:NAME", requires = "impersonate")]
    pub impersonate_account: Vec<ServiceAccount>,
    /// An extra field of users that is passed on; can be repeated.
    #[arg(long, value_name = "KEY", requires = "impersonate")]
    pub impersonate_extra: Vec<String>,
    /// Allow in the name of others only what the actions do; needs Kubernetes 1.36, and no service accounts.
    #[arg(long, requires = "impersonate", conflicts_with = "impersonate_account")]
    pub constrained: bool,
}

/// Arguments of `diagnose`.
#[derive(Args, Debug)]
pub struct DiagnoseArgs {
    /// The target, for example deployment/web; also statefulset, daemonset, replicaset, pod, job, cronjob, node.
    #[arg(value_name = "KIND/NAME")]
    pub target: String,
    /// The namespace [default: the context's].
    #[arg(short, long, value_name = "NAME", value_parser = namespace)]
    pub namespace: Option<Namespace>,
    /// The output format.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `verify-receipt`.
#[derive(Args, Debug)]
pub struct VerifyReceiptArgs {
    /// The file of receipts; `-` for standard input.
    pub file: PathBuf,
    /// A PEM file with an ed25519 public key; can be repeated, for receipts that an earlier key has signed.
    #[arg(long, value_name = "FILE", required = true)]
    pub key: Vec<PathBuf>,
    /// The output format; json is one object per line.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// Arguments of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// The namespace of targets [default: the context's].
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The output format.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `history`.
#[derive(Args, Debug)]
pub struct HistoryArgs {
    /// The namespace [default: the context's].
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Only actions on this target, for example deployment/web or web.
    #[arg(long, value_name = "[KIND/]NAME")]
    pub target: Option<String>,
    /// Only requests of this person or program.
    #[arg(long, value_name = "NAME")]
    pub requester: Option<String>,
    /// Only requests that ended like this.
    #[arg(long, value_name = "OUTCOME")]
    pub outcome: Option<HistoryState>,
    /// The output format; json is one object per line.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn namespace(text: &str) -> Result<Namespace, String> {
    text.to_owned().try_into()
}

fn cluster_name(text: &str) -> Result<ClusterName, String> {
    text.to_owned().try_into()
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    text.to_owned().try_into()
}

/// The cluster that a command means.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterArgs {
    /// The kubeconfig context to use.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The cluster, by its name in the list of clusters; where there is only one, it must have this name.
    #[arg(long, value_name = "NAME", conflicts_with = "context", value_parser = cluster_name)]
    pub cluster: Option<ClusterName>,
}

/// Arguments of a single request.
#[derive(Args, Debug)]
pub struct OnceArgs {
    /// The output format.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Json)]
    pub output: OutputFormat,
    /// If another attempt at the same request is running, wait for its answer.
    #[arg(long)]
    pub join: bool,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The request file; `-` for standard input.
    pub file: Option<PathBuf>,
    /// Arguments of the single request.
    #[command(flatten)]
    pub once: OnceArgs,
}

/// Arguments of `job`.
#[derive(Args, Debug)]
pub struct JobArgs {
    /// The request file; `-` for standard input.
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// The image of the Job.
    #[arg(long, value_name = "IMAGE", default_value = concat!("action-executor:", env!("CARGO_PKG_VERSION")))]
    pub image: String,
    /// The namespace of the Job [default: the target's].
    #[arg(short, long, value_name = "NAME", value_parser = namespace)]
    pub namespace: Option<Namespace>,
    /// The service account of the Job.
    #[arg(long, value_name = "NAME", default_value = "action-executor", value_parser = object_name)]
    pub service_account: ObjectName,
    /// The ConfigMap in the Job's namespace with the policy, in the key policy.yaml.
    #[arg(long, value_name = "NAME", default_value = "action-executor-policy", value_parser = object_name)]
    pub policy_config_map: ObjectName,
    /// Create the Job instead of printing it; a Job of the same request that exists is used.
    #[arg(long)]
    pub apply: bool,
    /// Wait until the Job ends, print its answer, and exit with its status.
    #[arg(long, requires = "apply")]
    pub wait: bool,
    /// The output format of the Job (text is YAML) or of the answer.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// The address to listen on [default: 127.0.0.1 with port PORT or 8000].
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub bind: Option<SocketAddr>,
    /// Allow an address that other hosts can reach although authentication is off.
    #[arg(long)]
    pub insecure_open: bool,
    /// What answers a request that has been read.
    #[arg(long, value_enum, default_value_t = Engine::Hyper)]
    pub engine: Engine,
    /// The kubeconfig context to use.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Arguments of `mcp`.
#[derive(Args, Debug)]
pub struct McpArgs {
    /// The kubeconfig context to use.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// What answers a request that has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The dispatcher, in process.
    Hyper,
    /// The same dispatcher, through tiny_http and a private socket in the temporary directory.
    TinyHttp,
}

/// Arguments of `healthcheck`.
#[derive(Args, Debug)]
pub struct HealthcheckArgs {
    /// The URL [default: http://127.0.0.1:PORT/api/v1/healthz, or https with ACTION_EXECUTOR_TLS_CERTIFICATE].
    #[arg(long, value_name = "http[s]://HOST:PORT/PATH")]
    pub url: Option<String>,
    /// With https, a PEM file with the server's certificate or its authority; not needed for a server on this
    /// machine.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// The manual page, in roff.
///
/// # Errors
/// [`Code::Internal`] if it cannot be written.
pub fn manual() -> Result<String, ActionError> {
    let mut page = Vec::new();
    let written = clap_mangen::Man::new(command()).render(&mut page);
    written.map_err(|error| ActionError::new(Code::Internal, error.to_string()))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// The format of an answer.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OutputFormat {
    /// One line of JSON.
    Json,
    /// Indented JSON.
    Pretty,
    /// Sentences.
    Text,
}

/// The tables of the reference.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ReferenceOf {
    /// The actions and the permissions that each one needs.
    Actions,
    /// The parameters of the actions.
    Parameters,
    /// The error codes.
    Errors,
    /// What to do about each error.
    Advice,
    /// The exit statuses.
    ExitStatuses,
    /// The settings.
    Settings,
    /// The metrics of a server.
    Metrics,
    /// The routes of a server.
    Routes,
    /// The headers that are read.
    Headers,
}

/// The documents that have a schema.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SchemaOf {
    /// A request.
    Request,
    /// An answer.
    Answer,
    /// A problem document (RFC 9457).
    Problem,
    /// A policy.
    Policy,
    /// The file of callers' keys.
    Keys,
    /// The server, as OpenAPI 3.1.
    #[value(name = "openapi")]
    OpenApi,
}
