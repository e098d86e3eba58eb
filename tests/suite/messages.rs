//! Every message of the program, in tests/data/messages.txt: a change of a message is a change of that file,
//! so that each one is read.
//!
//! `UPDATE_GENERATED=1 cargo test --all-features --test suite messages` writes it anew.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    contract::fixtures,
    program::{Program, scratch},
};

/// The calls whose string literals are messages.
const CALLS: [&str; 26] = [
    "ActionError::new",
    "invalid_field",
    "with_hint",
    "with_field",
    "unauthenticated",
    "forbidden",
    "invalid",
    "wrong",
    "permanent",
    "transient",
    "exit",
    "number",
    "text",
    "custom",
    "Err",
    "Ok",
    "Some",
    "format!",
    "write!",
    "push",
    "push_str",
    "tracing::error!",
    "tracing::warn!",
    "tracing::info!",
    "tracing::debug!",
    "eprintln!",
];

#[test]
fn every_message_is_in_the_file() {
    let mut text = String::from(
        "# Every message of the program. Written by\n\
         # UPDATE_GENERATED=1 cargo test --all-features --test suite messages\n",
    );
    help(&mut text);
    problems(&mut text);
    literals(&mut text);
    compare("tests/data/messages.txt", &text);
}

/// Compares a generated file with its text, or writes it.
pub fn compare(file: &str, text: &str) {
    let path = root().join(file);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&path, text).expect("is written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(text.lines()).find(|(found, expected)| found != expected);
    assert!(
        found == text,
        "{file} differs at {differs:?}: run `make generated` and read the changes"
    );
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn section(text: &mut String, name: &str) {
    writeln!(text, "\n## {name}\n").expect("is written");
}

fn help(text: &mut String) {
    for command in [
        "",
        "run",
        "serve",
        "job",
        "policy",
        "policy check",
        "policy admission",
        "rbac",
        "healthcheck",
        "history",
        "verify-receipt",
        "schema",
        "reference",
        "completions",
        "man",
        // Two of the commands of actions, which are made in the same way.
        "scale",
        "drain",
    ] {
        section(text, format!("help {command}").trim_end());
        let done = Program::offline().args(command.split_whitespace().chain(["--help"])).run();
        assert_eq!(done.status, 0, "{done:?}");
        text.push_str(&without_trailing_spaces(&done.stdout));
    }
}

fn without_trailing_spaces(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// The problems of wrong requests, variables, settings, policies and keys.
fn problems(text: &mut String) {
    section(text, "problems of the requests in tests/data");
    for (name, bytes) in fixtures().into_iter().filter(|(name, _)| name.starts_with("wrong_")) {
        problem(text, &name, Program::offline().input(bytes));
    }
    section(text, "problems of variables");
    for (name, value) in [
        ("ACTION_SIMULATED", "false"),
        ("ACTION_ID", "a b"),
        ("ACTION_PARAM_DEPLOYMENT", "web"),
        ("ACTION_REQUEST", "{"),
    ] {
        problem(text, &format!("{name}={value}"), Program::offline().env(name, value));
    }
    problem(text, "no request", Program::offline());
    let request = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
    let two = Program::offline().env("ACTION_TYPE", "cordon").input(request);
    problem(text, "two requests", two);
    section(text, "problems of settings");
    for (name, value) in [
        ("ACTION_EXECUTOR_DEADLINE_SECONDS", "0"),
        ("ACTION_EXECUTOR_HOSTS", "https://a"),
        ("ACTION_EXECUTOR_LOG", "loud"),
        ("ACTION_EXECUTOR_KEYS_BASE64", "?"),
        ("ACTION_EXECUTOR_POLICY", "/nonexistent"),
        ("ACTION_EXECUTOR_TLS_KEY", "/nonexistent"),
        ("ACTION_EXECUTOR_TLS_CERTIFICATE", "/nonexistent"),
        ("ACTION_EXECUTOR_TLS_CLIENT_CA", "/nonexistent"),
        ("ACTION_EXECUTOR_RECEIPT_KEY", "/nonexistent"),
        ("ACTION_EXECUTOR_RECEIPTS", "/nonexistent"),
        ("ACTION_EXECUTOR_SINK", "https://events.example.com"),
        ("ACTION_EXECUTOR_SINK_SECRET", "/nonexistent"),
        ("ACTION_EXECUTOR_SINK_ALLOW_HTTP", "yes"),
        ("KUBECONFIG", "/nonexistent"),
        ("KUBECONFIG_BASE64", "?"),
    ] {
        problem(
            text,
            &format!("{name}={value}"),
            Program::offline().env(name, value).input(request),
        );
    }
    section(text, "problems of policies");
    for policy in [
        "",
        "[]",
        "version: 2",
        "read_only: perhaps",
        "unknown: 1",
        "actions: {allow: [fly]}",
        "namespaces: {allow: ['A']}",
        "nodes: {deny: ['a/b']}",
        "targets: {protected: ['']}",
        "cooldown_seconds: -1",
        "budget: {cluster: {actions: 0, within_seconds: 1}}",
        "replicas: {min: 3, max: 1}",
        "actions: {}\nactions: {}",
    ] {
        let file = scratch("policy.yaml");
        fs::write(&file, policy).expect("is written");
        let path = file.to_str().expect("is text");
        let done = Program::offline().args(["policy", "check", path]).run();
        write_problem(text, policy, &done.stdout.replace(path, "policy.yaml"));
    }
    section(text, "problems of keys");
    let digest = "0".repeat(64);
    for keys in [
        "keys: [{name: a}]".to_owned(),
        "keys: [{name: a, sha256: b}]".to_owned(),
        format!("keys: [{{name: a, sha256: {digest}, certificate: b}}]"),
        format!("keys: [{{sha256: {digest}}}]"),
        format!("keys: [{{name: a, sha256: {digest}, actions: [fly]}}]"),
    ] {
        let file = scratch("keys.yaml");
        fs::write(&file, &keys).expect("is written");
        let path = file.to_str().expect("is text");
        let serve = Program::offline().env("ACTION_EXECUTOR_KEYS", path);
        let done = serve.args(["serve", "--bind", "127.0.0.1:0"]).run();
        let printed = format!("{}{}", done.stdout, done.stderr).replace(path, "keys.yaml");
        write_problem(text, &keys.replace(&digest, "DIGEST"), &printed);
    }
}

fn problem(text: &mut String, name: &str, program: Program) {
    let done = program.run();
    write_problem(text, name, &done.stdout);
}

fn write_problem(text: &mut String, name: &str, printed: &str) {
    writeln!(text, "- {}", name.replace('\n', "; ")).expect("is written");
    let answer = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).next();
    let answer: serde_json::Value = answer.unwrap_or_default();
    for field in ["code", "detail", "field", "hint", "message"] {
        if let Some(value) = answer[field].as_str() {
            writeln!(text, "  {field}: {value}").expect("is written");
        }
    }
}

/// The string literals in messages, by source file.
fn literals(text: &mut String) {
    for path in sources(&root().join("src")) {
        let source = fs::read_to_string(&path).expect("is text");
        // `model.rs` has test code alone.
        let is_model = path.file_name().is_some_and(|name| name == "model.rs");
        let code = source.split("#[cfg(test)]\nmod tests").next().filter(|_| !is_model);
        let code = code.unwrap_or_default();
        let found: Vec<_> = strings(code).into_iter().filter(is_message).collect();
        if found.is_empty() {
            continue;
        }
        let name = path.strip_prefix(root()).expect("is below").display().to_string();
        section(text, &name);
        for Literal { call, value } in found {
            writeln!(text, "{call}: {}", value.replace('\n', "\\n")).expect("is written");
        }
    }
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("is a directory") {
        let path = entry.expect("is readable").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A string literal, and the innermost call in which it stands.
struct Literal {
    call: String,
    value: String,
}

/// Whether a literal is a message: it has words, and stands in one of [`CALLS`] or is a value on its own.
fn is_message(literal: &Literal) -> bool {
    let words = literal.value.split_whitespace();
    let has_words = literal.value.chars().any(|c| c.is_alphabetic());
    let is_word = |word: &&str| word.chars().filter(|c| c.is_alphabetic()).count() > 1;
    let is_call = CALLS.iter().any(|call| {
        literal.call == *call
            || literal.call.ends_with(&format!("::{call}"))
            || literal.call.ends_with(&format!(".{call}"))
    });
    let is_attribute = ["cfg", "schemars", ".expect"].iter().any(|it| literal.call.ends_with(it));
    let is_sentence = words.filter(is_word).count() > 2;
    !is_attribute && (is_sentence || (is_call && has_words && literal.value.contains(' ')))
}

/// The string literals of Rust source, without those in comments.
fn strings(code: &str) -> Vec<Literal> {
    let bytes: Vec<char> = code.chars().collect();
    let mut found = Vec::new();
    // The names before each open bracket.
    let mut calls: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        match rest {
            ['/', '/', ..] => at += rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['r', '"', ..] | ['r', '#', ..]
                if word == "b" || !word.ends_with(|c: char| c.is_alphanumeric()) =>
            {
                let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
                if rest.get(1 + hashes) != Some(&'"') {
                    word.push('r');
                    at += 1;
                    continue;
                }
                let end: Vec<char> =
                    std::iter::once('"').chain("#".repeat(hashes).chars()).collect();
                let start = 2 + hashes;
                let length =
                    rest[start..].windows(end.len()).position(|it| it == end).expect("is closed");
                let value = rest[start..start + length].iter().collect();
                found.push(Literal { call: calls.last().cloned().unwrap_or_default(), value });
                at += start + length + end.len();
                word.clear();
            }
            ['"', ..] => {
                let (value, length) = quoted(&rest[1..]);
                found.push(Literal { call: calls.last().cloned().unwrap_or_default(), value });
                at += 1 + length;
                word.clear();
            }
            // A character literal, which may be a quote; else a lifetime.
            ['\'', '\\', _, '\'', ..] => at += 4,
            ['\'', _, '\'', ..] => at += 3,
            ['(' | '[' | '{', ..] => {
                let outer = calls.last().cloned().unwrap_or_default();
                let is_call = rest[0] == '(' || word.ends_with('!');
                calls.push(if is_call && !word.is_empty() { word.clone() } else { outer });
                word.clear();
                at += 1;
            }
            [')' | ']' | '}', ..] => {
                calls.pop();
                word.clear();
                at += 1;
            }
            [c, ..] => {
                if c.is_alphanumeric() || "_:.!".contains(*c) {
                    word.push(*c);
                } else {
                    word.clear();
                }
                at += 1;
            }
            [] => {}
        }
    }
    found
}

/// The value of a literal after its opening quote, and its length in the source with the closing one.
fn quoted(rest: &[char]) -> (String, usize) {
    let mut value = String::new();
    let mut at = 0;
    loop {
        match (rest[at], rest.get(at + 1)) {
            ('"', _) => return (value, at + 1),
            // A line's end that is escaped hides the spaces that follow it too.
            ('\\', Some('\n')) => {
                at += 1;
                at += rest[at..].iter().take_while(|c| c.is_whitespace()).count();
            }
            ('\\', Some('n')) => {
                value.push('\n');
                at += 2;
            }
            ('\\', Some(escaped)) => {
                value.push(*escaped);
                at += 2;
            }
            (c, _) => {
                value.push(c);
                at += 1;
            }
        }
    }
}

#[test]
fn a_literal_has_the_call_in_which_it_stands() {
    let code = r##"fn f<'a>() { // "no"
        ActionError::new(Code::X, format!("it {} \
            is", name('"'))).with_hint("do \"this\"");
        let x = r#"raw "text""#;
    }"##;
    let found: Vec<_> = strings(code).into_iter().map(|it| (it.call, it.value)).collect();
    let expected = [("format!", "it {} is"), (".with_hint", "do \"this\""), ("", "raw \"text\"")];
    let expected: Vec<_> = expected.map(|(call, value)| (call.to_owned(), value.to_owned())).into();
    assert_eq!(found, expected);
}
