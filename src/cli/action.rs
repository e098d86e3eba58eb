//! One subcommand per action, from its descriptor and the schema of its parameters: flags and arguments to a request.
//!
//! The request is JSON, as from every other client, and the parser of all requests checks it. So a flag is read by its
//! type alone. Must not name an action.

use std::collections::BTreeSet;

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, builder::PossibleValuesParser,
};
use serde_json::{Map, Value, json};

use crate::{
    actions::{
        ActionKind,
        summary::{compact, first_sentence},
    },
    cli::{ClusterArgs, OnceArgs, OutputFormat},
    contract::response::Target,
};

/// The argument that names the target.
pub(crate) const TARGET: &str = "target";

/// The parameter that chooses several targets instead.
const SELECTOR: &str = "selector";

/// What the command line says about one action.
#[derive(Debug)]
pub struct ActionArgs {
    /// The action.
    pub kind: ActionKind,
    /// The parameters that were given.
    pub parameters: Map<String, Value>,
    /// What all actions have.
    pub common: CommonArgs,
}

/// The flags that all actions have.
#[derive(Args, Debug)]
pub struct CommonArgs {
    /// Execute the action; without this flag it is only simulated.
    #[arg(long)]
    pub execute: bool,
    /// With --execute on a terminal, do not ask for a confirmation.
    #[arg(short, long)]
    pub yes: bool,
    /// Wait until the effect is complete.
    #[arg(long)]
    pub wait: bool,
    /// The limit of the whole action, including the wait.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// With --wait, observe the target for this time once the effect is complete; fail if it does not stay healthy.
    #[arg(long, value_name = "SECONDS")]
    pub observe_seconds: Option<u64>,
    /// The idempotency key: the same one for a retry.
    #[arg(long)]
    pub id: Option<String>,
    /// The reason, for the audit trail.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// The person or program that sends the request, for the audit trail.
    #[arg(long, value_name = "NAME")]
    pub requester: Option<String>,
    /// Act only on the object with this uid.
    #[arg(long, value_name = "UID")]
    pub if_uid: Option<String>,
    /// Print the request as JSON, and do nothing.
    #[arg(long)]
    pub print_request: bool,
    /// The output format.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// If another attempt at the same request is running, wait for its answer.
    #[arg(long)]
    pub join: bool,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// The name of an action's subcommand, for example `restart-k8s`.
pub(crate) fn name(kind: ActionKind) -> String {
    kind.name().replace('_', "-")
}

/// The action whose subcommand has this name.
fn named(subcommand: &str) -> Option<ActionKind> {
    ActionKind::ALL.into_iter().find(|kind| name(*kind) == subcommand)
}

/// An object of the kind on which the action acts, after `before`, which a person wrote before the name; none if the
/// action does not act on such a kind.
pub(crate) fn example_target(kind: ActionKind, before: &str) -> Option<Target> {
    let mut parameters: Value = serde_json::from_str(kind.descriptor().example).ok()?;
    let all = parameters_of(kind);
    if let Some(named) = kinds(&all).iter().find(|it| is_kind(it, before)) {
        parameters["kind"] = named.as_str().into();
    }
    let target = kind.parse(&parameters.to_string()).ok()?.target();
    (before.is_empty() || is_kind(&target.kind, before)).then_some(target)
}

/// The subcommand of an action, without its arguments: [`with_arguments`] has them. The help of the program lists the
/// actions apart from its own commands.
pub(crate) fn command(kind: ActionKind) -> Command {
    let descriptor = kind.descriptor();
    let names = [descriptor.name].into_iter().chain(descriptor.aliases.iter().copied());
    let names = names.flat_map(|it| [it.to_owned(), it.replace('_', "-")]);
    // A set: a name without an underscore would be there twice.
    let mut aliases: BTreeSet<String> = names.collect();
    aliases.remove(&name(kind));
    described(kind, Command::new(name(kind)).aliases(aliases).hide(true))
}

/// The same subcommand with its arguments, which are read from the schema of the parameters: work that each start of
/// the program would do for all actions.
pub(crate) fn with_arguments(command: Command) -> Command {
    let Some(kind) = named(command.get_name()) else { return command };
    let parameters = parameters_of(kind);
    let has_selector = parameters.iter().any(|it| matches!(it.form, Form::Selector));
    let arguments: Vec<_> = parameters
        .iter()
        .map(|parameter| parameter.argument(kinds(&parameters), has_selector))
        .collect();
    // The description of the common flags replaces that of the action.
    described(kind, CommonArgs::augment_args(command.args(arguments)))
}

fn described(kind: ActionKind, command: Command) -> Command {
    let description = kind.descriptor().description;
    let about = first_sentence(description).trim_end_matches('.').to_owned();
    command.about(about).long_about(description)
}

/// What each action does, one line each.
pub(crate) fn list() -> String {
    let line = |kind: ActionKind| {
        let what = first_sentence(kind.descriptor().description).trim_end_matches('.');
        format!("  {:<22} {what}\n", name(kind))
    };
    ActionKind::ALL.into_iter().map(line).collect()
}

/// What these arguments say, if they are of an action.
pub(crate) fn read(matches: &ArgMatches) -> Option<Result<ActionArgs, clap::Error>> {
    let (given, matches) = matches.subcommand()?;
    let kind = named(given)?;
    let read = || {
        let common = CommonArgs::from_arg_matches(matches)?;
        refuse_contradictions(kind, matches)?;
        let parameters = parameters(kind, matches);
        refuse_another_kind(kind, matches, &parameters)?;
        Ok(ActionArgs { kind, parameters, common })
    };
    Some(read())
}

/// Refuses what a request could say only twice: a key of a map, or the kind.
fn refuse_contradictions(kind: ActionKind, matches: &ArgMatches) -> Result<(), clap::Error> {
    for parameter in parameters_of(kind).iter().filter(|it| matches!(it.form, Form::Map)) {
        let (flag, mut keys) = (parameter.flag(), BTreeSet::new());
        for entry in matches.get_many::<String>(&parameter.name).into_iter().flatten() {
            let Some((key, _)) = entry.split_once('=') else {
                return Err(invalid(&format!("--{flag}: '{entry}' is not KEY=VALUE")));
            };
            if !keys.insert(key) {
                return Err(invalid(&format!("--{flag}: the key '{key}' is given more than once")));
            }
        }
    }
    let before = matches.get_one::<String>(TARGET).and_then(|target| target.split_once('/'));
    let flag = matches.try_get_one::<String>("kind").ok().flatten();
    match before.zip(flag) {
        Some(((before, _), flag)) => {
            let what =
                format!("the kind is given twice, as '{before}' and as {flag}: leave out one");
            Err(invalid(&what))
        }
        None => Ok(()),
    }
}

fn invalid(what: &str) -> clap::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{what}\n"))
}

/// Refuses `statefulset/web` where the action is for a Deployment: another object of that name would be meant.
fn refuse_another_kind(
    kind: ActionKind,
    matches: &ArgMatches,
    parameters: &Map<String, Value>,
) -> Result<(), clap::Error> {
    let named = matches.get_one::<String>(TARGET).and_then(|target| target.split_once('/'));
    let Some((before, _)) = named.filter(|_| !parameters.contains_key("kind")) else {
        return Ok(());
    };
    // Parameters that are wrong are refused with the request.
    let action = kind.parse(&Value::Object(parameters.clone()).to_string());
    let target = action.map(|action| action.target().kind).unwrap_or_default();
    if target.is_empty() || is_kind(&target, before) {
        return Ok(());
    }
    let what =
        format!("{} acts on a {target}, not on '{before}': write the name alone", name(kind));
    Err(invalid(&what))
}

/// A parameter, and how it is written on the command line.
struct Parameter {
    /// As in a request.
    name: String,
    required: bool,
    description: String,
    form: Form,
}

enum Form {
    /// The argument that names the target.
    Target,
    /// The selector that replaces it.
    Selector,
    Text,
    OneOf(Vec<String>),
    Integer,
    /// A flag that may be set to false.
    Flag,
    /// `key=value`, repeated.
    Map,
    /// Texts, repeated.
    List,
    /// A list of objects, in JSON.
    Json,
}

/// The parameters of an action. The first text that is required, or that a selector replaces, names the target.
fn parameters_of(kind: ActionKind) -> Vec<Parameter> {
    let schema = compact(&kind.whole_schema().to_value());
    let required = |name: &str| {
        schema["required"].as_array().is_some_and(|all| all.iter().any(|it| it == name))
    };
    let properties = schema["properties"].as_object().into_iter().flatten();
    let has_selector = schema["properties"].get(SELECTOR).is_some();
    let mut has_target = false;
    let mut all: Vec<_> = properties
        .map(|(name, property)| {
            let values = property["enum"].as_array().map(|values| {
                values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
            });
            let required = required(name);
            let form = match (property["type"].as_str().unwrap_or_default(), values) {
                (_, Some(values)) => Form::OneOf(values),
                ("string", _) if (required || has_selector) && !has_target => {
                    has_target = true;
                    Form::Target
                }
                ("integer", _) => Form::Integer,
                ("boolean", _) => Form::Flag,
                ("object", _) => Form::Map,
                ("array", _) if property.get("items").is_some() => Form::Json,
                ("array", _) => Form::List,
                _ if *name == SELECTOR => Form::Selector,
                _ => Form::Text,
            };
            let description = property["description"].as_str().unwrap_or_default().to_owned();
            Parameter { name: name.clone(), required, description, form }
        })
        .collect();
    // The namespace is last, as in kubectl's help it is with the flags of all commands.
    all.sort_by_key(|parameter| parameter.name == "namespace");
    all
}

impl Parameter {
    fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    fn argument(&self, kinds: &[String], has_selector: bool) -> Arg {
        let help = self.description.trim_end_matches('.').to_owned();
        let flag = Arg::new(self.name.clone()).long(self.flag()).help(help.clone());
        let flag = flag.required(self.required);
        match &self.form {
            Form::Target => {
                let (value, help) = match kinds {
                    [] => ("NAME", help),
                    kinds => (
                        "[KIND/]NAME",
                        format!("{help}; KIND is one of {}", lower(kinds).join(", ")),
                    ),
                };
                let target = Arg::new(TARGET).value_name(value).help(help);
                if has_selector {
                    target.required_unless_present(SELECTOR)
                } else {
                    target.required(true)
                }
            }
            Form::Selector => flag.short('l').value_name("SELECTOR").conflicts_with(TARGET),
            Form::Text if self.name == "namespace" => {
                flag.short('n').value_name("NAME").help("The namespace [default: the context's]")
            }
            Form::Text => flag.value_name("TEXT"),
            Form::OneOf(values) => flag
                .value_name("VALUE")
                .value_parser(PossibleValuesParser::new(values))
                .ignore_case(true),
            Form::Integer => flag.value_name("NUMBER").allow_negative_numbers(true),
            Form::Flag => flag
                .value_name("true|false")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(["true", "false"]),
            Form::Map => flag.value_name("KEY=VALUE").action(ArgAction::Append),
            Form::List => flag.value_name("TEXT").action(ArgAction::Append),
            Form::Json => flag.value_name("JSON"),
        }
    }

    /// The value that was given, as the parser of requests reads it; what has another type is left to that parser,
    /// which says so.
    fn value(&self, matches: &ArgMatches) -> Option<Value> {
        let id = if matches!(self.form, Form::Target) { TARGET } else { &self.name };
        let text = || matches.get_one::<String>(id);
        let texts = || matches.get_many::<String>(id).into_iter().flatten();
        let or_text = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        match &self.form {
            Form::Target => text().map(|text| json!(text.rsplit('/').next().unwrap_or_default())),
            Form::Text | Form::Selector => text().map(|text| json!(text)),
            Form::OneOf(values) => text().map(|text| {
                let value = values.iter().find(|value| value.eq_ignore_ascii_case(text));
                json!(value.unwrap_or(text))
            }),
            Form::Flag => text().map(|text| json!(text == "true")),
            Form::Integer | Form::Json => text().map(|text| or_text(text)),
            Form::Map => texts().next().is_some().then(|| {
                let pairs = texts().map(|text| {
                    let (key, value) = text.split_once('=').unwrap_or((text, ""));
                    (key.to_owned(), json!(value))
                });
                Value::Object(pairs.collect())
            }),
            Form::List => {
                texts().next().is_some().then(|| texts().map(|text| json!(text)).collect())
            }
        }
    }
}

/// The kinds of target of an action that has several.
fn kinds(parameters: &[Parameter]) -> &[String] {
    let kind = parameters.iter().find(|parameter| parameter.name == "kind");
    match kind.map(|kind| &kind.form) {
        Some(Form::OneOf(values)) => values,
        _ => &[],
    }
}

fn lower(kinds: &[String]) -> Vec<String> {
    kinds.iter().map(|kind| kind.to_ascii_lowercase()).collect()
}

fn parameters(kind: ActionKind, matches: &ArgMatches) -> Map<String, Value> {
    let all = parameters_of(kind);
    let given = all.iter().filter_map(|it| Some((it.name.clone(), it.value(matches)?)));
    let mut given: Map<_, _> = given.collect();
    // As in kubectl, the kind may stand before the name.
    let named = matches.get_one::<String>(TARGET).and_then(|target| target.split_once('/'));
    if let Some((before, _)) = named {
        let kinds = kinds(&all);
        let known = kinds.iter().find(|kind| is_kind(kind, before));
        let kind = known.map_or_else(|| before.to_owned(), Clone::clone);
        if !kinds.is_empty() {
            given.insert("kind".to_owned(), kind.into());
        }
    }
    given
}

/// Whether kubectl calls the kind like this.
fn is_kind(kind: &str, given: &str) -> bool {
    let short = match kind {
        "Deployment" => "deploy",
        "StatefulSet" => "sts",
        "DaemonSet" => "ds",
        "ReplicaSet" => "rs",
        "CronJob" => "cj",
        "Pod" => "po",
        "Node" => "no",
        "Namespace" => "ns",
        "Job" => "job",
        "PersistentVolumeClaim" => "pvc",
        "HorizontalPodAutoscaler" => "hpa",
        _ => "",
    };
    let given = given.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let kind = kind.to_ascii_lowercase();
    given == kind || given == format!("{kind}s") || (!short.is_empty() && given == short)
}

impl ActionArgs {
    /// The request; `simulate` whatever the flags say.
    pub(crate) fn request(&self, simulate: bool) -> Value {
        let CommonArgs {
            wait,
            timeout,
            observe_seconds,
            id,
            reason,
            requester,
            if_uid,
            cluster: ClusterArgs { cluster, .. },
            ..
        } = &self.common;
        let mut request = json!({
            "type": self.kind.name(), "parameters": self.parameters, "simulate": simulate,
        });
        let optional = [
            ("id", id.as_ref().map(|id| json!(id))),
            ("reason", reason.as_ref().map(|reason| json!(reason))),
            ("requester", requester.as_ref().map(|requester| json!(requester))),
            ("wait", wait.then_some(json!(true))),
            ("timeout_seconds", timeout.map(|seconds| json!(seconds))),
            ("observe_seconds", observe_seconds.map(|seconds| json!(seconds))),
            ("cluster", cluster.as_deref().map(|name| json!(name))),
            ("precondition", if_uid.as_ref().map(|uid| json!({ "uid": uid }))),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                request[name] = value;
            }
        }
        request
    }

    /// The arguments that a single request has.
    pub(crate) fn once(&self) -> OnceArgs {
        let CommonArgs { output, join, cluster, .. } = &self.common;
        OnceArgs { output: *output, join: *join, cluster: cluster.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actions::request::ActionRequest, cli};

    fn read(line: &[&str]) -> Result<Value, clap::Error> {
        let matches =
            cli::command().try_get_matches_from(["action-executor"].iter().chain(line))?;
        let args = super::read(&matches).expect("is an action")?;
        Ok(args.request(!args.common.execute))
    }

    /// The command line of these parameters.
    fn line(kind: ActionKind, parameters: &Value) -> Vec<String> {
        let mut line = vec![name(kind)];
        for parameter in parameters_of(kind) {
            let Some(value) = parameters.get(&parameter.name) else { continue };
            let text =
                |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let flag = format!("--{}", parameter.flag());
            match &parameter.form {
                Form::Target => line.push(text(value)),
                Form::Flag => line.push(format!("{flag}={value}")),
                Form::Map => {
                    for (key, value) in value.as_object().expect("is a map") {
                        line.extend([flag.clone(), format!("{key}={}", text(value))]);
                    }
                }
                Form::List => {
                    for value in value.as_array().expect("is a list") {
                        line.extend([flag.clone(), text(value)]);
                    }
                }
                _ => line.extend([flag, text(value)]),
            }
        }
        line
    }

    #[test]
    fn the_flags_of_each_example_make_the_request_that_it_is() {
        for kind in ActionKind::ALL {
            let example: Value = serde_json::from_str(kind.descriptor().example).expect("is JSON");
            let line = line(kind, &example);
            let line: Vec<_> = line.iter().map(String::as_str).collect();
            let request = read(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
            assert_eq!(request["parameters"], example, "{line:?}");
            assert_eq!(request["simulate"], true);
            let parsed = ActionRequest::parse(request.to_string().as_bytes());
            assert_eq!(parsed.expect("is accepted").action.kind(), kind);
        }
    }

    #[test]
    fn each_action_has_a_target_argument_and_the_subcommands_are_consistent() {
        for kind in ActionKind::ALL {
            let targets =
                parameters_of(kind).into_iter().filter(|it| matches!(it.form, Form::Target));
            assert_eq!(targets.count(), 1, "{}", kind.name());
        }
        cli::command().debug_assert();
    }

    #[test]
    fn the_kind_may_stand_before_the_name_as_kubectl_writes_it() {
        for target in ["statefulset/db", "sts/db", "StatefulSet/db", "statefulsets.apps/db"] {
            let request =
                read(&["scale", target, "--replicas", "3", "-n", "shop"]).expect("is read");
            let expected =
                json!({ "kind": "StatefulSet", "name": "db", "namespace": "shop", "replicas": 3 });
            assert_eq!(request["parameters"], expected, "{target}");
        }
        let flag = read(&["scale", "db", "--kind", "statefulset", "--by=-1"]).expect("is read");
        assert_eq!(flag["parameters"], json!({ "kind": "StatefulSet", "name": "db", "by": -1 }));
        // What is no kind of the action is left to the parser, which names those that are.
        let wrong = read(&["scale", "job/db", "--replicas", "3"]).expect("is read");
        assert!(ActionRequest::parse(wrong.to_string().as_bytes()).is_err());
    }

    #[test]
    fn a_real_action_needs_the_flag_and_the_envelope_has_what_is_given() {
        let line = [
            "restart-k8s",
            "web",
            "-n",
            "shop",
            "--execute",
            "--wait",
            "--timeout",
            "60",
            "--id",
            "a-7",
            "--reason",
            "p99",
            "--if-uid",
            "u1",
            "--rollback-on-failure",
        ];
        let request = read(&line).expect("is read");
        assert_eq!(
            request,
            json!({
                "type": "restart_k8s",
                "parameters": { "deployment": "web", "namespace": "shop", "rollback_on_failure": true },
                "simulate": false, "wait": true, "timeout_seconds": 60, "id": "a-7", "reason": "p99",
                "precondition": { "uid": "u1" },
            })
        );
        assert_eq!(read(&["restart_deployment", "web"]).expect("is read")["simulate"], true);
    }

    #[test]
    fn the_help_of_an_action_has_its_description_and_its_flags() {
        let help = |kind: ActionKind| with_arguments(command(kind)).render_long_help().to_string();
        for kind in ActionKind::ALL {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            let (help, description) = (words(&help(kind)), words(kind.descriptor().description));
            assert!(help.starts_with(&description), "{help}");
            assert!(help.contains("--execute"), "{help}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_refused_by_the_parser_of_requests() {
        let request = read(&["scale", "web", "--replicas", "many"]).expect("is read");
        let error = ActionRequest::parse(request.to_string().as_bytes()).expect_err("is refused");
        assert!(error.detail.starts_with("parameters.replicas: expected"), "{}", error.detail);
        assert!(read(&["scale"]).is_err());
        assert!(read(&["restart-k8s", "statefulset/web"]).is_err());
        for twice in [
            &["scale", "sts/db", "--kind", "Deployment", "--replicas", "1"][..],
            &["label", "web", "--set", "a=1", "--set", "a=2"],
            &["label", "web", "--set", "team"],
        ] {
            assert!(read(twice).is_err(), "{twice:?}");
        }
        let drain =
            |flag: &str| read(&["drain", "n1", flag]).expect("is read")["parameters"].clone();
        assert_eq!(drain("--ignore-daemonsets=false")["ignore_daemonsets"], false);
        assert_eq!(drain("--ignore-daemonsets")["ignore_daemonsets"], true);
        assert!(read(&["restart-k8s", "deploy/web"]).is_ok());
        assert!(read(&["scale", "web", "--unknown"]).is_err());
    }
}
