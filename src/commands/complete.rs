//! Completion in a shell: of commands and flags, and of names from the cluster, as that of kubectl. What cannot be read
//! completes to nothing. kubectl asks too, by the name of the program, where it runs it as a plugin.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, Write},
    path::Path,
    process,
    time::Duration,
};

use clap::{Command, CommandFactory};
use clap_complete::{
    ArgValueCompleter, CompleteEnv, CompletionCandidate, Shell, engine, env::Shells,
};
use kube::api::{ApiResource, GroupVersionKind};
use tokio::time::{Instant, timeout};

use crate::{
    actions::ActionKind,
    cli::{Cli, action},
    commands::run,
    config::Settings,
    contract::{
        error::{ActionError, Code},
        response::Target,
    },
    k8s::api::{connect::connect_unattended, kubeconfig},
};

/// The variable by which the shell's script asks for candidates. Its name is ours alone: where another program's
/// variable is set, requests are executed all the same.
const VARIABLE: &str = "ACTION_EXECUTOR_COMPLETE";

/// The name of the program that kubectl asks for the completion of `kubectl action-executor`
/// (`k8s.io/kubectl/pkg/cmd/plugin/plugin_completion.go`).
const ASKED_BY_KUBECTL: &str = "kubectl_complete-action_executor";

/// What kubectl's shell script is to do with the candidates (Cobra's `ShellCompDirective`): to offer no files instead,
/// and to leave the cursor at the end of the word.
const NO_FILES: u8 = 4;
const NO_SPACE: u8 = 2;

/// A person waits for the candidates.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The most names that are offered.
const MAX_NAMES: u32 = 500;

/// Prints candidates and ends the process, if that is what the shell's script or kubectl asks for.
pub fn complete_if_asked() {
    let words: Vec<_> = env::args_os().collect();
    let program = words.first().map(Path::new).and_then(Path::file_name);
    if program == Some(OsStr::new(ASKED_BY_KUBECTL)) {
        // An error means that nobody reads: it is ignored.
        let _ = io::stdout().write_all(for_kubectl(words).as_bytes());
        process::exit(0);
    }
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// The candidates for the last word, one a line with its description after a tab, and at the end what to do with them.
fn for_kubectl(words: Vec<OsString>) -> String {
    // The first word is the program.
    let Some(last @ 1..) = words.len().checked_sub(1) else { return format!(":{NO_FILES}\n") };
    let found = engine::complete(&mut command(), words, last, env::current_dir().ok().as_deref());
    let candidates = found.unwrap_or_default();
    let lines = candidates.iter().filter_map(line_of);
    let lines: Vec<_> = lines.collect();
    let goes_on =
        |line: &String| line.split('\t').next().is_some_and(|it| it.ends_with(['/', '=', ':']));
    let directive = match lines.as_slice() {
        [only] if goes_on(only) => NO_FILES | NO_SPACE,
        _ => NO_FILES,
    };
    lines.into_iter().map(|line| line + "\n").chain([format!(":{directive}\n")]).collect()
}

/// A candidate with its description; none for one that would be several lines.
fn line_of(candidate: &CompletionCandidate) -> Option<String> {
    let value = candidate.get_value().to_str()?;
    if value.contains(char::is_control) {
        return None;
    }
    let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
    match help.lines().next() {
        Some(help) => Some(format!("{value}\t{help}")),
        None => Some(value.to_owned()),
    }
}

/// The script that a shell has to source.
///
/// # Errors
/// [`Code::Usage`] if the shell is not known.
pub fn script(shell: Shell) -> Result<String, ActionError> {
    let (shells, name) = (Shells::builtins(), shell.to_string());
    let mut script = Vec::new();
    let program = "action-executor";
    let written = shells.completer(&name).map(|shell| {
        shell.write_registration(VARIABLE, "action_executor", program, program, &mut script)
    });
    match written {
        Some(Ok(())) => Ok(String::from_utf8_lossy(&script).into_owned()),
        _ => Err(ActionError::new(Code::Usage, format!("no completions for {name}"))),
    }
}

/// The whole command line, with the names of objects, namespaces and contexts.
fn command() -> Command {
    let of_actions = ActionKind::ALL
        .into_iter()
        .map(|kind| with_names(action::with_arguments(action::command(kind)), kind));
    Cli::command().subcommands(of_actions)
}

fn with_names(command: Command, kind: ActionKind) -> Command {
    let has = |name: &str| command.get_arguments().any(|it| it.get_id() == name);
    let (target, namespace) = (has(action::TARGET), has("namespace"));
    let mut command = command.mut_arg("context", |it| it.add(ArgValueCompleter::new(contexts)));
    if target {
        let targets = move |current: &OsStr| targets(kind, current);
        command = command.mut_arg(action::TARGET, |it| it.add(ArgValueCompleter::new(targets)));
    }
    if namespace {
        command = command.mut_arg("namespace", |it| it.add(ArgValueCompleter::new(namespaces)));
    }
    command
}

fn targets(kind: ActionKind, current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let (prefix, start) = match current.rsplit_once('/') {
        Some((kind, start)) => (format!("{kind}/"), start),
        None => (String::new(), current),
    };
    let Some(target) = action::example_target(kind, prefix.trim_end_matches('/')) else {
        return Vec::new();
    };
    let words: Vec<_> = env::args_os().collect();
    if is_of_a_list(&words) {
        return Vec::new();
    }
    let names = names(&target, flag(&words, "namespace", Some('n')), context(&words));
    candidates(names, start).map(|name| CompletionCandidate::new(prefix.clone() + &name)).collect()
}

fn namespaces(current: &OsStr) -> Vec<CompletionCandidate> {
    let words: Vec<_> = env::args_os().collect();
    if is_of_a_list(&words) {
        return Vec::new();
    }
    let names = names(&Target::named("v1", "Namespace", "", ""), None, context(&words));
    let start = current.to_str().unwrap_or_default();
    candidates(names, start).map(CompletionCandidate::new).collect()
}

fn contexts(current: &OsStr) -> Vec<CompletionCandidate> {
    let config = kubeconfig::find().ok().flatten().unwrap_or_default();
    let names = config.contexts.into_iter().map(|it| it.name).collect();
    let start = current.to_str().unwrap_or_default();
    candidates(names, start).map(CompletionCandidate::new).collect()
}

fn candidates(names: Vec<String>, start: &str) -> impl Iterator<Item = String> {
    names.into_iter().filter(move |name| name.starts_with(start))
}

/// The value of a flag among the words of the command line so far.
fn flag(words: &[OsString], name: &str, short: Option<char>) -> Option<String> {
    let words: Vec<_> = words.iter().filter_map(|word| word.to_str()).collect();
    let long = format!("--{name}");
    let short = short.map(|short| format!("-{short}"));
    let value = |(at, word): (usize, &&str)| {
        let is_flag = *word == long || Some(*word) == short.as_deref();
        let next = || words.get(at + 1).map(|it| (*it).to_owned());
        let inline = || Some(word.strip_prefix(&long)?.strip_prefix('=')?.to_owned());
        if is_flag { next() } else { inline() }
    };
    words.iter().enumerate().find_map(value).filter(|value| !value.is_empty())
}

/// Where clusters are listed by name, the kubeconfig's context may be another one than the command will act on.
fn is_of_a_list(words: &[OsString]) -> bool {
    let is_set = Settings::from_env().map_or(true, |settings| settings.clusters.is_some());
    is_set || flag(words, "cluster", None).is_some()
}

fn context(words: &[OsString]) -> Option<String> {
    flag(words, "context", None)
}

/// The names of the objects of this target's kind.
fn names(target: &Target, namespace: Option<String>, context: Option<String>) -> Vec<String> {
    let Ok(runtime) = run::runtime() else { return Vec::new() };
    let names = runtime.block_on(async {
        let work = async {
            let cluster = connect_unattended(context.as_deref()).await.ok()??;
            let (group, version) =
                target.api_version.split_once('/').unwrap_or(("", &target.api_version));
            let kind = GroupVersionKind::gvk(group, version, &target.kind);
            let namespace = match target.namespace.as_str() {
                "" => "",
                _ => namespace.as_deref().unwrap_or(cluster.default_namespace()),
            };
            let (resource, deadline) = (ApiResource::from_gvk(&kind), Instant::now() + TIMEOUT);
            let found = cluster.list_metadata(&resource, namespace, "", MAX_NAMES, deadline).await;
            Some(found.ok()?.into_iter().filter_map(|it| it.name).collect())
        };
        timeout(TIMEOUT, work).await.ok().flatten()
    });
    runtime.shutdown_background();
    names.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_found_in_each_of_its_forms() {
        let find = |line: &str| {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            flag(&words, "namespace", Some('n'))
        };
        for line in ["x -n shop web", "x --namespace shop", "x --namespace=shop w"] {
            assert_eq!(find(line).as_deref(), Some("shop"), "{line}");
        }
        for line in ["x web", "x -n", "x --namespaces=shop", "x --namespace="] {
            assert_eq!(find(line), None, "{line}");
        }
    }

    #[test]
    fn kubectl_gets_a_line_for_each_candidate_and_what_to_do_with_them() {
        let answer = |line: &str| {
            let words = [ASKED_BY_KUBECTL].into_iter().chain(line.split(' '));
            for_kubectl(words.map(OsString::from).collect())
        };
        assert!(answer("restart-stat").starts_with("restart-statefulset\t"));
        assert!(answer("restart-stat").ends_with("\n:4\n"));
        assert!(answer("").contains("\ndoctor\t") && answer("").ends_with("\n:4\n"));
        assert_eq!(answer("no-such-command-"), ":4\n");
        assert_eq!(for_kubectl(vec![ASKED_BY_KUBECTL.into()]), ":4\n");
        assert_eq!(for_kubectl(Vec::new()), ":4\n");
        assert_eq!(line_of(&CompletionCandidate::new("a\nb")), None);
    }

    #[test]
    fn each_command_has_a_kind_of_target_and_each_shell_a_script() {
        command().debug_assert();
        for kind in ActionKind::ALL {
            let target = action::example_target(kind, "").expect("has one");
            assert!(!target.kind.is_empty(), "{}", kind.name());
        }
        let scale = |prefix| action::example_target(ActionKind::Scale, prefix).map(|it| it.kind);
        assert_eq!(scale("sts").as_deref(), Some("StatefulSet"));
        assert_eq!(scale("pod"), None);
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let script = script(shell).expect("is written");
            assert!(script.contains("action-executor"), "{script}");
        }
    }
}
