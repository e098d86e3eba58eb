//! The command `run`: the sources of a request, the forms of its answer, and the exit statuses.

use std::fs;

use serde_json::Value;

use crate::program::{Program, scratch};

const REQUEST: &str = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;

#[test]
fn a_request_is_read_from_standard_input() {
    let done = Program::offline().input(REQUEST).run();
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "simulated");
    assert_eq!(answer["offline"], true);
    let done = Program::offline().args(["run", "-"]).input(REQUEST).run();
    assert_eq!(done.status, 0, "{done:?}");
}

#[test]
fn a_variable_of_another_program_does_not_ask_for_completions() {
    for value in ["true", "bash"] {
        let done = Program::offline().env("COMPLETE", value).input(REQUEST).run();
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(done.answer()["outcome"], "simulated", "{done:?}");
    }
}

#[test]
fn a_request_is_read_from_a_file() {
    let path = scratch("request.json");
    fs::write(&path, REQUEST).expect("is written");
    let path = path.display().to_string();
    let done = Program::offline().args(["run", &path]).run();
    assert_eq!(done.status, 0, "{done:?}");
    let done = Program::offline().args(["run", "/nonexistent/request.json"]).run();
    assert_eq!(done.status, 64, "{done:?}");
    assert!(done.answer()["detail"].as_str().expect("has one").contains("/nonexistent"));
}

#[test]
fn a_request_is_read_from_the_environment() {
    let done = Program::offline().env("ACTION_REQUEST", REQUEST).run();
    assert_eq!(done.status, 0, "{done:?}");
    let done = Program::offline()
        .env("ACTION_TYPE", "restart_pod")
        .env("ACTION_PARAM_POD_NAME", "web-0")
        .env("ACTION_ID", "job-7")
        .run();
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["id"], "job-7");
}

#[test]
fn two_sources_are_an_error() {
    let done = Program::offline().env("ACTION_REQUEST", REQUEST).input(REQUEST).run();
    assert_eq!(done.status, 64, "{done:?}");
    assert_eq!(done.answer()["code"], "usage");
    let done = Program::offline().env("ACTION_TYPE", "restart_k8s").env("ACTION_REQUEST", REQUEST);
    assert_eq!(done.run().status, 64);
    let done = Program::offline().args(["run", "-"]).env("ACTION_REQUEST", REQUEST).run();
    assert_eq!(done.status, 64, "{done:?}");
}

#[test]
fn no_source_is_an_error() {
    let done = Program::offline().run();
    assert_eq!(done.status, 64, "{done:?}");
    assert!(done.answer()["hint"].as_str().expect("has one").contains("ACTION_REQUEST"));
}

#[test]
fn a_real_action_without_a_cluster_is_an_error() {
    let request = REQUEST.replace("}}", "},\"simulate\":false}");
    let done = Program::offline().input(request).run();
    assert_eq!(done.status, 78, "{done:?}");
    assert_eq!(done.answer()["code"], "configuration");
}

#[test]
fn an_invalid_request_exits_with_65_and_invalid_arguments_with_64() {
    assert_eq!(Program::offline().input("{}").run().status, 65);
    assert_eq!(Program::offline().input(vec![b' '; 70_000]).run().status, 65);
    let done = Program::offline().args(["--no-such-option"]).run();
    assert_eq!((done.status, done.stdout.as_str()), (64, ""));
    assert!(done.stderr.contains("--no-such-option"));
}

#[test]
fn an_invalid_setting_exits_with_78() {
    let done = Program::offline().env("PORT", "eighty").input(REQUEST).run();
    assert_eq!(done.status, 78, "{done:?}");
    assert!(done.stdout.contains("PORT") && !done.stdout.contains("eighty"));
}

#[test]
fn an_invalid_setting_is_reported_in_the_requested_output_format() {
    for arguments in [
        &["--output", "text"][..],
        &["run", "--output", "text"],
        &["restart-k8s", "web", "--output", "text"],
    ] {
        let done = Program::offline()
            .env("PORT", "eighty")
            .args(arguments.iter().copied())
            .input(REQUEST)
            .run();
        assert_eq!(done.status, 78, "{done:?}");
        assert!(done.stdout.starts_with("not done: environment variable PORT"), "{done:?}");
    }
}

#[test]
fn help_and_version_exit_with_0() {
    let done = Program::offline().args(["--help"]).run();
    assert_eq!(done.status, 0, "{done:?}");
    for word in ["Examples:", "serve", "run", "schema", "Exit status"] {
        assert!(done.stdout.contains(word), "{word}");
    }
    let done = Program::offline().args(["--version"]).run();
    assert_eq!(done.stdout.trim(), concat!("action-executor ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_answer_has_the_requested_output_format() {
    let run = |form| Program::offline().args(["run", "--output", form]).input(REQUEST).run();
    let json: Value = serde_json::from_str(&run("json").stdout).expect("is JSON");
    let pretty = run("pretty").stdout;
    assert!(pretty.lines().count() > 10);
    let pretty: Value = serde_json::from_str(&pretty).expect("is JSON");
    assert_eq!(pretty["result"], json["result"]);
    let text = run("text").stdout;
    assert!(
        text.starts_with("Simulated: Deployment 'web' would be restarted.\nwarning: "),
        "{text}"
    );
}

#[test]
fn standard_output_holds_only_the_answer_and_logs_are_json() {
    let done = Program::offline().env("ACTION_EXECUTOR_LOG", "trace").input(REQUEST).run();
    done.answer();
    for line in done.stderr.lines() {
        let event: Value = serde_json::from_str(line).expect("each line is JSON");
        assert!(event["timestamp"].is_string() && event["level"].is_string());
    }
    assert!(done.stderr.contains("action answered"));
}

#[test]
fn the_termination_message_holds_the_outcome() {
    let path = scratch("termination-log");
    let done = Program::offline().env("TERMINATION_LOG", &path).input(REQUEST).run();
    let words = fs::read_to_string(&path).expect("is written");
    assert_eq!(words, done.stdout.trim_end());
    // The message of a refusal is written too.
    let done = Program::offline().env("TERMINATION_LOG", &path).input("{}").run();
    assert_eq!(fs::read_to_string(&path).expect("is written"), done.stdout.trim_end());
}

#[test]
fn an_unwritable_termination_log_changes_no_outcome() {
    let done = Program::offline().env("TERMINATION_LOG", "/nonexistent/log").input(REQUEST).run();
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.stderr.contains("termination message"));
}

#[test]
fn values_of_the_environment_are_never_printed() {
    let done = Program::offline()
        .env("ACTION_EXECUTOR_LOG", "trace")
        .env("ACTION_TYPE", "restart_k8s")
        .env("ACTION_PARAM_DEPLOYMENT", "web")
        .env("ACTION_SIMULATE", "hunter2")
        .env("SECRET", "hunter3")
        .run();
    assert_eq!(done.status, 65, "{done:?}");
    assert!(!format!("{done:?}").contains("hunter"), "{done:?}");
}
