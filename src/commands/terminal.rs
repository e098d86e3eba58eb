//! How the program looks on a terminal: the live view of a wait on standard error, and the colours of an answer on
//! standard output. Where there is no terminal, nothing of this is written.

use std::{
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::{
    contract::visible::one_line, executor::details::Details, telemetry::logging::are_colours_wanted,
};

/// How often the live view is drawn while nothing changes.
const REFRESH_INTERVAL: Duration = Duration::from_millis(120);

/// How many problems of pods are shown at a time; the answer has all.
const MAX_PROBLEMS: usize = 3;

/// The live view: how long it has taken, what is awaited now, the replicas and the pods with problems. Each line is cut
/// at the terminal's width, and all are cleared at the end.
#[derive(Default)]
pub(super) struct LiveView(Mutex<Option<Lines>>);

impl LiveView {
    /// Shows this stage; the first one begins the view.
    pub(super) fn show(&self, stage: &str) {
        self.lines(|lines| lines.head.set_message(one_line(stage)));
    }

    /// Shows these details below the stage, in place of the ones before.
    pub(super) fn show_details(&self, details: &Details) {
        self.lines(|lines| lines.show(details));
    }

    /// Clears the view.
    pub(super) fn end(&self) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lines) = lines.take() {
            lines.end();
        }
    }

    fn lines(&self, change: impl FnOnce(&mut Lines)) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(lines.get_or_insert_with(Lines::begin));
    }
}

/// The lines on the terminal.
struct Lines {
    all: MultiProgress,
    head: ProgressBar,
    details: Vec<ProgressBar>,
}

impl Lines {
    fn begin() -> Self {
        let all = MultiProgress::new();
        let head = all.add(ProgressBar::new_spinner());
        style(&head, "{spinner} {elapsed:>4}  {wide_msg}");
        head.enable_steady_tick(REFRESH_INTERVAL);
        Lines { all, head, details: Vec::new() }
    }

    fn show(&mut self, details: &Details) {
        let lines = lines_of(details);
        while self.details.len() > lines.len() {
            if let Some(surplus) = self.details.pop() {
                surplus.finish_and_clear();
                self.all.remove(&surplus);
            }
        }
        while self.details.len() < lines.len() {
            self.details.push(self.all.add(ProgressBar::new_spinner()));
        }
        for (bar, (line, is_problem)) in self.details.iter().zip(lines) {
            let is_red = is_problem && are_colours_wanted();
            style(bar, if is_red { "        {wide_msg:.red}" } else { "        {wide_msg}" });
            bar.set_message(line);
        }
    }

    fn end(self) {
        for bar in self.details.iter().chain([&self.head]) {
            bar.finish_and_clear();
        }
    }
}

/// The lines that show these details, and whether each is a problem.
fn lines_of(details: &Details) -> Vec<(String, bool)> {
    let Details { left, replicas, problems } = details;
    let left = format!("at most {} more", HumanDuration(*left));
    let first = match replicas {
        Some(replicas) => format!("{replicas}   {left}"),
        None => left,
    };
    let shown = problems.iter().take(MAX_PROBLEMS).map(|problem| (one_line(problem), true));
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    let more = (more > 0).then(|| (format!("and {more} more problems"), true));
    [(first, false)].into_iter().chain(shown).chain(more).collect()
}

/// Lays out a line. A template that cannot be read leaves the library's own.
fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
    Blue = 34,
}

impl Colour {
    fn paint(self, text: &str) -> String {
        format!("\x1b[{}m{text}\x1b[0m", self as u8)
    }
}

/// Whether standard output takes colours.
pub(super) fn takes_colours() -> bool {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stdout().is_terminal() && are_colours_wanted() && !is_dumb
}

/// The text of this answer with a symbol and colours: the first line in that of the outcome, and what a reader must not
/// miss.
pub(super) fn coloured(text: &str, answer: &Value) -> String {
    let (symbol, colour) = match answer["outcome"].as_str() {
        Some("applied" | "unchanged") => ("✔", Colour::Green),
        Some("simulated") => ("○", Colour::Blue),
        Some("pending_approval") => ("…", Colour::Yellow),
        _ => ("✘", Colour::Red),
    };
    let paint = |(number, line): (usize, &str)| match line.trim_start().split_once(':') {
        _ if number == 0 => colour.paint(&format!("{symbol} {line}")),
        Some(("warning" | "to approve", _)) => Colour::Yellow.paint(line),
        Some(("problem", _)) => Colour::Red.paint(line),
        _ => line.to_owned(),
    };
    text.lines().enumerate().map(paint).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_details_are_a_line_of_numbers_and_the_worst_problems() {
        let problems = (1..=5).map(|pod| format!("pod web-{pod}:\nCrashLoopBackOff")).collect();
        let details = Details { left: Duration::from_secs(300), replicas: None, problems };
        assert_eq!(
            lines_of(&details),
            [
                ("at most 5 minutes more".to_owned(), false),
                ("pod web-1: CrashLoopBackOff".to_owned(), true),
                ("pod web-2: CrashLoopBackOff".to_owned(), true),
                ("pod web-3: CrashLoopBackOff".to_owned(), true),
                ("and 2 more problems".to_owned(), true),
            ]
        );
        let details = Details { left: Duration::from_secs(1), ..Details::default() };
        assert_eq!(lines_of(&details), [("at most 1 second more".to_owned(), false)]);
    }

    #[test]
    fn the_first_line_has_the_colour_of_the_outcome_and_warnings_are_seen() {
        for (answer, expected) in [
            (json!({ "outcome": "applied" }), "\x1b[32m✔ Done.\x1b[0m"),
            (json!({ "outcome": "simulated" }), "\x1b[34m○ Done.\x1b[0m"),
            (json!({ "outcome": "failed" }), "\x1b[31m✘ Done.\x1b[0m"),
            (json!({ "code": "forbidden" }), "\x1b[31m✘ Done.\x1b[0m"),
        ] {
            let text = coloured("Done.\nhint: look\nwarning: mind", &answer);
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines, [expected, "hint: look", "\x1b[33mwarning: mind\x1b[0m"]);
        }
    }
}
