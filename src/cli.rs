//! The command line: what can be asked of the program, and its help.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::contract::{
    error::{ActionError, Code},
    names::{Namespace, ObjectName, ServiceAccount},
};

const EXAMPLES: &str = r#"Examples:
  # What would happen? (simulation is the default)
  echo '{"type":"restart_k8s","parameters":{"deployment":"web","namespace":"shop"}}' | action-executor

  # Do it, and stay until the rollout is complete
  action-executor run --output text <<< '{"type":"restart_k8s","parameters":{"deployment":"web","namespace":"shop"},"simulate":false,"wait":true}'

  # The same from the environment, as a Kubernetes Job carries it
  ACTION_TYPE=restart_k8s ACTION_PARAM_DEPLOYMENT=web ACTION_SIMULATE=false action-executor < /dev/null

  # What does the policy say of it, rule by rule?
  action-executor policy check policy.yaml request.json

  # Have the cluster do it, as a Job, and bring back the answer
  action-executor job request.json --apply --wait

  # Serve it over HTTP
  action-executor serve --bind 127.0.0.1:8000

Exit status: 0 done, 64 usage, 65 bad request, 69 refused by the cluster's state, 70 bug,
75 try again, 77 not permitted, 78 configuration.

Environment: KUBECONFIG, ACTION_REQUEST or ACTION_TYPE and ACTION_*, ACTION_ID,
ACTION_EXECUTOR_POLICY, ACTION_EXECUTOR_REPLAY_WINDOW_SECONDS, ACTION_EXECUTOR_DEADLINE_SECONDS,
ACTION_EXECUTOR_LOG, PORT, TERMINATION_LOG, NO_COLOR; for `serve` ACTION_EXECUTOR_KEYS,
ACTION_EXECUTOR_TOKEN_AUDIENCE, ACTION_EXECUTOR_TLS_CERTIFICATE, ACTION_EXECUTOR_TLS_KEY,
ACTION_EXECUTOR_TLS_CLIENT_CA, ACTION_EXECUTOR_HOSTS, ACTION_EXECUTOR_CALLER_RATE,
ACTION_EXECUTOR_CALLER_BURST and ACTION_EXECUTOR_MAX_ACTIONS."#;

/// Does one checked action on a Kubernetes cluster, at most once, and answers what happened.
///
/// Without a command, reads one request from standard input or from ACTION_ variables.
#[derive(Debug, Parser)]
#[command(name = "action-executor", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do; without a command, one request.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How the single request is answered.
    #[command(flatten)]
    pub once: OnceArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Carry out one request.
    Run(RunArgs),
    /// Serve requests over HTTP.
    Serve(ServeArgs),
    /// Have the cluster carry out one request, as a Job.
    ///
    /// Prints the Job unless --apply is given. The Job's name comes from the request's id, so that the
    /// same request is one Job, and however often its pod is started the action is done once.
    Job(JobArgs),
    /// Check a policy, or print what is to match it.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Print the Roles that the executor needs, no wider than the policy's actions.
    Rbac(RbacArgs),
    /// Ask a server whether it is well; exit status 0 if it is.
    Healthcheck(HealthcheckArgs),
    /// List what was done, by whom and why.
    History(HistoryArgs),
    /// Print the JSON Schema (2020-12) of the contract, or its OpenAPI document.
    Schema {
        /// Which document.
        #[arg(value_enum, default_value_t = SchemaOf::Request)]
        of: SchemaOf,
    },
    /// Print what makes a shell complete the command line.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Print the manual page (roff).
    Man,
}

/// What can be asked of a policy.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say whether a policy is valid and what it comes to, or what it says of a request, rule by rule.
    ///
    /// Exit status: 0 allowed, 75 after an approval, 77 denied, 65 bad request, 78 bad policy.
    Check(CheckArgs),
    /// Print the ValidatingAdmissionPolicies by which the API server denies the same.
    Admission(AdmissionArgs),
}

/// Arguments of `policy check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The policy's file.
    pub policy: PathBuf,
    /// The request's file; `-` for standard input.
    pub request: Option<PathBuf>,
    /// The target's labels, as if it had been read.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// How to write the verdict.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// Arguments of `policy admission`.
#[derive(Args, Debug)]
pub struct AdmissionArgs {
    /// The policy's file [default: the shipped policy].
    pub policy: Option<PathBuf>,
    /// Whom it is about.
    #[arg(long, value_name = "NAMESPACE:NAME")]
    pub service_account: ServiceAccount,
}

/// Arguments of `rbac`.
#[derive(Args, Debug)]
pub struct RbacArgs {
    /// The policy's file [default: the shipped policy].
    pub policy: Option<PathBuf>,
    /// Whom it is for.
    #[arg(long, value_name = "NAMESPACE:NAME")]
    pub service_account: ServiceAccount,
    /// A namespace in which it acts; may be given again [default: the service account's].
    #[arg(short, long, value_name = "NAME", value_parser = namespace)]
    pub namespace: Vec<Namespace>,
    /// Print too what the actions on nodes need, in the whole cluster.
    #[arg(long)]
    pub nodes: bool,
    /// Print too what a server needs to tell of what was done.
    #[arg(long)]
    pub history: bool,
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
    /// Only what was done to this target, as deployment/web or web.
    #[arg(long, value_name = "[KIND/]NAME")]
    pub target: Option<String>,
    /// How to write it; json is one line for each.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// The kubeconfig context to use.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn namespace(text: &str) -> Result<Namespace, String> {
    text.to_owned().try_into()
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    text.to_owned().try_into()
}

/// Arguments of a single request.
#[derive(Args, Debug)]
pub struct OnceArgs {
    /// How to write the answer.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Json)]
    pub output: OutputFormat,
    /// If another try of the same request is under way, wait for its answer.
    #[arg(long)]
    pub join: bool,
    /// The kubeconfig context to use.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Arguments of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The request's file; `-` for standard input.
    pub file: Option<PathBuf>,
    /// How the request is answered.
    #[command(flatten)]
    pub once: OnceArgs,
}

/// Arguments of `job`.
#[derive(Args, Debug)]
pub struct JobArgs {
    /// The request's file; `-` for standard input.
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// The image that the Job runs.
    #[arg(long, value_name = "IMAGE", default_value = concat!("action-executor:", env!("CARGO_PKG_VERSION")))]
    pub image: String,
    /// The namespace of the Job [default: the target's].
    #[arg(short, long, value_name = "NAME", value_parser = namespace)]
    pub namespace: Option<Namespace>,
    /// The service account that the Job runs as.
    #[arg(long, value_name = "NAME", default_value = "action-executor", value_parser = object_name)]
    pub service_account: ObjectName,
    /// The ConfigMap in the Job's namespace that holds the policy, as policy.yaml.
    #[arg(long, value_name = "NAME", default_value = "action-executor-policy", value_parser = object_name)]
    pub policy_config_map: ObjectName,
    /// Make the Job instead of printing it; one that is there for the same request is as good.
    #[arg(long)]
    pub apply: bool,
    /// Stay until the Job has ended, print its answer, and exit as it did.
    #[arg(long, requires = "apply")]
    pub wait: bool,
    /// How to write the Job (text is YAML) or the answer.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// The kubeconfig context to use.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Arguments of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// The address to listen on [default: 127.0.0.1 with port PORT or 8000].
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub bind: Option<SocketAddr>,
    /// Allow an address that others can reach although callers are not asked who they are.
    #[arg(long)]
    pub insecure_open: bool,
    /// What answers a request that has been read.
    #[arg(long, value_enum, default_value_t = Engine::Hyper)]
    pub engine: Engine,
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
    /// What to ask [default: http://127.0.0.1:PORT/api/v1/healthz, or https with ACTION_EXECUTOR_TLS_CERTIFICATE].
    #[arg(long, value_name = "http[s]://HOST:PORT/PATH")]
    pub url: Option<String>,
    /// With https, the certificates of which the server's is one, or their authorities, in PEM; a server on
    /// this machine may have any.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// The manual page of the program and its commands, in roff.
///
/// # Errors
/// [`Code::Internal`] if it cannot be written, which would be a bug.
pub fn manual() -> Result<String, ActionError> {
    let mut page = Vec::new();
    let written = clap_mangen::Man::new(Cli::command()).render(&mut page);
    written.map_err(|error| ActionError::new(Code::Internal, error.to_string()))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// What makes a shell complete the command line.
#[must_use]
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "action-executor", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OutputFormat {
    /// One line of JSON.
    Json,
    /// Indented JSON.
    Pretty,
    /// Sentences.
    Text,
}

/// The documents of the contract.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SchemaOf {
    /// What is sent.
    Request,
    /// What comes back when it was carried out.
    Answer,
    /// What comes back when it was not (RFC 9457).
    Problem,
    /// What a person allows.
    Policy,
    /// Who holds keys to a server.
    Keys,
    /// What a server answers, as OpenAPI 3.1.
    #[value(name = "openapi")]
    OpenApi,
}
