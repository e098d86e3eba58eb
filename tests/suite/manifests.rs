//! The manifests that users copy: an API server accepts each of them strictly, and those in jobs/ equal what the
//! program renders.

use std::{fs, path::PathBuf, process::Command};

use action_executor::actions::ActionKind;
use serde_json::{Value, json};

use crate::{
    cluster::shared,
    links::markdown_in,
    program::{Program, scratch},
    scenario,
};

fn directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn parse(yaml: &str) -> Value {
    serde_yaml_ng::from_str(yaml).expect("is YAML")
}

/// Whether an API server has this kind built in.
fn is_built_in(object: &Value) -> bool {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    !["argoproj.io", "tekton.dev", "serving.knative.dev", "kustomize.config.k8s.io"]
        .iter()
        .any(|group| version.starts_with(group))
}

#[tokio::test]
async fn an_api_server_accepts_every_file_in_jobs() {
    let files =
        fs::read_dir(directory("jobs")).expect("is there").map(|file| file.expect("is").path());
    let yaml = files.filter(|path| path.extension().is_some_and(|end| end == "yaml"));
    let objects: Vec<_> =
        yaml.map(|path| parse(&fs::read_to_string(path).expect("is text"))).collect();
    assert!(objects.len() > ActionKind::ALL.len());
    let built_in: Vec<_> = objects.into_iter().filter(is_built_in).collect();
    shared().create_strictly(&built_in);
}

/// A part of Knative's own schemas: the fields that our files may use. A field that is not listed here is unknown
/// there too.
fn knatives_schema(kind: &str) -> Value {
    let object = |required: Value, properties: Value| {
        json!({
            "type": "object", "additionalProperties": false,
            "required": required, "properties": properties,
        })
    };
    let text = json!({ "type": "string", "minLength": 1 });
    let texts = json!({ "type": "object", "additionalProperties": text });
    let duration = json!({ "type": "string", "pattern": "^PT[0-9]+[HMS]$" });
    let destination = json!({ "ref": object(json!(["apiVersion", "kind", "name"]), json!({
            "apiVersion": text, "kind": text, "name": text,
        })) });
    let destination = object(json!(["ref"]), destination);
    let metadata =
        object(json!(["name"]), json!({ "name": text, "namespace": text, "labels": texts }));
    let spec = match kind {
        "Broker" => json!({ "type": "object" }),
        "Trigger" => object(
            json!(["broker", "subscriber"]),
            json!({
                "broker": text,
                "filter": object(json!(["attributes"]), json!({ "attributes": texts })),
                "subscriber": destination,
                "delivery": object(json!([]), json!({
                    "retry": { "type": "integer", "minimum": 0 },
                    "backoffPolicy": { "enum": ["linear", "exponential"] },
                    "backoffDelay": duration, "timeout": duration, "deadLetterSink": destination,
                })),
            }),
        ),
        _ => object(
            json!(["template"]),
            json!({ "template": object(json!(["spec"]), json!({
                "metadata": object(json!([]), json!({ "labels": texts, "annotations": texts })),
                // The API server validates this part, as a pod's.
                "spec": { "type": "object" },
            })) }),
        ),
    };
    object(
        json!(["apiVersion", "kind", "metadata"]),
        json!({ "apiVersion": text, "kind": { "const": kind }, "metadata": metadata, "spec": spec }),
    )
}

#[tokio::test]
async fn the_knative_files_match_its_schema_and_each_other() {
    let read = |name: &str| {
        parse(&fs::read_to_string(directory("jobs/knative").join(name)).expect("is there"))
    };
    let (service, broker, trigger) =
        (read("service.yaml"), read("broker.yaml"), read("trigger.yaml"));
    for (object, group) in [
        (&service, "serving.knative.dev/v1"),
        (&broker, "eventing.knative.dev/v1"),
        (&trigger, "eventing.knative.dev/v1"),
    ] {
        assert_eq!(object["apiVersion"], group);
        let kind = object["kind"].as_str().expect("has one");
        let schema = jsonschema::validator_for(&knatives_schema(kind)).expect("is a schema");
        let faults: Vec<_> = schema.iter_errors(object).map(|it| it.to_string()).collect();
        assert!(faults.is_empty(), "{kind}: {faults:?}");
    }
    assert_eq!(trigger["spec"]["broker"], broker["metadata"]["name"]);
    assert_eq!(trigger["spec"]["subscriber"]["ref"]["name"], service["metadata"]["name"]);
    let kind = &trigger["spec"]["filter"]["attributes"]["type"];
    assert_eq!(kind, "dev.action-executor.action.request.v1");
    let mut pod = service["spec"]["template"]["spec"].clone();
    let own = pod.as_object_mut().expect("is an object").remove("timeoutSeconds");
    assert_eq!(trigger["spec"]["delivery"]["timeout"], format!("PT{}S", own.expect("is there")));
    // Knative has a default port for a probe.
    pod["containers"][0]["readinessProbe"]["httpGet"]["port"] = 8000.into();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "generateName": "knative-" }, "spec": pod,
    });
    // The user creates the account.
    let mut pod = pod;
    pod["spec"].as_object_mut().expect("is an object").remove("serviceAccountName");
    shared().create_strictly(&[pod]);
}

#[tokio::test]
async fn an_api_server_accepts_every_manifest_in_the_docs() {
    let mut objects = Vec::new();
    let mut pages = ["README.md", "jobs/README.md", "charts/README.md"].map(directory).to_vec();
    pages.extend(markdown_in(&directory("docs")));
    for page in pages {
        let text = fs::read_to_string(page).expect("is text");
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let manifests = blocks.filter(|block| block.contains("\nkind: "));
        objects.extend(manifests.map(parse).filter(is_built_in));
    }
    assert!(!objects.is_empty());
    for object in &mut objects {
        // The namespace of an example is the reader's.
        object["metadata"].as_object_mut().expect("is there").remove("namespace");
    }
    shared().create_strictly(&objects);
}

#[test]
fn the_jobs_are_what_jobs_render_writes() {
    let written = scratch("jobs");
    fs::create_dir_all(&written).expect("is made");
    let status = Command::new(directory("jobs/render")).arg(&written).status().expect("runs");
    assert!(status.success(), "{status}");
    for kind in ActionKind::ALL {
        let name = format!("{}.yaml", kind.name());
        let read =
            |directory: PathBuf| fs::read_to_string(directory.join(&name)).expect("is there");
        assert_eq!(read(directory("jobs")), read(written.clone()), "{name}: run `make jobs`");
    }
}

#[test]
fn each_action_has_the_job_that_the_program_renders() {
    for kind in ActionKind::ALL {
        let path = directory("jobs").join(format!("{}.yaml", kind.name()));
        let text =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for mark in ["# 1. ", "# 2. ", "# 3. "] {
            assert_eq!(text.matches(mark).count(), 1, "{}: {mark}", path.display());
        }
        let mut written = parse(&text);
        let request = json!({
            "type": kind.name(), "parameters": scenario::example(kind), "wait": true,
        });
        let file = scratch("request.json");
        fs::write(&file, request.to_string()).expect("is written");
        let arguments = ["job", "--output", "json", file.to_str().expect("is text")];
        let done = Program::offline().args(arguments).run();
        let mut rendered: Value = serde_json::from_str(&done.stdout).expect("is JSON");
        // A file passes the request in separate variables, and its name and id come from the cluster.
        let env = written.pointer_mut("/spec/template/spec/containers/0/env").expect("is there");
        let names: Vec<_> =
            env.as_array().expect("is a list").iter().map(|variable| &variable["name"]).collect();
        for name in ["ACTION_TYPE", "ACTION_SIMULATE", "ACTION_ID", "ACTION_EXECUTOR_POLICY"] {
            assert!(names.contains(&&json!(name)), "{}: {name}", path.display());
        }
        *env = Value::Null;
        for object in [&mut written, &mut rendered] {
            object["spec"]["template"]["spec"]["containers"][0]["env"] = Value::Null;
            let metadata = object["metadata"].as_object_mut().expect("is there");
            for own in ["name", "generateName", "namespace", "annotations"] {
                metadata.remove(own);
            }
            for labels in ["/metadata/labels", "/spec/template/metadata/labels"] {
                let labels = object.pointer_mut(labels).and_then(Value::as_object_mut);
                labels.expect("are there").remove("app.kubernetes.io/managed-by");
            }
        }
        assert_eq!(written, rendered, "{}", path.display());
    }
}
