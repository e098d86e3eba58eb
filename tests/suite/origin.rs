//! The `Host` and `Origin` checks: which host names a server accepts, and which pages may call it.

use crate::program::{Program, Reply, Server, execute_request};

const REQUEST: &[u8] = br#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;

fn code(reply: &Reply) -> (u16, String) {
    let code =
        if reply.status == 200 { None } else { reply.json()["code"].as_str().map(str::to_owned) };
    (reply.status, code.unwrap_or_default())
}

/// Posts a request for this host, with these additional header lines.
fn execute(server: &Server, host: &str, headers: &str) -> (u16, String) {
    let request = execute_request(REQUEST, &format!("{headers}Connection: close\r\n"));
    let request = String::from_utf8(request).expect("is text");
    code(&server.raw(request.replace("Host: localhost", &format!("Host: {host}")).as_bytes()))
}

fn get(server: &Server, path: &str, version: &str, headers: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/{version}\r\n{headers}Connection: close\r\n\r\n");
    code(&server.raw(request.as_bytes()))
}

/// DNS rebinding: a page of rebound.example, whose name now resolves to this machine, as a browser sends it.
#[test]
fn a_rebound_host_name_is_421_for_every_request() {
    let server = Server::start(Program::offline());
    let port = server.address().port();
    let host = format!("rebound.example:{port}");
    let page = format!("Origin: http://{host}\r\nSec-Fetch-Site: same-origin\r\n");
    let refused = (421, "misdirected_request".to_owned());
    assert_eq!(execute(&server, &host, &page), refused);
    for path in ["/metrics", "/readyz", "/api/v1/healthz", "/"] {
        assert_eq!(get(&server, path, "1.1", &format!("Host: {host}\r\n")), refused, "{path}");
    }
    let absolute = format!("http://{host}/metrics");
    assert_eq!(get(&server, &absolute, "1.1", "Host: localhost\r\n"), refused);
    assert!(!server.log().contains("action answered"), "{}", server.log());
    assert_eq!(execute(&server, &format!("localhost:{port}"), "").0, 200);
    assert_eq!(execute(&server, &format!("127.0.0.1:{port}"), "").0, 200);
}

#[test]
fn a_servers_host_names_may_be_listed() {
    let program = Program::offline().env("ACTION_EXECUTOR_HOSTS", "actions.example.com");
    let server = Server::start_open(program);
    assert_eq!(execute(&server, "actions.example.com", "").0, 200);
    assert_eq!(execute(&server, "other.example.com", "").0, 421);
    // A probe sends the address that it connects to; HTTP/1.0 clients may send no host.
    assert_eq!(
        get(&server, "/readyz", "1.1", &format!("Host: 127.0.0.1:{}\r\n", server.address().port()))
            .0,
        200
    );
    assert_eq!(get(&server, "/readyz", "1.0", "").0, 200);
    let page = "Origin: https://actions.example.com\r\nSec-Fetch-Site: cross-site\r\n";
    assert_eq!(execute(&server, "actions.example.com", page).0, 200);

    let open = Server::start_open(Program::offline());
    assert_eq!(execute(&open, "whatever.example", "").0, 200);
}

#[test]
fn a_request_without_exactly_one_host_is_400() {
    let server = Server::start(Program::offline());
    for headers in ["", "Host: localhost\r\nHost: localhost\r\n", "Host: a b\r\n", "Host:\r\n"] {
        let refused = get(&server, "/readyz", "1.1", headers);
        assert_eq!(refused, (400, "invalid_request".to_owned()), "{headers:?}");
    }
}

#[test]
fn requests_from_pages_of_other_sites_are_refused() {
    let server = Server::start(Program::offline());
    let host = server.address().to_string();
    let refused = (403, "cross_site".to_owned());
    for sender in [
        "Origin: https://evil.example\r\n",
        "Origin: http://localhost:3000\r\nSec-Fetch-Site: same-site\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
    ] {
        assert_eq!(execute(&server, &host, sender), refused, "{sender}");
    }
    let own = format!("Origin: http://{host}\r\nSec-Fetch-Site: same-origin\r\n");
    assert_eq!(execute(&server, &host, &own).0, 200);
    // A status page may read the readiness.
    let asking = "Host: localhost\r\nOrigin: https://status.example\r\n";
    assert_eq!(get(&server, "/readyz", "1.1", asking).0, 200);
    assert_eq!(get(&server, "/metrics", "1.1", asking), refused);
}
