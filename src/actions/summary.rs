//! What a reader needs of an action and its parameters to choose and to fill them in, shorter than description and
//! schema: for the tools of a model and for the help of the command line. Pure.

use serde_json::{Map, Value, json};

/// What an action does, or a parameter means. The sentences after it say when it is refused, which a simulation says as
/// well.
pub(crate) fn first_sentence(description: &str) -> &str {
    description.split_inclusive(". ").next().unwrap_or_default().trim_end()
}

/// What a reader needs of a schema of parameters: types, descriptions, values. Patterns and lengths are left out, null
/// too, and what is deprecated.
pub(crate) fn compact(schema: &Value) -> Value {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let properties: Map<_, _> = properties
        .filter(|(_, property)| property["deprecated"] != true)
        .map(|(name, property)| (name.clone(), compact_property(property)))
        .collect();
    let mut compact = json!({ "type": "object", "properties": properties });
    if let Some(required) = schema.get("required") {
        compact["required"] = required.clone();
    }
    if let Some(alternatives) = alternatives(schema) {
        compact["anyOf"] = alternatives;
    }
    compact
}

/// The fields of which one is required: the name of one target, or the selector of several.
fn alternatives(schema: &Value) -> Option<Value> {
    let groups = schema["allOf"].as_array().into_iter().flatten().chain([schema]);
    let mut alternatives = groups.filter_map(|group| group["oneOf"].as_array());
    let of_target = |all: &&Vec<Value>| all.iter().any(|it| it["required"][0] == "selector");
    let all = alternatives.find(of_target)?;
    Some(all.iter().map(|it| json!({ "required": it["required"] })).collect())
}

fn compact_property(property: &Value) -> Value {
    // An optional type is one of itself and null.
    let alternatives = property["anyOf"].as_array().into_iter().flatten();
    let typed = alternatives.into_iter().find(|it| it["type"] != "null").unwrap_or(property);
    let mut kept = Map::new();
    if let Some(kind) = first_type(&typed["type"]) {
        kept.insert("type".to_owned(), kind.clone());
    }
    if let Some(values) = values(typed) {
        kept.insert("enum".to_owned(), values);
    }
    if let Some(items) = property.get("items").filter(|items| items.get("properties").is_some()) {
        kept.insert("items".to_owned(), compact(items));
    }
    if let Some(description) = property["description"].as_str() {
        kept.insert("description".to_owned(), first_sentence(description).into());
    }
    let default = property.get("default").filter(|value| !value.is_null() && **value != false);
    kept.extend(default.map(|value| ("default".to_owned(), value.clone())));
    kept.into()
}

fn first_type(kind: &Value) -> Option<&Value> {
    match kind {
        Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null"),
        Value::Null => None,
        kind => Some(kind),
    }
}

/// The values of an enumeration, which stand in a list or one by one with a description of each.
fn values(typed: &Value) -> Option<Value> {
    let listed = typed["enum"].as_array().map(|values| values.iter().collect::<Vec<_>>());
    let single = || -> Option<Vec<&Value>> {
        typed["oneOf"].as_array()?.iter().map(|it| it.get("const")).collect()
    };
    let values = listed.or_else(single)?;
    Some(values.into_iter().filter(|value| !value.is_null()).cloned().collect())
}
