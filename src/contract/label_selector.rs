//! A label selector in the notation of kubectl, for example `app=web,tier!=db`. Pure.
//!
//! It is checked when it is created, and matches labels as the API server does: what was selected can be compared again
//! later, without a call.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Deref,
};

use kube::core::{Expression, Selector, SelectorExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::contract::names::{LabelValue, QualifiedName, checked_string};

/// The length of a selector, in bytes.
const MAX_LENGTH: usize = 512;

/// A label selector as of kubectl, with `=`, `==`, `!=`, `in`, `notin`, `key` and `!key`, of 1 to 512 characters
/// ([Kubernetes: Label selectors](https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 512,
    "pattern" = r"^[-A-Za-z0-9_./=!(), ]+$"
))]
pub struct LabelSelector(String);

checked_string!(LabelSelector, check);

impl LabelSelector {
    /// Whether an object with these labels is selected.
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        parse(&self.0).is_ok_and(|selector| selector.matches(labels))
    }
}

fn check(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > MAX_LENGTH {
        return Err(format!("must have from 1 to {MAX_LENGTH} characters"));
    }
    parse(text).map(|_| ()).map_err(|at| {
        // The part is of the selector's own characters, and no secret has its syntax.
        format!("must be a label selector such as app=web,tier!=db; requirement {at} is not one")
    })
}

/// The requirements of a selector, or the number of the first one that is none.
fn parse(text: &str) -> Result<Selector, usize> {
    let each = requirements(text).into_iter().enumerate();
    each.map(|(index, part)| requirement(part.trim()).ok_or(index + 1)).collect()
}

/// The parts between the commas outside parentheses.
fn requirements(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// One requirement, by the grammar of `k8s.io/apimachinery/pkg/labels`, without its comparisons of numbers.
fn requirement(text: &str) -> Option<Expression> {
    if let Some(rest) = text.strip_prefix('!') {
        return Some(Expression::DoesNotExist(key(rest)?));
    }
    let end = text.find(['=', '!', ' ', '(']).unwrap_or(text.len());
    let (name, rest) = (key(&text[..end])?, text[end..].trim());
    // The longer operator first: `==` begins with `=`.
    if rest.is_empty() {
        Some(Expression::Exists(name))
    } else if let Some(other) = rest.strip_prefix("!=") {
        Some(Expression::NotEqual(name, value(other)?))
    } else if let Some(equal) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
        Some(Expression::Equal(name, value(equal)?))
    } else if let Some(others) = rest.strip_prefix("notin") {
        Some(Expression::NotIn(name, values(others)?))
    } else {
        Some(Expression::In(name, values(rest.strip_prefix("in")?)?))
    }
}

fn key(text: &str) -> Option<String> {
    QualifiedName::try_from(text.trim().to_owned()).ok().map(String::from)
}

fn value(text: &str) -> Option<String> {
    LabelValue::try_from(text.trim().to_owned()).ok().map(String::from)
}

fn values(text: &str) -> Option<BTreeSet<String>> {
    let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
    inner.split(',').map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(text: &str) -> Result<LabelSelector, String> {
        LabelSelector::try_from(text.to_owned())
    }

    #[test]
    fn each_notation_of_kubectl_selects_what_it_says() {
        let labels: BTreeMap<_, _> = [("app", "web"), ("example.com/tier", "front"), ("empty", "")]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        for (text, expected) in [
            ("app=web", true),
            ("app==web", true),
            (" app = web , example.com/tier=front ", true),
            ("app=api", false),
            ("app!=api", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (web, api)", true),
            ("app in (api)", false),
            ("app notin (api)", true),
            ("app notin(web)", false),
            ("other notin (web)", true),
            ("app", true),
            ("other", false),
            ("!other", true),
            ("! app", false),
            ("empty=", true),
            ("empty in (,x)", true),
            ("app=web,other", false),
            ("app in (web,api),example.com/tier!=back", true),
            // The words are operators only where one can stand.
            ("in", false),
            ("in in (in)", false),
        ] {
            let matches = selector(text).expect(text).matches(&labels);
            assert_eq!(matches, expected, "{text}");
        }
    }

    #[test]
    fn empty_and_invalid_selectors_are_refused() {
        for text in [
            "",
            " ",
            ",",
            "app=web,",
            "app=a b",
            "=web",
            "app in",
            "app in ()x",
            "app in (a",
            "app)",
            "app=(a)",
            "app=web;x",
            "app>1",
            "-app",
            "a//b",
            "app in (a b)",
            "!app=web",
            "app=!web",
            "app in (a),(b)",
            "!",
            "!!app",
        ] {
            let error = selector(text).expect_err(text);
            assert!(error.starts_with("must "), "{text}: {error}");
        }
        let error = selector("app=web,tier=").and(selector("app,=x")).expect_err("is refused");
        assert!(error.ends_with("requirement 2 is not one"), "{error}");
        assert!(selector(&"a,".repeat(300)).is_err());
    }
}
