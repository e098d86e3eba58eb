//! TLS: negotiated versions and protocols, certificate rotation, the health check, and client certificates.

use std::{
    fs,
    io::{BufReader, Read},
    os::unix::fs::symlink,
    path::Path,
    sync::Arc,
};

use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde_json::json;
use tokio_rustls::rustls::{ClientConfig, ProtocolVersion};

use crate::{
    cluster::shared,
    pki::{Authority, Files, Pair},
    program::{Program, Reply, Server, execute_request, scratch},
};

const REQUEST: &[u8] = br#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
const HEALTH: &[u8] = b"GET /api/v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
const KEY: &str = "7d1c0ffee0ffee0ffee0ffee0ffee0ff";

/// A server with a certificate of this authority.
fn server(authority: &Authority) -> Server {
    let files = authority.server().files();
    Server::start(files.apply_to(Program::offline())).over_tls(authority.trusted_by(None))
}

#[test]
fn clients_that_trust_the_authority_are_served() {
    let authority = Authority::new();
    let server = server(&authority);
    assert_eq!(server.execute(REQUEST).status, 200);
    let client = Authority::new().trusted_by(None);
    let mut stream = server.secured(&client);
    assert!(stream.read(&mut [0]).is_err());
}

#[test]
fn http_1_1_alone_is_negotiated_over_either_tls_version() {
    let authority = Authority::new();
    let server = server(&authority);
    let speaking = |protocols: &[&[u8]]| {
        let mut client = authority.trusted_by(None).as_ref().clone();
        client.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
        let mut over = BufReader::new(server.secured(&Arc::new(client)));
        let status = Reply::exchange(&mut over, HEALTH).status;
        let agreed = &over.get_ref().conn;
        assert_eq!(agreed.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        (status, agreed.alpn_protocol().map(<[u8]>::to_vec))
    };
    let http = Some(b"http/1.1".to_vec());
    assert_eq!(speaking(&[]), (200, None));
    assert_eq!(speaking(&[b"h2", b"http/1.1"]), (200, http));
    assert_eq!(speaking(&[b"h2"]).0, 0);
    let curl = |version: &str| {
        let url = format!("https://{}/api/v1/healthz", server.address());
        let arguments = ["-sk", "--tls-max", version, "--http2", &url, "-w", "%{http_version}"];
        let done = std::process::Command::new("curl").args(arguments).output().expect("curl runs");
        (done.status.success(), String::from_utf8_lossy(&done.stdout).into_owned())
    };
    for version in ["1.2", "1.3"] {
        assert_eq!(curl(version), (true, r#"{"status":"ok"}1.1"#.to_owned()), "{version}");
    }
    assert!(!curl("1.1").0);
}

/// The certificate that the server presents.
fn served_certificate(server: &Server, client: &Arc<ClientConfig>) -> Vec<u8> {
    let mut over = BufReader::new(server.secured(client));
    assert_eq!(Reply::exchange(&mut over, HEALTH).status, 200);
    over.get_ref().conn.peer_certificates().expect("has one")[0].to_vec()
}

/// Places a pair where a symbolic link points, as a kubelet updates a mounted Secret: both files at once.
fn mount(directory: &Path, pair: &Pair) -> Files {
    let version =
        directory.join(format!("..{}", fs::read_dir(directory).expect("is there").count()));
    fs::create_dir(&version).expect("is made");
    fs::write(version.join("tls.crt"), &pair.certificate).expect("is written");
    fs::write(version.join("tls.key"), &pair.key).expect("is written");
    symlink(&version, directory.join("..new")).expect("is linked");
    fs::rename(directory.join("..new"), directory.join("..data")).expect("is renamed");
    let file = |name| directory.join("..data").join(name);
    Files { certificate: file("tls.crt"), key: file("tls.key") }
}

#[test]
fn a_rotated_certificate_is_used_at_once_and_drops_no_connection() {
    let authority = Authority::new();
    let client = authority.trusted_by(None);
    let directory = scratch("secret");
    fs::create_dir(&directory).expect("is made");
    let (first, second) = (authority.server(), authority.server());
    let files = mount(&directory, &first);
    let server = Server::start(files.apply_to(Program::offline())).over_tls(client.clone());
    let mut old = BufReader::new(server.secured(&client));
    assert_eq!(Reply::exchange(&mut old, HEALTH).status, 200);
    assert_eq!(served_certificate(&server, &client), first.der().to_vec());
    mount(&directory, &second);
    assert_eq!(served_certificate(&server, &client), second.der().to_vec());
    assert_eq!(Reply::exchange(&mut old, HEALTH).status, 200);
}

#[test]
fn a_mismatched_pair_is_ignored_and_the_server_is_not_ready() {
    let authority = Authority::new();
    let client = authority.trusted_by(None);
    let directory = scratch("secret");
    fs::create_dir(&directory).expect("is made");
    let first = authority.server();
    let files = mount(&directory, &first);
    let server = Server::start(files.apply_to(Program::offline())).over_tls(client.clone());
    let metrics = || String::from_utf8(server.get("/metrics").body).expect("is text");
    assert!(
        metrics().contains(r#"action_executor_config_reload_successful{file="certificate"} 1"#)
    );
    assert!(
        metrics().contains(
            "action_executor_certificate_expiry_timestamp_seconds{certificate=\"server\"} "
        )
    );

    let torn = Pair { key: authority.server().key, ..authority.server() };
    mount(&directory, &torn);
    for _ in 0..3 {
        assert_eq!(served_certificate(&server, &client), first.der().to_vec());
    }
    let reply = server.get("/readyz");
    let detail = reply.json()["detail"].as_str().expect("has a reason").to_owned();
    assert!(reply.status == 503 && detail.contains("tls.key cannot be used with"), "{reply:?}");
    assert!(
        metrics().contains(r#"action_executor_config_reload_successful{file="certificate"} 0"#)
    );
    let logged = server.log().matches("certificate not reloaded").count();
    assert_eq!(logged, 1, "{}", server.log());

    let second = authority.server();
    mount(&directory, &second);
    assert_eq!(served_certificate(&server, &client), second.der().to_vec());
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn an_unusable_pair_is_a_startup_error() {
    let authority = Authority::new();
    let (one, other) = (authority.server(), authority.server());
    let torn = Pair { key: other.key, certificate: one.certificate };
    let done =
        torn.files().apply_to(Program::offline()).args(["serve", "--bind", "127.0.0.1:0"]).run();
    assert_eq!(done.status, 78, "{done:?}");
    assert!(done.stderr.contains("tls.key cannot be used with"), "{done:?}");
    let alone = Program::offline().env("ACTION_EXECUTOR_TLS_KEY", "/x").args(["serve"]).run();
    assert_eq!(alone.status, 78, "{alone:?}");
}

#[test]
fn a_health_check_verifies_the_server() {
    let authority = Authority::new();
    let pair = authority.server();
    let files = pair.files();
    let server = Server::start(files.apply_to(Program::offline()));
    let port = server.address().port().to_string();
    let checked = |program: Program, url: Option<&str>, ca: Option<&Path>| {
        let url = url.map(|name| format!("https://{name}:{port}/readyz"));
        let ca = ca.map(|path| path.to_str().expect("is text"));
        let url = url.iter().flat_map(|url| ["--url", url]);
        let ca = ca.iter().flat_map(|ca| ["--ca", ca]);
        program.args(["healthcheck"].into_iter().chain(url).chain(ca)).run().status
    };
    // In the server's own container the defaults suffice.
    let inside = || files.apply_to(Program::offline()).env("PORT", &port);
    assert_eq!(checked(inside(), None, None), 0);
    let outside = Program::offline;
    assert_eq!(checked(outside(), Some("127.0.0.1"), None), 0);
    assert_eq!(checked(outside(), Some("localhost"), Some(&authority.file())), 0);
    assert_eq!(checked(outside(), Some("localhost"), Some(&files.certificate)), 0);
    assert_eq!(checked(outside(), Some("localhost"), Some(&Authority::new().file())), 75);
    assert_eq!(checked(outside(), Some("127.0.0.9"), Some(&authority.file())), 75);
    assert_eq!(checked(outside(), Some("actions.example.com"), None), 64);
    assert_eq!(checked(outside(), Some("localhost"), Some(&files.key)), 78);
}

/// A server that verifies client certificates of an authority, with this keys file.
fn server_with_client_ca(authority: &Authority, clients: &Path, keys: &str) -> Server {
    let path = scratch("keys.yaml");
    fs::write(&path, keys).expect("is written");
    let program = authority
        .server()
        .files()
        .apply_to(Program::offline())
        .env("ACTION_EXECUTOR_TLS_CLIENT_CA", clients)
        .env("ACTION_EXECUTOR_KEYS", path);
    Server::start_on("0.0.0.0:0", program).over_tls(authority.trusted_by(None))
}

/// The status and the error code of a request on this connection.
fn execute(
    over: &mut BufReader<impl std::io::Read + std::io::Write>,
    headers: &str,
) -> (u16, String) {
    let reply = Reply::exchange(over, &execute_request(REQUEST, headers));
    let said = if reply.status == 0 { json!({}) } else { reply.json() };
    (reply.status, said["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_client_certificate_permits_what_its_entry_says() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let keys = "keys: [{name: pager, certificate: pager.example.com}, \
                {name: narrow, certificate: narrow, actions: [drain]}]";
    let server = server_with_client_ca(&authority, &clients.file(), keys);
    let as_user = |user: &str| {
        let client = authority.trusted_by(Some(&clients.client(user, &[])));
        execute(&mut BufReader::new(server.secured(&client)), "")
    };
    assert_eq!(as_user("pager.example.com"), (200, String::new()));
    assert_eq!(as_user("narrow"), (403, "caller_forbidden".to_owned()));
    // An authenticated user without any permission.
    assert_eq!(as_user("jo"), (403, "caller_forbidden".to_owned()));
    // A client's header cannot name a certificate.
    let claim = "X-Edge-Certificate: eyJuYW1lIjoicGFnZXIuZXhhbXBsZS5jb20iLCJncm91cHMiOltdfQ==\r\n";
    let mut without = BufReader::new(server.secured(&authority.trusted_by(None)));
    assert_eq!(execute(&mut without, claim), (401, "unauthenticated".to_owned()));
    // Probes present no certificate.
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.get("/metrics").status, 200);
}

#[test]
fn an_expired_or_foreign_certificate_fails_the_handshake() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let keys = "keys: [{name: pager, certificate: pager}]";
    let server = server_with_client_ca(&authority, &clients.file(), keys);
    let foreign = Authority::new().client("pager", &[]);
    // A server certificate is not accepted as a client certificate.
    for wrong in [clients.expired_client("pager"), foreign, clients.server()] {
        let client = authority.trusted_by(Some(&wrong));
        let mut over = BufReader::new(server.secured(&client));
        assert_eq!(execute(&mut over, ""), (0, String::new()));
    }
    assert!(!server.log().contains("action answered"), "{}", server.log());
    let metrics = String::from_utf8(server.get("/metrics").body).expect("is text");
    assert!(metrics.contains("action_executor_failed_handshakes_total 3"), "{metrics}");
}

#[test]
fn a_certificate_of_a_removed_authority_is_401_on_an_open_connection() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let trusted = clients.file();
    let server =
        server_with_client_ca(&authority, &trusted, "keys: [{name: pager, certificate: pager}]");
    let client = authority.trusted_by(Some(&clients.client("pager", &[])));
    let mut over = BufReader::new(server.secured(&client));
    assert_eq!(execute(&mut over, "").0, 200);
    Authority::new().write(&trusted);
    assert_eq!(execute(&mut over, "").0, 401);
    clients.write(&trusted);
    let mut over = BufReader::new(server.secured(&client));
    assert_eq!(execute(&mut over, "").0, 200);
}

#[test]
fn a_token_takes_precedence_over_a_certificate() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let digest = action_executor::contract::digest::sha256(KEY.as_bytes());
    let keys = format!(
        "keys: [{{name: by-certificate, certificate: proxy}}, \
         {{name: by-key, sha256: {digest}, actions: [drain]}}]"
    );
    let server = server_with_client_ca(&authority, &clients.file(), &keys);
    let client = authority.trusted_by(Some(&clients.client("proxy", &[])));
    let mut over = BufReader::new(server.secured(&client));
    assert_eq!(execute(&mut over, "").0, 200);
    let key = format!("Authorization: Bearer {KEY}\r\n");
    assert_eq!(execute(&mut over, &key), (403, "caller_forbidden".to_owned()));
    // A token that cannot be read is a token.
    for wrong in ["wrong", "wr\u{f6}ng", ""] {
        let wrong = format!("Authorization: Bearer {wrong}\r\n");
        let mut over = BufReader::new(server.secured(&client));
        assert_eq!(execute(&mut over, &wrong), (401, "unauthenticated".to_owned()));
    }
}

#[tokio::test]
async fn rbac_applies_to_a_certificates_user_and_groups() {
    let namespace = shared().namespace("certified").await;
    namespace.running_deployment("web", 1).await;
    let account = namespace
        .account(
            "server",
            json!([{ "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"] }]),
        )
        .await;
    let asked = json!(action_executor::auth::token_review::RULES);
    namespace.grant_everywhere("server", asked).await;
    namespace
        .create::<Role>(json!({ "metadata": { "name": "callers" }, "rules": [{
            "apiGroups": ["action-executor.dev"], "resources": ["actions"], "verbs": ["simulate"],
        }] }))
        .await;
    let rbac = "rbac.authorization.k8s.io";
    namespace
        .create::<RoleBinding>(json!({
            "metadata": { "name": "callers" },
            "roleRef": { "apiGroup": rbac, "kind": "Role", "name": "callers" },
            "subjects": [
                { "apiGroup": rbac, "kind": "User", "name": "jo" },
                { "apiGroup": rbac, "kind": "Group", "name": "sre" },
            ],
        }))
        .await;
    let (authority, clients) = (Authority::new(), Authority::new());
    let program = authority
        .server()
        .files()
        .apply_to(Program::with_kubeconfig(&account))
        .under(&namespace.policy("cooldown_seconds: 0"))
        .env("ACTION_EXECUTOR_TLS_CLIENT_CA", clients.file());
    let server = Server::start(program);
    let request = json!({
        "type": "restart_k8s", "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let as_user = |user: &str, groups: &[&str]| {
        let client = authority.trusted_by(Some(&clients.client(user, groups)));
        let mut over = BufReader::new(server.secured(&client));
        Reply::exchange(&mut over, &execute_request(request.to_string().as_bytes(), ""))
    };
    assert_eq!(as_user("jo", &[]).status, 200);
    assert_eq!(as_user("another", &["dev", "sre"]).status, 200);
    let refused = as_user("another", &["dev"]);
    assert_eq!((refused.status, refused.json()["code"].as_str()), (403, Some("caller_forbidden")));
}
