//! action-executor runs one checked action on a Kubernetes cluster, at most once.
//!
//! [`executor::handle`] takes one [`actions::request::ActionRequest`] and returns one answer; every entry
//! point calls it. The modules, from the top down; each imports only from those below it:
//!
//! | module | responsibility |
//! |---|---|
//! | [`commands`] | one subcommand per file |
//! | [`cli`] | the command line |
//! | `lambda` | an invocation of a function to the executor and back (feature `lambda`) |
//! | [`http`] | what a connection may do, what a request says, the endpoints |
//! | [`mcp`] | the Model Context Protocol: a client's messages to the executor and back |
//! | [`manifests`] | what the cluster must contain, as YAML: RBAC, Jobs, admission policies |
//! | [`executor`] | a request from its claim to its answer |
//! | [`notifications`] | what became of real actions, as events for one sink |
//! | [`receipts`] | a signed line for each real action that ended |
//! | [`auth`] | who calls, and what they may request |
//! | [`policy`] | what a person allows: rules, approval, budget |
//! | [`diagnosis`] | what is wrong with a target: calls, findings, report |
//! | [`ledger`] | one record per request, in Events |
//! | [`actions`] | one file per action: parameters, facts, decision |
//! | [`k8s`] | Kubernetes' semantics as pure functions; calls to it in `k8s::api` |
//! | [`config`] | settings, and files that are reloaded |
//! | [`telemetry`] | metrics, traces, logs |
//! | [`contract`] | errors, answers, names: imports nothing of the above |

pub mod actions;
pub mod auth;
pub mod cli;
pub mod commands;
pub mod config;
pub mod contract;
pub mod diagnosis;
pub mod executor;
pub mod http;
pub mod k8s;
#[cfg(feature = "lambda")]
pub mod lambda;
pub mod ledger;
pub mod manifests;
pub mod mcp;
pub mod notifications;
pub mod policy;
pub mod receipts;
pub mod telemetry;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Every module of the table above, from the top down.
    const ORDER: [&str; 18] = [
        "commands",
        "cli",
        "lambda",
        "http",
        "mcp",
        "manifests",
        "executor",
        "notifications",
        "receipts",
        "auth",
        "policy",
        "diagnosis",
        "ledger",
        "actions",
        "k8s",
        "config",
        "telemetry",
        "contract",
    ];

    #[test]
    fn imports_go_down() {
        let rank = |module: &str| ORDER.iter().position(|it| *it == module);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut wrong = Vec::new();
        for (module, file, text) in ORDER.iter().flat_map(|it| sources(&root, it)) {
            for imported in imports(&text) {
                let below = rank(&imported).unwrap_or_else(|| panic!("{file}: unknown {imported}"));
                if below < rank(module).expect("is in the table") {
                    wrong.push(format!("{file} imports {imported}"));
                }
            }
        }
        assert!(wrong.is_empty(), "these imports go up: {wrong:#?}");
    }

    #[test]
    fn every_module_has_its_place_in_the_order() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let entries =
            fs::read_dir(root).expect("is a directory").map(|it| it.expect("is read").path());
        let names = entries.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()));
        // The binaries are above all modules.
        let mut modules: Vec<_> =
            names.filter(|name| !["main", "lib", "bin"].contains(&&**name)).collect();
        modules.sort();
        modules.dedup();
        let mut order = ORDER;
        order.sort();
        assert_eq!(modules, order);
    }

    /// The module, path and text of each source file of a module.
    fn sources(root: &Path, module: &'static str) -> Vec<(&'static str, String, String)> {
        let mut paths = vec![root.join(module), root.join(module).with_extension("rs")];
        let mut found = Vec::new();
        while let Some(path) = paths.pop() {
            if path.is_dir() {
                paths.extend(
                    fs::read_dir(path)
                        .expect("is a directory")
                        .map(|it| it.expect("is read").path()),
                );
            } else if let Ok(text) = fs::read_to_string(&path)
                && path.extension().is_some_and(|it| it == "rs")
            {
                found.push((module, path.display().to_string(), text));
            }
        }
        assert!(!found.is_empty(), "{module} has no source file");
        found
    }

    /// The modules of this crate that a source file names, comments and tests aside: each `x` of
    /// `crate::x` and of `crate::{x, x::{y, z}}`.
    fn imports(text: &str) -> Vec<String> {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = lines.collect::<Vec<_>>().join(" ");
        code.split("crate::").skip(1).flat_map(first_segments).collect()
    }

    /// The first segment of each path of a tree of imports.
    fn first_segments(tree: &str) -> Vec<String> {
        let (mut depth, mut first, mut found) = (0, true, vec![String::new()]);
        for c in tree.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => (first, found) = (true, [found, vec![String::new()]].concat()),
                'a'..='z' | '0'..='9' | '_' if first => found.last_mut().expect("one").push(c),
                ' ' if depth == 1 => {}
                _ => first = false,
            }
            if depth == 0 && (!first || c == '}') {
                break;
            }
        }
        found.retain(|segment| !segment.is_empty());
        found
    }

    #[test]
    fn reads_the_modules_of_an_import() {
        let text = "use crate::{\n    actions::{Plan, shared::x},\n    k8s,\n};\nuse crate::policy::Policy;";
        assert_eq!(imports(text), ["actions", "k8s", "policy"]);
        assert_eq!(imports("    crate::executor::handle(&context, request)"), ["executor"]);
    }
}
