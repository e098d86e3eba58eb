//! The reference tables of the documentation, as Markdown, from the program's own data.
//!
//! The pages in docs/reference contain the same text; a test compares them.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::{
    actions::ActionKind,
    cli::ReferenceOf,
    config::variables::{SETTINGS, SettingKind},
    contract::{
        advice::{Advice, Subject},
        error::{Code, EXIT_STATUSES},
    },
    http::{headers::HEADERS, routes::ROUTES},
    k8s::rbac::PolicyRule,
    telemetry::metrics::Metrics,
};

/// One table.
#[must_use]
pub fn table(of: ReferenceOf) -> String {
    match of {
        ReferenceOf::Actions => {
            rows(&["action", "other names", "what it does", "needs in RBAC"], actions())
        }
        ReferenceOf::Parameters => {
            rows(&["action", "parameter", "type", "default", "meaning"], parameters())
        }
        ReferenceOf::Errors => rows(&["code", "HTTP", "exit", "retryable", "title"], errors()),
        ReferenceOf::Advice => advice(),
        ReferenceOf::ExitStatuses => rows(&["exit", "sysexits(3)", "meaning"], exit_statuses()),
        ReferenceOf::Settings => rows(&["setting", "default", "values", "meaning"], settings()),
        ReferenceOf::Metrics => rows(&["metric", "type", "labels", "meaning"], metrics()),
        ReferenceOf::Routes => rows(&["path", "methods", "purpose"], routes()),
        ReferenceOf::Headers => rows(
            &["header", "read in", "not ASCII", "empty", "repeated", "longest", "longer"],
            headers(),
        ),
    }
}

fn rows<const N: usize>(header: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let line = |cells: &[String]| {
        let cells = cells.iter().map(|cell| format!(" {}", cell.replace('|', "\\|")));
        cells.map(|cell| cell.trim_end().to_owned() + " |").collect::<String>()
    };
    let mut lines =
        vec![format!("|{}", line(&header.map(str::to_owned))), format!("|{}", "---|".repeat(N))];
    lines.extend(rows.map(|cells| format!("|{}", line(&cells))));
    lines.join("\n")
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn codes(names: &[&str]) -> String {
    names.iter().map(|name| code(name)).collect::<Vec<_>>().join(", ")
}

fn actions() -> impl Iterator<Item = [String; 4]> {
    ActionKind::ALL.into_iter().map(|kind| {
        let descriptor = kind.descriptor();
        let mut permissions: Vec<_> = descriptor.rules.iter().map(permission).collect();
        let in_cluster: Vec<_> = descriptor.cluster_rules.iter().map(permission).collect();
        if !in_cluster.is_empty() {
            permissions.push(format!("in the cluster: {}", in_cluster.join("; ")));
        }
        [
            code(descriptor.name),
            codes(descriptor.aliases),
            descriptor.description.to_owned(),
            permissions.join("; "),
        ]
    })
}

fn permission(rule: &PolicyRule) -> String {
    let groups: Vec<_> = rule.api_groups.iter().filter(|group| !group.is_empty()).collect();
    let groups = groups.into_iter().map(|group| format!(" ({group})")).collect::<String>();
    format!("{}{groups}: {}", codes(rule.resources), rule.verbs.join(", "))
}

fn parameters() -> impl Iterator<Item = [String; 5]> {
    ActionKind::ALL.into_iter().flat_map(|kind| {
        let mut generator = SchemaSettings::draft2020_12().into_generator();
        let schema = kind.parameters_schema(&mut generator).to_value();
        let definitions = generator.definitions().clone();
        let properties = schema["properties"].as_object().cloned().unwrap_or_default();
        let in_use = properties.into_iter().filter(|(_, property)| property["deprecated"] != true);
        let rows = in_use.map(|(name, property)| {
            let required = schema["required"]
                .as_array()
                .is_some_and(|all| all.contains(&name.as_str().into()));
            [
                code(kind.name()),
                code(&name),
                type_of(&property, &definitions),
                default_of(&property, required),
                description_of(&property),
            ]
        });
        rows.collect::<Vec<_>>()
    })
}

/// The schema that a property refers to, by its name, if it does; an optional one refers to it or null.
fn reference_of(property: &Value) -> Option<&str> {
    let direct = property["$ref"].as_str();
    let path =
        direct.or_else(|| property["anyOf"].as_array()?.iter().find_map(|it| it["$ref"].as_str()));
    path?.rsplit('/').next()
}

fn type_of(property: &Value, definitions: &serde_json::Map<String, Value>) -> String {
    let own = property["type"].as_str().or_else(|| property["type"][0].as_str());
    match (reference_of(property), own) {
        (Some("ObjectName"), _) => "name".to_owned(),
        (Some("Namespace"), _) => "namespace".to_owned(),
        (Some("LabelSelector"), _) => "label selector".to_owned(),
        (Some(name), _) => {
            let variants = definitions.get(name).and_then(|it| it["oneOf"].as_array());
            let values = variants.into_iter().flatten().filter_map(|it| it["const"].as_str());
            codes(&values.collect::<Vec<_>>())
        }
        (None, Some("integer")) => match property["minimum"].as_i64() {
            Some(least) if least > i64::from(i32::MIN) => format!("integer, at least {least}"),
            _ => "integer".to_owned(),
        },
        (None, own) => own.unwrap_or("any").to_owned(),
    }
}

fn default_of(property: &Value, required: bool) -> String {
    match &property["default"] {
        _ if required => "required".to_owned(),
        Value::String(text) => code(text),
        Value::Null if property["type"] == "boolean" => code("false"),
        Value::Null => "absent".to_owned(),
        other => code(&other.to_string()),
    }
}

fn description_of(property: &Value) -> String {
    property["description"].as_str().unwrap_or_default().replace('\n', " ")
}

fn errors() -> impl Iterator<Item = [String; 5]> {
    Code::ALL.into_iter().map(|it| {
        [
            code(&it.name()),
            it.http_status().to_string(),
            it.exit_status().to_string(),
            if it.retryable() { "yes" } else { "no" }.to_owned(),
            it.title().to_owned(),
        ]
    })
}

/// A section with a table for each subject.
fn advice() -> String {
    let section = |subject: Subject| {
        let about = Code::ALL.into_iter().filter(|code| code.advice().subject == subject);
        let each = about.map(|it| {
            let Advice { when, what_to_do, .. } = it.advice();
            [code(&it.name()), when.to_owned(), what_to_do.to_owned()]
        });
        format!("### {}\n\n{}", subject.title(), rows(&["code", "when", "what to do"], each))
    };
    Subject::ALL.map(section).join("\n\n")
}

fn exit_statuses() -> impl Iterator<Item = [String; 3]> {
    EXIT_STATUSES.iter().map(|it| [it.status.to_string(), code(it.name), it.meaning.to_owned()])
}

fn settings() -> impl Iterator<Item = [String; 4]> {
    SETTINGS.into_iter().map(|setting| {
        let (default, values) = match setting.kind {
            SettingKind::Number { default, min, max } => {
                (default.to_string(), format!("{min} to {max}"))
            }
            SettingKind::Text { default, values } => (default.to_owned(), values.to_owned()),
        };
        [code(setting.name), default, values, setting.meaning.to_owned()]
    })
}

fn metrics() -> impl Iterator<Item = [String; 4]> {
    Metrics::reference().into_iter().map(|metric| {
        let labels: Vec<_> = metric.labels.iter().map(String::as_str).collect();
        [code(&metric.name), metric.kind, codes(&labels), metric.help]
    })
}

fn routes() -> impl Iterator<Item = [String; 3]> {
    ROUTES
        .iter()
        .map(|(path, methods, _, purpose)| [code(path), methods.join(", "), (*purpose).to_owned()])
}

fn headers() -> impl Iterator<Item = [String; 7]> {
    HEADERS.iter().map(|header| {
        [
            code(header.name),
            header.at.text().to_owned(),
            header.unreadable.to_string(),
            header.empty.to_string(),
            header.repeated.to_string(),
            format!("{} bytes", header.max),
            header.overlong.to_string(),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_has_its_type_default_and_meaning() {
        let table = table(ReferenceOf::Parameters);
        for row in [
            "| `scale` | `replicas` | integer, at least 0 | absent | ",
            "| `scale` | `by` | integer | absent | ",
            "| `scale` | `kind` | `Deployment`, `StatefulSet`, `ReplicaSet` | `Deployment` | ",
            "| `drain` | `node` | name | required | The node to drain. |",
            "| `drain` | `ignore_daemonsets` | boolean | `true` | ",
            "| `drain` | `force` | boolean | `false` | ",
            "| `drain` | `pod_selector` | label selector | absent | ",
            "| `restart_pod` | `namespace` | namespace | `default` | ",
        ] {
            assert!(table.contains(row), "{row}: {table}");
        }
        assert!(!table.contains("| `restart_pod` | `deployment` |"), "{table}");
    }

    #[test]
    fn a_metric_has_its_labels_and_its_unit() {
        let table = table(ReferenceOf::Metrics);
        for row in [
            "| `action_executor_actions_total` | counter | `action`, `simulate`, `result`, `cluster` | ",
            "| `action_executor_action_duration_seconds` | histogram | `action`, `simulate`, `cluster` | ",
            "| `action_executor_connections` | gauge | | ",
            "| `action_executor_build_info` | gauge | `version` | ",
            "| `action_executor_kubernetes_request_duration_seconds` | histogram | `result`, `cluster` | ",
        ] {
            assert!(table.contains(row), "{row}: {table}");
        }
    }
}
