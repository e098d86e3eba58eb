//! Two API servers on one etcd, of which one is frozen while it holds a write: the write takes effect when
//! the server runs again, long after its sender has given up.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use action_executor::actions::ActionKind;
use kube::{Client, ResourceExt, config::Kubeconfig};

use crate::{
    cluster::{Namespace, client, eventually, shared},
    exactly_once::{LIMITS, Run, is_applied_or_unknown, transparent},
    fault_matrix::charged,
    fault_proxy::{Proxy, ProxyBehavior},
    program::{scratch, signal},
    scenario::Scenario,
};

/// An API server beside the suite's own, on the same etcd.
struct SecondServer {
    process: Child,
    client: Client,
}

impl SecondServer {
    /// Starts it with the command line of the first one, but for its port and its log.
    async fn start() -> Self {
        let first = Kubeconfig::read_from(shared().kubeconfig()).expect("is a kubeconfig");
        let address = first.clusters[0].cluster.clone().and_then(|it| it.server).expect("has one");
        let port = address.rsplit(':').next().expect("has a port").trim_end_matches('/').to_owned();
        let free = TcpListener::bind("127.0.0.1:0").expect("is bound");
        let own_port = free.local_addr().expect("has one").port().to_string();
        drop(free);
        let log = scratch("second-server.audit");
        let mut words = command_line(&port).into_iter().map(|word| match word.split_once('=') {
            Some(("--secure-port", _)) => format!("--secure-port={own_port}"),
            Some(("--audit-log-path", _)) => format!("--audit-log-path={}", log.display()),
            _ => word,
        });
        let program = words.next().expect("has a program");
        let process = Command::new(program)
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("is started");
        let mut kubeconfig = first;
        if let Some(cluster) = &mut kubeconfig.clusters[0].cluster {
            cluster.server = Some(address.replace(&port, &own_port));
        }
        let server = SecondServer { process, client: client(kubeconfig).await };
        // This also opens the connection that the write uses: to a frozen server none can be opened.
        eventually("the second API server is ready", async || {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("is whole");
            server.client.request_text(request).await.ok()
        })
        .await;
        server
    }
}

impl Drop for SecondServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The command line of the API server on this port.
fn command_line(port: &str) -> Vec<String> {
    let option = format!("--secure-port={port}");
    let processes = fs::read_dir("/proc").expect("is listed").flatten();
    let of = |process: fs::DirEntry| -> Option<Vec<String>> {
        let text = fs::read_to_string(process.path().join("cmdline")).ok()?;
        let words: Vec<_> =
            text.split('\0').filter(|it| !it.is_empty()).map(str::to_owned).collect();
        (words.first()?.ends_with("kube-apiserver") && words.contains(&option)).then_some(words)
    };
    processes.into_iter().find_map(of).expect("the API server is a process of this machine")
}

/// The deletion is sent to a frozen server. Then its pod goes, and the server runs again before or after the retry.
async fn frozen(namespace: &Namespace, scenario: &Scenario, is_thawed_first: bool) {
    let second = SecondServer::start().await;
    let (policy, request) = (namespace.policy(LIMITS), scenario.request("r1"));
    let client = second.client.clone();
    let pid = second.process.id();
    let proxy = Proxy::start(namespace, move |call| {
        if !call.is_effect() {
            return ProxyBehavior::Forward;
        }
        signal(pid, "STOP");
        ProxyBehavior::ForwardTo(client.clone())
    })
    .await;
    let first = Run::through(&proxy, &policy).send(&request).await;
    assert_eq!(first.answer()["code"], "outcome_unknown", "{first:?}");
    assert_eq!(scenario.effects_so_far().await, 0);
    let thaw = async || {
        signal(pid, "CONT");
        eventually("the frozen server has answered", async || {
            (!proxy.forwarded().iter().all(|call| !call.is_effect)).then_some(())
        })
        .await;
    };
    if is_thawed_first {
        thaw().await;
        scenario.successor().await;
    }
    let honest = transparent(namespace).await;
    let run = Run::through(&honest, &policy);
    let answer = run.resend(&request).await;
    if !is_thawed_first {
        scenario.successor().await;
        thaw().await;
    }
    assert!(is_applied_or_unknown(&answer), "{answer}");
    let again = run.resend(&request).await;
    assert!(is_applied_or_unknown(&again), "{again}");
    let accepted = [proxy.accepted_effects(), honest.accepted_effects()].concat();
    assert_eq!(accepted.len(), 1, "{accepted:?} {answer} {again}");
    assert!(charged(namespace).await >= 1, "it is refunded: {answer}");
    let successor = scenario.successor().await;
    assert!(successor.metadata.deletion_timestamp.is_none(), "{}", successor.name_any());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_in_a_frozen_api_server_never_reaches_a_successor() {
    for is_thawed_first in [true, false] {
        let scenario = Scenario::with_successor(ActionKind::RestartPod, "frozen").await;
        frozen(&scenario.namespace, &scenario, is_thawed_first).await;
    }
}
