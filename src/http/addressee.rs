//! Which cluster of a list a request names, as far as that decides of which permits it takes one: a decision on the
//! body alone, before it is read strictly. Must authorize and refuse nothing: what cannot be read is refused where it
//! is carried out.

use serde::Deserialize;

use crate::mcp::{
    is_about_a_task,
    protocol::{self, Message},
};

/// What a request says of its cluster.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Addressee {
    /// The name of the cluster, if it names one.
    pub cluster: Option<String>,
}

/// The parameters of a call of a tool.
#[derive(Deserialize)]
struct CallParams {
    arguments: Option<Addressee>,
}

/// The parameters of a message about a task.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Task {
    task_id: String,
}

impl Addressee {
    /// That of a request in JSON; none if it is no request.
    pub(crate) fn of_request(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// That of a message of the Model Context Protocol; none if it is neither a call of a tool nor about a task.
    pub(crate) fn of_message(json: &[u8]) -> Option<Self> {
        let Ok(Message::Request(message)) = protocol::read(json) else { return None };
        if message.method == "tools/call" {
            let CallParams { arguments } = message.params().ok()?;
            return Some(arguments.unwrap_or_default());
        }
        if !is_about_a_task(&message) {
            return None;
        }
        let Task { task_id } = message.params().ok()?;
        Addressee::of_task(&task_id)
    }

    /// That of a task's id, which begins with the name of the cluster if clusters are listed.
    fn of_task(id: &str) -> Option<Self> {
        match *id.split('/').collect::<Vec<_>>().as_slice() {
            [cluster, _, _, _] => Some(Addressee { cluster: Some(cluster.to_owned()) }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(found: Option<Addressee>) -> Option<Option<String>> {
        found.map(|addressee| addressee.cluster)
    }

    #[test]
    fn a_request_names_its_cluster_or_leaves_it_out() {
        for (json, cluster) in [
            (
                r#"{"type":"cordon","cluster":"blue","parameters":{"cluster":"red"}}"#,
                Some(Some("blue")),
            ),
            (r#"{"type":"cordon","parameters":{"cluster":"red"}}"#, Some(None)),
            (r#"{"cluster":null}"#, Some(None)),
            (r#"{"cluster":1}"#, None),
            (r#"{"cluster":"blue","cluster":"red"}"#, None),
            ("blue", None),
            ("", None),
        ] {
            let expected = cluster.map(|name| name.map(str::to_owned));
            assert_eq!(named(Addressee::of_request(json.as_bytes())), expected, "{json}");
        }
    }

    #[test]
    fn a_message_is_about_the_cluster_of_its_tool_or_its_task() {
        for (method, params, cluster) in [
            (
                "tools/call",
                r#"{"name":"execute","arguments":{"cluster":"blue"}}"#,
                Some(Some("blue")),
            ),
            ("tools/call", r#"{"name":"execute","arguments":{}}"#, Some(None)),
            ("tools/call", r#"{"name":"execute"}"#, Some(None)),
            ("tools/call", r#"{"name":"execute","arguments":{"cluster":1}}"#, None),
            ("tools/list", r#"{"cluster":"blue"}"#, None),
            ("tasks/get", r#"{"taskId":"blue/shop/r1/dGFn"}"#, Some(Some("blue"))),
            ("tasks/get", r#"{"taskId":"shop/r1/dGFn"}"#, None),
            // A field that is of no meaning to the method chooses nothing.
            (
                "tools/call",
                r#"{"name":"execute","arguments":{"cluster":"blue"},"taskId":1}"#,
                Some(Some("blue")),
            ),
            ("tasks/cancel", r#"{"taskId":"blue/shop/r1/dGFn","arguments":1}"#, Some(Some("blue"))),
            ("tools/list", r#"{"taskId":"blue/shop/r1/dGFn"}"#, None),
            ("ping", r#"{"taskId":"blue/shop/r1/dGFn"}"#, None),
        ] {
            let json =
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
            let expected = cluster.map(|name| name.map(str::to_owned));
            assert_eq!(named(Addressee::of_message(json.as_bytes())), expected, "{json}");
        }
    }
}
