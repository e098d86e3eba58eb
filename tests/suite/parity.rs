//! All entry points share one handler: every fixture gets the same answer from each of them.

use serde_json::{Value, json};

use crate::{
    cluster::shared,
    contract::fixtures,
    mcp,
    program::{Engine, Program, Server},
};

/// The answer without the parts that must differ: times, and ids that were generated.
fn comparable(body: &[u8], request: &[u8]) -> Value {
    let mut value: Value = serde_json::from_slice(body).expect("is JSON");
    let given = serde_json::from_slice::<Value>(request).ok();
    let made = given.and_then(|request| request["id"].as_str().map(|_| ())).is_none();
    blank(&mut value, made);
    value
}

fn blank(value: &mut Value, made: bool) {
    for name in ["started_at", "finished_at"] {
        if value.get(name).is_some() {
            value[name] = "T".into();
        }
    }
    if made && value.get("id").is_some() {
        value["id"] = "I".into();
    }
    for change in value["changes"].as_array_mut().into_iter().flatten() {
        change["to"] = "C".into();
    }
}

/// A CloudEvent in binary mode.
fn event_request(data: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         ce-specversion: 1.0\r\nce-type: dev.action-executor.action.request.v1\r\nce-id: 7\r\n\
         ce-source: /parity\r\nContent-Length: {}\r\n\r\n",
        data.len()
    );
    [head.as_bytes(), data].concat()
}

/// The Lambda function's answer; `None` if the fixture is no JSON, which an invocation must be.
#[cfg(feature = "lambda")]
fn invoked(
    function: &crate::lambda::Function,
    request: &[u8],
) -> Result<Vec<u8>, serde_json::Error> {
    use crate::lambda::Outcome;
    serde_json::from_slice::<&serde_json::value::RawValue>(request)?;
    Ok(match function.invoke(request) {
        Outcome::Answered(answer) => answer.to_string().into_bytes(),
        Outcome::Failed(_, message) => message.into_bytes(),
    })
}

#[test]
fn every_fixture_gets_the_same_answer_from_every_entry_point() {
    let mut stdio = mcp::Stdio::start(Program::offline().args(["mcp"]));
    let servers =
        Engine::ALL.map(|engine| (engine, Server::start_with(engine, Program::offline())));
    #[cfg(feature = "lambda")]
    let function = crate::lambda::Function::start(&[]);
    for (name, request) in fixtures() {
        let piped = Program::offline().input(request.clone()).run();
        let expected = comparable(piped.stdout.as_bytes(), &request);

        for (engine, server) in &servers {
            let posted = server.execute(&request);
            assert_eq!(comparable(&posted.body, &request), expected, "{name} over {engine:?}");
            let succeeded = posted.status == 200;
            assert_eq!(succeeded, piped.status == 0, "{name}: {} {}", posted.status, piped.status);
            if !succeeded {
                assert_eq!(expected["status"], posted.status, "{name}");
            }

            let received = server.raw(&event_request(&request));
            let answer = comparable(&received.body, &request);
            assert_eq!(answer, expected, "{name} in an event over {engine:?}");

            if let Some((tool, arguments)) = mcp::call_of(&request) {
                let result = mcp::Http::new(server).call(tool, &arguments);
                let structure = result["structuredContent"].to_string();
                let answer = comparable(structure.as_bytes(), &request);
                assert_eq!(answer, expected, "{name} by MCP over {engine:?}");
            }
        }
        if let Some((tool, arguments)) = mcp::call_of(&request) {
            let result = stdio.call(tool, &arguments);
            let answer = comparable(result["structuredContent"].to_string().as_bytes(), &request);
            assert_eq!(answer, expected, "{name} by MCP over standard input and output");
        }

        #[cfg(feature = "lambda")]
        if let Ok(answer) = invoked(&function, &request) {
            assert_eq!(comparable(&answer, &request), expected, "{name} by invocation");
        }

        // An environment variable holds no NUL and, here, only UTF-8.
        let Ok(text) = String::from_utf8(request.clone()) else { continue };
        if text.contains('\0') || text.len() > 100_000 {
            continue;
        }
        let environment = Program::offline().env("ACTION_REQUEST", text).run();
        let answer = comparable(environment.stdout.as_bytes(), &request);
        assert_eq!(answer, expected, "{name} from the environment");
        assert_eq!(environment.status, piped.status, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_restart_gets_the_same_answer_from_every_entry_point() {
    let namespace = shared().namespace("parity").await;
    namespace.running_deployment("web", 1).await;
    let request = |id: &str| {
        json!({
            "type": "restart_k8s", "simulate": false, "wait": true, "id": id,
            "parameters": { "deployment": "web", "namespace": namespace.name() },
        })
        .to_string()
    };
    let program = || Program::with_kubeconfig(namespace.kubeconfig());
    let piped = program().input(request("piped")).run();
    let environment = program().env("ACTION_REQUEST", request("from-env")).run();
    let posted = Engine::ALL.map(|engine| {
        let server = Server::start_with(engine, program());
        server.execute(request(&format!("posted-{engine:?}")).as_bytes())
    });
    let shape = |body: &[u8]| {
        let mut value: Value = serde_json::from_slice(body).expect("is JSON");
        blank(&mut value, true);
        let at =
            value["result"].as_str().and_then(|it| it.find("restarted at ")).expect("is reported");
        value["result"] = value["result"].as_str().expect("is text")[at + 38..].into();
        value["target"]["resourceVersion"] = "V".into();
        // A warning reports the restarts of the earlier entry points.
        let warnings = value["warnings"].as_array_mut().expect("are there");
        warnings.retain(|it| !it.to_string().contains("it was restarted"));
        for change in value["changes"].as_array_mut().expect("are there") {
            change["from"] = "C".into();
        }
        value
    };
    let expected = shape(piped.stdout.as_bytes());
    assert_eq!(expected["rollout"]["state"], "complete");
    assert_eq!(shape(environment.stdout.as_bytes()), expected);
    for posted in posted {
        assert_eq!((shape(&posted.body), posted.status), (expected.clone(), 200));
    }
    assert_eq!((piped.status, environment.status), (0, 0));
}
