//! The subcommand of each action: the same request as in JSON, and what a terminal adds.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    time::Instant,
};

use action_executor::actions::request::ActionRequest;
use serde_json::{Value, json};

use crate::{
    cluster::{GOOD_IMAGE, WAIT_TIMEOUT, eventually, shared},
    contract::fixtures,
    ledger::kubectl,
    program::{Program, scratch},
    rollback_on_failure::block_new_pods,
};

/// The command line of a request, if flags can say it: no nulls, and nothing that is ignored.
fn line(request: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut line = vec![request["type"].as_str()?.replace('_', "-")];
    let mut target = None;
    for (name, value) in request["parameters"].as_object()? {
        let flag = format!("--{}", name.replace('_', "-"));
        match (name.as_str(), value) {
            (_, Value::Null) => return None,
            (
                "deployment" | "pod_name" | "statefulset" | "daemonset" | "cronjob" | "job"
                | "node" | "pvc" | "autoscaler" | "rollout" | "name",
                Value::String(name),
            ) if target.is_none() => target = Some(name.clone()),
            ("namespace", Value::String(name)) if request["type"] == "clean_pods" => {
                target = Some(name.clone())
            }
            (_, Value::Bool(false)) => line.push(format!("{flag}=false")),
            (_, Value::Bool(true)) => line.push(flag),
            (_, Value::Object(map)) => {
                for (key, value) in map {
                    line.extend([flag.clone(), format!("{key}={}", text(value))]);
                }
            }
            (_, Value::Array(all)) if all.iter().all(Value::is_string) => {
                for value in all {
                    line.extend([flag.clone(), text(value)]);
                }
            }
            (_, value) => line.push(format!("{flag}={}", text(value))),
        }
    }
    line.insert(1, target?);
    for (name, flag) in [
        ("id", "--id"),
        ("reason", "--reason"),
        ("requester", "--requester"),
        ("timeout_seconds", "--timeout"),
        ("observe_seconds", "--observe-seconds"),
    ] {
        line.extend(request.get(name).map(|value| format!("{flag}={}", text(value))));
    }
    line.extend((request["wait"] == true).then(|| "--wait".to_owned()));
    line.extend((request["simulate"] == false).then(|| "--execute".to_owned()));
    let known = [
        "type",
        "parameters",
        "id",
        "reason",
        "requester",
        "timeout_seconds",
        "observe_seconds",
        "wait",
        "simulate",
    ];
    request.as_object()?.keys().all(|name| known.contains(&&**name)).then_some(line)
}

#[test]
fn the_flags_of_each_fixture_make_the_request_that_it_is() {
    let kubeconfig = scratch("none.kubeconfig");
    std::fs::write(&kubeconfig, r#"{"apiVersion":"v1","kind":"Config"}"#).expect("is written");
    let mut compared = std::collections::HashSet::new();
    for (name, bytes) in fixtures() {
        let Ok(expected) = ActionRequest::parse(&bytes) else { continue };
        let request: Value = serde_json::from_slice(&bytes).expect("is JSON");
        let Some(mut line) = line(&request).filter(|_| !name.starts_with("original")) else {
            continue;
        };
        line.push("--print-request".to_owned());
        let arguments = line.iter().map(String::as_str);
        let done = Program::offline().env("KUBECONFIG", &kubeconfig).args(arguments).run();
        assert_eq!(done.status, 0, "{name} {line:?}: {done:?}");
        let made = ActionRequest::parse(done.stdout.as_bytes()).expect("is accepted");
        assert_eq!(made, expected, "{name} {line:?}");
        compared.insert(expected.action.kind());
    }
    let missing = |kind: &_| !compared.contains(kind);
    let missing: Vec<_> =
        action_executor::actions::ActionKind::ALL.into_iter().filter(missing).collect();
    assert!(missing.is_empty(), "no fixture of {missing:?} could be compared");
}

#[test]
fn a_value_that_the_parser_refuses_is_refused_before_anything_is_called() {
    for (line, field) in [
        (vec!["scale", "web", "--replicas", "many"], "parameters.replicas"),
        (vec!["scale", "Web", "--replicas", "1"], "parameters.name"),
        (vec!["set-image", "web", "--images", "web=nginx"], "parameters.images"),
        (vec!["restart-k8s", "web", "--timeout", "0"], "timeout_seconds"),
    ] {
        let done = Program::offline().args(line.iter().copied().chain(["-o", "json"])).run();
        assert_eq!(done.status, 65, "{line:?}: {done:?}");
        assert_eq!(done.answer()["field"], field, "{line:?}: {done:?}");
    }
    for line in [
        vec!["restart-k8s"],
        vec!["restart-k8s", "statefulset/web"],
        vec!["restart-k8s", "web", "--force"],
        vec!["scale", "web", "--kind", "Job"],
    ] {
        let done = Program::offline().args(line.iter().copied()).run();
        assert_eq!(done.status, 64, "{line:?}: {done:?}");
    }
}

#[tokio::test]
async fn a_person_simulates_by_default_and_executes_by_a_flag() {
    let namespace = shared().namespace("flags").await;
    namespace.running_deployment("web", 1).await;
    let run = |flags: &[&str]| {
        let all = ["restart-k8s", "deployment/web", "-n", namespace.name()];
        let arguments = all.iter().chain(flags).copied();
        Program::with_kubeconfig(namespace.kubeconfig()).args(arguments).run()
    };
    let simulated = run(&[]);
    assert_eq!(simulated.status, 0, "{simulated:?}");
    assert!(simulated.stdout.starts_with("Simulated: Deployment 'web' would be restarted."));
    let generation = || async { namespace.get_deployment("web").await.metadata.generation };
    assert_eq!(generation().await, Some(1));
    // Without a terminal nobody is asked.
    let done = run(&["--execute", "--wait", "--id", "a-7", "--reason", "p99", "-o", "json"]);
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["rollout"]["state"], "complete", "{done:?}");
    assert_eq!(generation().await, Some(2));
    let again = run(&["--execute", "--wait", "--id", "a-7", "--reason", "p99", "-o", "json"]);
    assert_eq!(again.answer()["replayed"], true, "{again:?}");
    assert_eq!(generation().await, Some(2));
    let missing = Program::with_kubeconfig(namespace.kubeconfig())
        .args(["restart-k8s", "none", "-n", namespace.name()])
        .run();
    assert_eq!(missing.status, 69, "{missing:?}");
    assert!(missing.stdout.starts_with("not done: "), "{missing:?}");
}

#[tokio::test]
async fn the_namespace_is_that_of_the_context_if_none_is_given() {
    let namespace = shared().namespace("flags_context").await;
    let text = std::fs::read_to_string(namespace.kubeconfig()).expect("is readable");
    let mut config: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
    config["contexts"][0]["context"]["namespace"] = "shop".into();
    let kubeconfig = scratch("context.kubeconfig");
    std::fs::write(&kubeconfig, config.to_string()).expect("is written");
    let printed = Program::with_kubeconfig(&kubeconfig)
        .args(["restart-pod", "pod/web-1", "--print-request"])
        .run();
    let request: Value = serde_json::from_str(&printed.stdout).expect("is JSON");
    assert_eq!(request["parameters"], json!({ "pod_name": "web-1", "namespace": "shop" }));
    // A node has none.
    let printed =
        Program::with_kubeconfig(&kubeconfig).args(["cordon", "node/n1", "--print-request"]).run();
    let request: Value = serde_json::from_str(&printed.stdout).expect("is JSON");
    assert_eq!(request["parameters"], json!({ "node": "n1" }));
}

/// Runs the program on a terminal of its own, on which a person types this.
fn on_a_terminal(kubeconfig: &std::path::Path, arguments: &str, typed: &str) -> (i32, String) {
    on_a_terminal_under(kubeconfig, None, arguments, typed)
}

/// The same under this policy, again while the API server of a busy machine has no time.
fn on_a_terminal_under(
    kubeconfig: &std::path::Path,
    policy: Option<&std::path::Path>,
    arguments: &str,
    typed: &str,
) -> (i32, String) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        let (status, seen) = on_a_terminal_during(kubeconfig, policy, arguments, typed, || {});
        if status != 75
            || seen.contains("the last action on the target")
            || Instant::now() > deadline
        {
            return (status, seen);
        }
    }
}

/// The same; this happens between the question and the answer.
fn on_a_terminal_during(
    kubeconfig: &std::path::Path,
    policy: Option<&std::path::Path>,
    arguments: &str,
    typed: &str,
    meanwhile: impl Fn(),
) -> (i32, String) {
    let program = env!("CARGO_BIN_EXE_action-executor");
    // Without `exec`, some shells stay above the program, and Ctrl-C ends them with a status of their own.
    let command = format!("exec {program} {arguments}");
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .env("KUBECONFIG", kubeconfig)
        .env("ACTION_EXECUTOR_LOG", "error")
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .envs(policy.map(|policy| ("ACTION_EXECUTOR_POLICY", policy)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script of util-linux runs");
    let mut input = child.stdin.take().expect("is piped");
    let (typed, mut output) = (typed.to_owned(), child.stdout.take().expect("is piped"));
    let mut seen = Vec::new();
    let mut part = [0; 4096];
    // The answer is typed once the question is there.
    let mut typed = Some(typed);
    while let Ok(length @ 1..) = output.read(&mut part) {
        seen.extend_from_slice(&part[..length]);
        if String::from_utf8_lossy(&seen).contains("[y/N]")
            && let Some(typed) = typed.take()
        {
            meanwhile();
            input.write_all(typed.as_bytes()).expect("is typed");
        }
    }
    let status = child.wait().expect("has ended").code().expect("was not killed");
    (status, String::from_utf8_lossy(&seen).replace('\r', ""))
}

#[tokio::test]
async fn a_person_on_a_terminal_is_asked_before_a_real_action() {
    let namespace = shared().namespace("flags_terminal").await;
    namespace.running_deployment("web", 1).await;
    let scale = format!("scale web --replicas 2 -n {} --execute", namespace.name());
    let replicas =
        || async { namespace.get_deployment("web").await.spec.expect("has one").replicas };
    // The third one is Ctrl-C.
    for (typed, status, after) in [("n\n", 64, 1), ("\n", 64, 1), ("\x03", 64, 1), ("y\n", 0, 2)] {
        let (found, seen) = on_a_terminal(namespace.kubeconfig(), &scale, typed);
        assert_eq!(found, status, "{typed:?}: {seen}");
        assert_eq!(replicas().await, Some(after), "{typed:?}: {seen}");
        for expected in [
            &format!("namespace: {}", namespace.name()),
            "target: Deployment web",
            "change: /spec/replicas from 1 to 2",
            "Simulated: Deployment 'web' would be scaled from 1 to 2.",
        ] {
            assert!(seen.contains(expected), "{expected}: {seen}");
        }
        assert_eq!(seen.contains("not confirmed; nothing was done"), status == 64, "{seen}");
        assert!(!seen.contains("action-executor.dev"), "its own annotations: {seen}");
    }
    // The answer has the colour of its outcome.
    let restart = format!("restart-k8s web -n {} --execute --yes --wait", namespace.name());
    let restart = format!("{restart} --timeout 120");
    let (status, seen) = on_a_terminal(namespace.kubeconfig(), &restart, "");
    assert_eq!(status, 75, "its cooldown: {seen}");
    assert!(seen.contains("\u{1b}[31m✘ not done: "), "{seen}");
    let open = namespace.policy("cooldown_seconds: 0");
    let (status, seen) = on_a_terminal_under(namespace.kubeconfig(), Some(&open), &restart, "");
    assert_eq!(status, 0, "{seen}");
    assert!(seen.contains("\u{1b}[32m✔ Deployment 'web' restarted at "), "{seen}");
    // What would be refused is refused without a question.
    let wrong = format!("scale none --replicas 2 -n {} --execute", namespace.name());
    let (status, seen) = on_a_terminal(namespace.kubeconfig(), &wrong, "y\n");
    assert_eq!(status, 69, "{seen}");
    assert!(!seen.contains("[y/N]"), "{seen}");
    // What is there already is not scaled, and --yes is not asked.
    let (status, seen) = on_a_terminal(namespace.kubeconfig(), &format!("{scale} --yes"), "");
    assert_eq!((status, seen.contains("[y/N]")), (0, false), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_on_a_terminal_shows_the_replicas_and_the_pods_with_problems() {
    let namespace = shared().namespace("flags_wait").await;
    namespace.running_deployment("web", 1).await;
    block_new_pods(&namespace).await;
    let restart = format!("restart-k8s web -n {} --execute --yes --wait", namespace.name());
    let restart = format!("{restart} --timeout 12");
    let (status, seen) = on_a_terminal(namespace.kubeconfig(), &restart, "");
    assert_eq!(status, 69, "{seen}");
    for expected in [
        "s  0 of 1 new replicas have been updated",
        "old 1   new 0   ready 1 of 1   at most ",
        "exceeded quota: closed",
    ] {
        assert!(seen.contains(expected), "{expected}: {seen}");
    }
    // The answer has the terminal for itself.
    let (_, answer) = seen.rsplit_once("\u{1b}[2K").unwrap_or_default();
    assert!(answer.contains("not rolled out") || answer.contains("✘"), "{seen}");
    assert!(!answer.contains("at most"), "{seen}");
}

#[tokio::test]
async fn objects_not_shown_are_not_changed() {
    let namespace = shared().namespace("flags_shown").await;
    for name in ["web", "late", "other"] {
        namespace.deployment(name, 0, GOOD_IMAGE).await;
    }
    let generation = async |name: &str| namespace.get_deployment(name).await.metadata.generation;
    kubectl(&namespace, &["label", "deployment", "web", "tier=shop"]);
    let all = format!("restart-k8s --selector tier=shop -n {} --execute", namespace.name());
    let label = || drop(kubectl(&namespace, &["label", "deployment", "late", "tier=shop"]));
    let (status, seen) = on_a_terminal_during(namespace.kubeconfig(), None, &all, "y\n", label);
    assert_eq!(status, 0, "{seen}");
    assert_eq!((generation("web").await, generation("late").await), (Some(2), Some(1)), "{seen}");
    // Nor is another object of the name.
    let other = namespace.get_deployment("other").await;
    let path = scratch("other.json");
    let spec = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "other" },
        "spec": other.spec,
    });
    std::fs::write(&path, spec.to_string()).expect("is written");
    let replace = || {
        let path = path.display().to_string();
        kubectl(&namespace, &["replace", "--force", "-f", &path]);
    };
    let one = format!("restart-k8s other -n {} --execute", namespace.name());
    let (status, seen) = on_a_terminal_during(namespace.kubeconfig(), None, &one, "y\n", replace);
    assert_ne!(status, 0, "{seen}");
    assert_eq!(generation("other").await, Some(1), "{seen}");
}

/// What a shell offers for the last of these words, by the script that the program prints for it.
fn completed(kubeconfig: &std::path::Path, words: &[&str]) -> Vec<String> {
    let program = env!("CARGO_BIN_EXE_action-executor");
    let directory = std::path::Path::new(program).parent().expect("has one");
    let script = format!(
        "source <(action-executor completions bash)\n\
         COMP_WORDS=(action-executor {words})\nCOMP_CWORD={last}\nCOMP_TYPE=9\n\
         _clap_complete_action_executor action-executor {word} \"\"\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words = words.join(" "),
        last = words.len(),
        word = words.last().expect("is one"),
    );
    let path = std::env::var("PATH").unwrap_or_default();
    let done = Command::new("bash")
        .args(["-c", &script])
        .env("PATH", format!("{}:{path}", directory.display()))
        .env("KUBECONFIG", kubeconfig)
        .output()
        .expect("bash runs");
    let text = String::from_utf8(done.stdout).expect("is text");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert_eq!(errors, "", "{words:?}");
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// What kubectl offers for the last of these words of `kubectl action-executor`, with the links that
/// docs/how-to/install.md names, and what it prints for the shell.
fn completed_by_kubectl(kubeconfig: &std::path::Path, words: &[&str]) -> String {
    let directory = scratch("links");
    std::fs::create_dir(&directory).expect("is made");
    for link in ["kubectl-action_executor", "kubectl_complete-action_executor"] {
        let program = env!("CARGO_BIN_EXE_action-executor");
        std::os::unix::fs::symlink(program, directory.join(link)).expect("is linked");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let done = Command::new(shared().program("kubectl"))
        .args(["__complete", "action-executor"])
        .args(words)
        .env("PATH", format!("{}:{path}", directory.display()))
        .env("KUBECONFIG", kubeconfig)
        .output()
        .expect("kubectl runs");
    String::from_utf8(done.stdout).expect("is text")
}

#[tokio::test]
async fn a_shell_completes_names_from_the_cluster() {
    let namespace = shared().namespace("flags_completed").await;
    namespace.deployment("web", 0, GOOD_IMAGE).await;
    namespace.deployment("api", 0, GOOD_IMAGE).await;
    namespace.stateful_set("db", 0).await;
    let (kubeconfig, name) = (namespace.kubeconfig(), namespace.name());
    for (words, expected) in [
        (&["restart-k8s", "-n", name, "w"][..], &["web"][..]),
        (&["scale", "-n", name, "sts/d"], &["sts/db"]),
        (&["scale", "-n", name, "a"], &["api"]),
        (&["restart-k8s", "-n", "flags-none", "w"], &[""]),
        (&["restart-k8s", "-n", name], &[name]),
        (&["restart-stat"], &["restart-statefulset"]),
    ] {
        // A busy API server may not answer in the time for which a person waits.
        eventually(&format!("{words:?} completes to {expected:?}"), async || {
            (completed(kubeconfig, words) == expected).then_some(())
        })
        .await;
    }
    // The same through kubectl.
    for (words, expected) in [
        (&["restart-k8s", "-n", name, "w"][..], "web\n:4\n"),
        (&["scale", "-n", name, "sts/"], "sts/db\n:4\n"),
        (&["restart-k8s", "-n", "flags-none", "w"], ":4\n"),
    ] {
        eventually(&format!("{words:?} completes through kubectl to {expected:?}"), async || {
            (completed_by_kubectl(kubeconfig, words) == expected).then_some(())
        })
        .await;
    }
    let commands = completed_by_kubectl(kubeconfig, &["restart-stat"]);
    assert!(commands.starts_with("restart-statefulset\t"), "{commands}");
    // What cannot be read completes to nothing, and says nothing.
    let none = std::path::Path::new("/nonexistent/kubeconfig");
    assert_eq!(completed(none, &["restart-k8s", "w"]), [""]);
}
