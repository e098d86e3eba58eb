//! Setting and removing annotations that an operator reads, beside the mark of the request.

use json_patch::{PatchOperation, jsonptr::PointerBuf};
use kube::core::ObjectMeta;

use crate::{
    contract::response::Change,
    k8s::conditional_patch::{add, remove, test},
};

/// An annotation, and its value afterwards; none to remove it.
pub(crate) type Entry<'a> = (&'a str, Option<String>);

/// Sets and removes the entries. Each must be as it was read.
pub(crate) fn operations(metadata: &ObjectMeta, entries: &[Entry]) -> Vec<PatchOperation> {
    let of_entry = |(key, to): &Entry| {
        let path = ["metadata", "annotations", *key];
        let set = match to {
            Some(value) => add(&path, value.as_str().into()),
            None => remove(&path),
        };
        [test(&path, now(metadata, key).into()), set]
    };
    entries.iter().flat_map(of_entry).collect()
}

/// How they change the object.
pub(crate) fn changes(metadata: &ObjectMeta, entries: &[Entry]) -> Vec<Change> {
    let of_entry = |(key, to): &Entry| Change {
        path: path(key),
        from: now(metadata, key).into(),
        to: to.clone().into(),
    };
    entries.iter().map(of_entry).collect()
}

/// The path of an annotation (RFC 6901).
pub(crate) fn path(key: &str) -> String {
    PointerBuf::from_tokens(["metadata", "annotations", key]).to_string()
}

fn now<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_annotation_must_be_as_it_was_read() {
        let metadata: ObjectMeta =
            serde_yaml_ng::from_str("annotations: {example.com/b: old}").expect("is metadata");
        let entries = [("example.com/a", Some("new".to_owned())), ("example.com/b", None)];
        let [a, b] =
            ["/metadata/annotations/example.com~1a", "/metadata/annotations/example.com~1b"];
        assert_eq!(
            json!(operations(&metadata, &entries)),
            json!([
                { "op": "test", "path": a, "value": null },
                { "op": "add", "path": a, "value": "new" },
                { "op": "test", "path": b, "value": "old" },
                { "op": "remove", "path": b },
            ])
        );
        let found = changes(&metadata, &entries);
        assert_eq!(json!(found[0]), json!({ "path": a, "from": null, "to": "new" }));
        assert_eq!(json!(found[1]), json!({ "path": b, "from": "old", "to": null }));
    }
}
