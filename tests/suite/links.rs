//! The pages for readers: every link between them resolves, the index names each page, and the README stays short.
//!
//! The blocks of pages that the program generates are what it prints.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    messages::{compare, root},
    program::Program,
};

/// Every table of the reference, and the page that has its block.
const TABLES: [(&str, &str); 9] = [
    ("actions", "actions.md"),
    ("parameters", "actions.md"),
    ("errors", "errors.md"),
    ("advice", "errors.md"),
    ("exit-statuses", "errors.md"),
    ("settings", "settings.md"),
    ("metrics", "metrics.md"),
    ("routes", "http.md"),
    ("headers", "http.md"),
];

/// The most lines of the README.
const MAX_README_LINES: usize = 250;

/// The pages outside `docs/`.
const PAGES: [&str; 6] = [
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "charts/README.md",
    "jobs/README.md",
    "release/README.md",
];

/// The Markdown files in a directory and the directories in it.
pub fn markdown_in(directory: &Path) -> Vec<PathBuf> {
    files_in(directory, "md")
}

/// The files with this extension in the directory and those below it.
fn files_in(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("is a directory") {
        let path = entry.expect("is readable").path();
        if path.is_dir() {
            found.extend(files_in(&path, extension));
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<_> = PAGES.iter().map(|page| root().join(page)).collect();
    pages.extend(markdown_in(&root().join("docs")));
    pages
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of a page that are not in a code block.
fn prose(text: &str) -> Vec<&str> {
    let mut in_code = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            lines.push(line);
        }
    }
    lines
}

/// A line without its code spans: every second part between backticks.
fn without_code_spans(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// The targets of the links in a page, `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        let line = without_code_spans(line);
        for rest in line.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            found.push(target.trim().to_owned());
        }
    }
    found
}

/// The anchor that GitHub gives to a heading: lower case, spaces as hyphens, without punctuation.
fn anchor(heading: &str) -> String {
    let mut anchor = String::new();
    for character in heading.trim().chars() {
        match character {
            ' ' => anchor.push('-'),
            '-' | '_' => anchor.push(character),
            _ if character.is_alphanumeric() => anchor.extend(character.to_lowercase()),
            _ => {}
        }
    }
    anchor
}

/// The anchors of a page; a heading that occurs again has a number.
fn anchors(text: &str) -> HashSet<String> {
    let mut anchors = HashSet::new();
    for line in prose(text) {
        let level = line.len() - line.trim_start_matches('#').len();
        let Some(heading) = line[level..].strip_prefix(' ').filter(|_| (1..=6).contains(&level))
        else {
            continue;
        };
        let first = anchor(heading);
        let repeated = (1..).map(|number| format!("{first}-{number}"));
        let free = std::iter::once(first.clone()).chain(repeated).find(|it| !anchors.contains(it));
        anchors.extend(free);
    }
    anchors
}

/// Why a link of this page leads nowhere, if it does.
fn fault(page: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
    let file = match path {
        "" => page.to_owned(),
        path => page.parent().expect("is in a directory").join(path),
    };
    if !file.exists() {
        return Some(format!("there is no file '{path}'"));
    }
    if fragment.is_empty() {
        return None;
    }
    if file.extension().is_none_or(|extension| extension != "md") {
        return Some(format!("'{path}' is no page, so it has no heading '{fragment}'"));
    }
    let known = anchors(&read(&file)).contains(fragment);
    (!known).then(|| format!("the page has no heading '{fragment}'"))
}

#[test]
fn every_link_between_pages_leads_to_a_file_and_a_heading() {
    let mut faults = Vec::new();
    let mut checked = 0;
    for page in pages() {
        for target in links(&read(&page)) {
            checked += 1;
            if let Some(fault) = fault(&page, &target) {
                let page = page.strip_prefix(root()).expect("is ours").display().to_string();
                faults.push(format!("{page}: ({target}): {fault}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(checked > 100, "only {checked} links were found");
}

#[test]
fn the_index_of_the_docs_names_every_page() {
    let docs = root().join("docs");
    let index = docs.join("README.md");
    let named: HashSet<_> = links(&read(&index))
        .iter()
        .map(|target| docs.join(target.split('#').next().unwrap_or_default()))
        .collect();
    let missing: Vec<_> = markdown_in(&docs)
        .into_iter()
        .filter(|page| *page != index && !named.contains(page))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_tests_that_the_page_on_reports_names_exist() {
    let sources: String = ["src", "tests/suite"]
        .into_iter()
        .flat_map(|directory| files_in(&root().join(directory), "rs"))
        .map(|file| read(&file))
        .collect();
    let page = read(&root().join("docs/explanation/field-reports.md"));
    let rows = page.lines().filter(|line| line.starts_with("| ")).skip(1);
    let tests: Vec<_> = rows
        .filter_map(|row| row.split('|').nth(3))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    assert!(tests.len() >= 20, "{tests:?}");
    for test in tests {
        let is_there = match test.strip_suffix("::") {
            Some(module) => sources.contains(&format!("mod {module};")),
            None => sources.contains(&format!("fn {test}(")),
        };
        assert!(is_there, "{test}");
    }
}

#[test]
fn the_readme_has_at_most_250_lines() {
    let lines = read(&root().join("README.md")).lines().count();
    assert!(lines <= MAX_README_LINES, "{lines} lines");
}

#[test]
fn every_generated_block_is_what_the_program_prints() {
    for (table, page) in TABLES {
        let done = Program::offline().args(["reference", table]).run();
        assert_eq!(done.status, 0, "{done:?}");
        let file = format!("docs/reference/{page}");
        let text = read(&root().join(&file));
        let start = format!("<!-- generated: {table} -->\n");
        let (before, rest) = text.split_once(&start).unwrap_or_else(|| panic!("{file}: {start}"));
        let (_, after) = rest.split_once("<!-- end generated -->").expect("is closed");
        let printed = done.stdout.trim_end();
        compare(&file, &format!("{before}{start}{printed}\n<!-- end generated -->{after}"));
    }
}

#[test]
fn a_generated_block_of_a_page_is_closed() {
    for page in pages() {
        let text = read(&page);
        let opened = text.matches("<!-- generated: ").count();
        let closed = text.matches("<!-- end generated -->").count();
        assert_eq!(opened, closed, "{}", page.display());
    }
}

#[test]
fn a_heading_has_the_anchor_that_github_gives_it() {
    for (heading, expected) in [
        ("What to do", "what-to-do"),
        ("`rollback_on_failure`", "rollback_on_failure"),
        ("A single request: no command, or `run`", "a-single-request-no-command-or-run"),
        ("1. Prepare the namespace", "1-prepare-the-namespace"),
        ("Host and Origin", "host-and-origin"),
    ] {
        assert_eq!(anchor(heading), expected);
    }
    let text = "# Same\n```sh\n# no heading\n```\n## Same\n";
    assert_eq!(anchors(text), HashSet::from(["same".to_owned(), "same-1".to_owned()]));
}

#[test]
fn a_link_in_code_is_not_checked() {
    let text = "[a](b.md) and `[c](d.md)`\n```\n[e](f.md)\n```\n[`g`](h.md#i)\n";
    assert_eq!(links(text), ["b.md", "h.md#i"]);
}
