//! Strict JSON: one object, no unknown or duplicate field, and errors that name the field at fault. Knows no
//! type of the contract but its error.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::contract::error::{ActionError, Code};

/// Reads `text` as `T`; an error has the field's path below `parent` (empty for the root).
pub(crate) fn read<'de, T: Deserialize<'de>>(
    text: &'de str,
    parent: &str,
) -> Result<T, ActionError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let value = strict_object(tracked).map_err(|error| {
        let path = join(parent, &track.path().to_string());
        explain(parent, &path, &error)
    })?;
    json.end().map_err(|error| explain(parent, parent, &error))?;
    Ok(value)
}

/// Reads a struct from an object only. Serde also reads one from a list of its fields, which cannot be meant.
pub(crate) fn strict_object<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct OnlyObject<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyObject<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }

    from.deserialize_map(OnlyObject(PhantomData))
}

/// The same for an object that may be null.
pub(crate) fn strict_object_or_null<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(bound = "T: Deserialize<'de>")]
    struct Object<T>(#[serde(deserialize_with = "strict_object")] T);

    Ok(Option::<Object<T>>::deserialize(from)?.map(|object| object.0))
}

/// Reads a map whose keys are all different. Serde keeps the last value of a key that is given twice.
pub(crate) fn unique_map<'de, D, K, V>(from: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + fmt::Display,
    V: Deserialize<'de>,
{
    struct Unique<K, V>(PhantomData<(K, V)>);

    impl<'de, K, V> Visitor<'de> for Unique<K, V>
    where
        K: Deserialize<'de> + Ord + fmt::Display,
        V: Deserialize<'de>,
    {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = BTreeMap::new();
            while let Some(key) = map.next_key::<K>()? {
                if found.contains_key(&key) {
                    return Err(serde::de::Error::custom(format!(
                        "the key {key} is given more than once"
                    )));
                }
                let value = map.next_value()?;
                found.insert(key, value);
            }
            Ok(found)
        }
    }

    from.deserialize_map(Unique(PhantomData))
}

fn join(parent: &str, child: &str) -> String {
    match (parent, child) {
        (parent, "." | "?" | "") => parent.to_owned(),
        ("", child) => child.to_owned(),
        (parent, child) => format!("{parent}.{child}"),
    }
}

/// The error of serde with the field's path and without the value, which may be a secret.
fn explain(parent: &str, path: &str, error: &serde_json::Error) -> ActionError {
    let full = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let message = full.strip_suffix(&position).unwrap_or(&full);
    if let Some(field) = quoted(message, "missing field `") {
        return ActionError::invalid_field(join(path, field), "missing");
    }
    if let Some(field) = quoted(message, "duplicate field `") {
        return ActionError::invalid_field(
            join(strip_last(path, field), field),
            "given more than once",
        );
    }
    if let Some(field) = quoted(message, "unknown field `") {
        let known = message.split_once("expected ").map_or("", |(_, known)| known);
        let error = ActionError::invalid_field(
            join(strip_last(path, field), &sanitized(field)),
            "unknown field",
        );
        let known = known.trim_start_matches("one of ");
        return if known.is_empty() { error } else { error.with_hint(format!("known: {known}")) };
    }
    let what = match wrong_type(message) {
        Some(("null", _)) if parent == "parameters" && path != parent => "missing".to_owned(),
        Some(("an integer", range)) if range.starts_with("a whole number") => {
            format!("must be {range}")
        }
        Some((got, expected)) => format!("expected {expected}, got {got}"),
        None => match message.split_once(", expected ") {
            Some((unknown, known)) if unknown.starts_with("unknown variant") => {
                format!("must be {known}")
            }
            _ if message.starts_with("EOF while parsing") => "the JSON ends too early".to_owned(),
            _ if message == "trailing characters" => "text after the end of the JSON".to_owned(),
            _ => message.to_owned(),
        },
    };
    match path {
        "" => ActionError::new(Code::InvalidRequest, format!("the request: {what}{position}")),
        path => ActionError::invalid_field(path, what),
    }
}

/// The name between `start` and the next backtick.
fn quoted<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    // The name of an unknown field may contain a backtick: the list of known fields begins after it.
    let rest = message.strip_prefix(start)?;
    rest.split_once("`, expected").or_else(|| rest.rsplit_once('`')).map(|(name, _)| name)
}

/// `path` without its last segment if that is `field` itself.
fn strip_last<'a>(path: &'a str, field: &str) -> &'a str {
    match path.strip_suffix(field) {
        Some(rest) => rest.strip_suffix('.').unwrap_or(rest),
        None => path,
    }
}

/// The name of an unknown field, safe to print.
fn sanitized(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `invalid type: string "no", expected a boolean` as (`a string`, `a boolean`).
fn wrong_type(message: &str) -> Option<(&'static str, &str)> {
    let rest = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))?;
    let (got, expected) = rest.rsplit_once(", expected ")?;
    let got = match got.split([' ', '`']).next()? {
        "null" | "unit" => "null",
        "boolean" => "a boolean",
        "integer" => "an integer",
        "floating" => "a number",
        "string" => "a string",
        "sequence" => "a list",
        "map" => "an object",
        _ => "something else",
    };
    Some((got, in_plain_english(expected)))
}

/// The name of a Rust type in the terms of JSON.
fn in_plain_english(expected: &str) -> &str {
    match expected {
        "u64" => "a whole number from 0",
        "u32" => "a whole number from 0 to 4294967295",
        "a nonzero u32" => "a whole number from 1 to 4294967295",
        "i32" => "a whole number from -2147483648 to 2147483647",
        _ if expected.starts_with("struct ") => "an object",
        _ => expected,
    }
}
