//! Malicious input to a server, over plain HTTP and over TLS. After each attack the same process still answers,
//! and its memory has not grown.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    pki::Authority,
    program::{Engine, Program, Reply, Server, Stream, execute_request},
};

const REQUEST: &[u8] = br#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;

/// The maximum peak memory of the server after an attack, in KiB. Over TLS, each client that stays connected
/// holds about 11 KiB more.
const MEMORY: u64 = 64 * 1024;
const MEMORY_OVER_TLS: u64 = 80 * 1024;

/// The transport and the engine of an attack.
#[derive(Clone, Copy, PartialEq)]
struct Over {
    tls: bool,
    engine: Engine,
}

const PLAIN: Over = Over { tls: false, engine: Engine::Hyper };
const TLS: Over = Over { tls: true, engine: Engine::Hyper };
const TINY_HTTP: Over = Over { tls: false, engine: Engine::TinyHttp };
const TINY_HTTP_TLS: Over = Over { tls: true, engine: Engine::TinyHttp };

/// Each attack on both engines: over plain HTTP and over TLS, or in a handshake.
macro_rules! attacks {
    ($($attack:ident),* $(,)?; in a handshake: $($handshake:ident),* $(,)?) => {
        mod plain {
            $(#[test] fn $attack() { super::$attack(super::PLAIN); })*
        }
        mod tls {
            $(#[test] fn $attack() { super::$attack(super::TLS); })*
            $(#[test] fn $handshake() { super::$handshake(super::TLS); })*
        }
        mod tiny_http {
            $(#[test] fn $attack() { super::$attack(super::TINY_HTTP); })*
        }
        mod tiny_http_tls {
            $(#[test] fn $attack() { super::$attack(super::TINY_HTTP_TLS); })*
            $(#[test] fn $handshake() { super::$handshake(super::TINY_HTTP_TLS); })*
        }
    };
}

attacks! {
    an_oversized_content_length_is_rejected_before_the_body_is_read,
    a_malformed_content_length_is_rejected,
    differing_content_lengths_are_rejected,
    a_request_smuggled_behind_two_lengths_is_never_executed,
    a_body_in_another_coding_is_rejected,
    an_endless_header_is_rejected_and_not_buffered,
    an_oversized_body_is_rejected,
    a_client_that_keeps_sending_can_read_an_early_rejection,
    a_request_sent_byte_by_byte_is_accepted,
    pipelined_requests_are_answered_in_order,
    malformed_http_is_rejected,
    a_thousand_slow_clients_do_not_delay_others,
    slow_clients_are_disconnected,
    a_trailer_section_never_hides_a_request,
    a_half_closed_client_is_answered,
    malformed_http_gets_a_problem_document,
    a_target_that_is_not_percent_encoded_is_rejected,
    a_client_that_reads_nothing_does_not_delay_a_shutdown,
    a_wrong_key_is_refused_before_the_body_is_read,
    slow_bodies_lock_nobody_out,
    ten_thousand_idle_connections_do_not_block_others;
    in a handshake:
    a_thousand_half_open_handshakes_do_not_delay_others,
    garbage_in_a_handshake_is_rejected,
    a_tls_renegotiation_is_rejected,
}

fn server(over: Over) -> Server {
    started(over, |program| Server::start_with(over.engine, program))
}

fn started(over: Over, start: impl Fn(Program) -> Server) -> Server {
    if !over.tls {
        return start(Program::offline());
    }
    let authority = Authority::new();
    let files = authority.server().files();
    start(files.apply_to(Program::offline())).over_tls(authority.trusted_by(None))
}

/// Checks that the same process answers a valid client and that its memory has not grown.
fn assert_unaffected(server: &mut Server) {
    assert!(server.is_alive());
    assert_eq!(server.execute(REQUEST).status, 200);
    let most = if server.is_secure() { MEMORY_OVER_TLS } else { MEMORY };
    assert!(server.peak_memory() < most, "{} KiB", server.peak_memory());
}

fn with_length(headers: &str) -> Vec<u8> {
    let mut request = format!(
        "POST /api/v1/action/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\r\n"
    )
    .into_bytes();
    request.extend_from_slice(REQUEST);
    request
}

fn an_oversized_content_length_is_rejected_before_the_body_is_read(over: Over) {
    let mut server = server(over);
    for length in ["1000000000000", "9223372036854775808", "18446744073709551615"] {
        let reply = server.raw(&with_length(&format!("Content-Length: {length}\r\n")));
        // hyper itself rejects the largest of them.
        assert!(matches!(reply.status, 413 | 431), "{length}: {reply:?}");
        assert_eq!(reply.header("connection"), Some("close"));
    }
    assert_unaffected(&mut server);
}

fn a_malformed_content_length_is_rejected(over: Over) {
    let mut server = server(over);
    for length in ["-1", "+5", "0x10", "5, 5", "", "99999999999999999999"] {
        let reply = server.raw(&with_length(&format!("Content-Length: {length}\r\n")));
        assert_eq!(reply.status, 400, "{length:?}");
    }
    assert_unaffected(&mut server);
}

fn differing_content_lengths_are_rejected(over: Over) {
    let mut server = server(over);
    let length = REQUEST.len();
    let with_second = |second| {
        let headers = format!("Content-Length: {length}\r\nContent-Length: {second}\r\n");
        server.raw(&with_length(&headers)).status
    };
    assert_eq!(with_second(length + 1), 400);
    assert_eq!(with_second(0), 400);
    // RFC 9110, section 8.6: a repeated identical length may be treated as one.
    assert_eq!(with_second(length), 200);
    assert_unaffected(&mut server);
}

fn a_request_smuggled_behind_two_lengths_is_never_executed(over: Over) {
    let mut server = server(over);
    let hidden = execute_request(REQUEST, "");
    for headers in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: x\r\n",
    ] {
        let mut bytes = format!(
            "POST /api/v1/action/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\r\n0\r\n\r\n"
        )
        .into_bytes();
        bytes.extend_from_slice(&hidden);
        let mut stream = server.open();
        stream.write_all(&bytes).expect("is sent");
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        let answers = String::from_utf8_lossy(&answers);
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{headers}: {answers}");
        assert!(answers.starts_with("HTTP/1.1 400 "), "{headers}: {answers}");
    }
    assert!(!server.log().contains("action answered"), "{}", server.log());
    assert_unaffected(&mut server);
}

/// A valid request, of which the header says that it is still compressed, or sent in chunks twice.
fn a_body_in_another_coding_is_rejected(over: Over) {
    let mut server = server(over);
    let chunks =
        [format!("{:x}\r\n", REQUEST.len()).as_bytes(), REQUEST, b"\r\n0\r\n\r\n"].concat();
    for lines in [
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: , chunked\r\n",
    ] {
        let head = format!(
            "POST /api/v1/action/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lines}\r\n"
        );
        let mut stream = server.open();
        let next = b"GET /api/v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(&[head.as_bytes(), &chunks, next].concat()).expect("is sent");
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        let answers = String::from_utf8_lossy(&answers);
        assert!(answers.starts_with("HTTP/1.1 400 "), "{lines}: {answers}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{lines}: {answers}");
    }
    for (encoding, status) in [("gzip", 415), ("br, identity", 415), ("Identity", 200)] {
        let lines = format!("Content-Encoding: {encoding}\r\nConnection: close\r\n");
        assert_eq!(server.raw(&execute_request(REQUEST, &lines)).status, status, "{encoding}");
    }
    assert_unaffected(&mut server);
}

fn an_endless_header_is_rejected_and_not_buffered(over: Over) {
    let mut server = server(over);
    let mut stream = server.open();
    let mut send = |bytes: &[u8]| stream.write_all(bytes).is_ok();
    assert!(send(b"GET /api/v1/healthz HTTP/1.1\r\nX: "));
    let megabyte = vec![b'a'; 1 << 20];
    let sent = (0..200).take_while(|_| send(&megabyte)).count();
    assert!(sent < 200, "200 MB of header were taken");
    let many = "X: y\r\n".repeat(2000);
    let reply = server.raw(format!("GET /readyz HTTP/1.1\r\n{many}\r\n").as_bytes());
    assert!(matches!(reply.status, 400 | 431 | 0), "{reply:?}");
    assert_unaffected(&mut server);
}

fn an_oversized_body_is_rejected(over: Over) {
    let mut server = server(over);
    let long = vec![b' '; 65 * 1024];
    assert_eq!(server.execute(&long).status, 413);
    let mut stream = server.open();
    let head = "POST /api/v1/action/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("is sent");
    let chunk = [b"8000\r\n".as_slice(), &[b' '; 0x8000], b"\r\n"].concat();
    let sent = (0..2000).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(sent < 2000, "64 MB of body were taken");
    assert_unaffected(&mut server);
}

fn a_client_that_keeps_sending_can_read_an_early_rejection(over: Over) {
    let mut server = server(over);
    let long = execute_request(&[b' '; 128 * 1024], "");
    let too_many = [b"GET / HTTP/1.1\r\n".as_slice(), &b"X: y\r\n".repeat(1000)].concat();
    for (sent, statuses) in [(&long[..1024], [413, 413]), (&too_many, [400, 431])] {
        let mut stream = BufReader::new(server.open());
        let reply = Reply::exchange(&mut stream, sent);
        assert!(statuses.contains(&reply.status), "{reply:?}");
        for _ in 0..127 {
            stream.get_mut().write_all(&[b' '; 1024]).expect("is taken");
        }
    }
    assert_unaffected(&mut server);
}

fn a_request_sent_byte_by_byte_is_accepted(over: Over) {
    let mut server = server(over);
    let mut stream = server.open();
    for byte in execute_request(REQUEST, "Connection: close\r\n") {
        stream.write_all(&[byte]).expect("is sent");
        stream.flush().expect("is flushed");
    }
    assert_eq!(Reply::read(&mut BufReader::new(stream)).status, 200);
    assert_unaffected(&mut server);
}

fn pipelined_requests_are_answered_in_order(over: Over) {
    let mut server = server(over);
    let mut stream = server.open();
    let ids: Vec<_> = (0..50).map(|number| format!("request-{number}")).collect();
    let mut bytes = Vec::new();
    for id in &ids {
        let request =
            format!(r#"{{"type":"restart_k8s","parameters":{{"deployment":"web"}},"id":"{id}"}}"#);
        bytes.extend(execute_request(request.as_bytes(), ""));
    }
    stream.write_all(&bytes).expect("is sent");
    let mut reader = BufReader::new(stream);
    for id in &ids {
        assert_eq!(Reply::read(&mut reader).json()["id"], **id);
    }
    assert_unaffected(&mut server);
}

fn malformed_http_is_rejected(over: Over) {
    let mut server = server(over);
    for junk in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nHost : t\r\nX\0: y\r\n\r\n",
        b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://other/readyz\x7f HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let mut stream = server.open();
        stream.write_all(junk).expect("is sent");
        // Some of these are a valid beginning: end the stream, so that the server stops waiting.
        stream.end();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 2"), "{junk:?}: {answer}");
    }
    assert_unaffected(&mut server);
}

/// Each of these ends the trailer section of a chunked body, and hyper 1.12 reads on.
fn a_trailer_section_never_hides_a_request(over: Over) {
    let mut server = server(over);
    let hidden = r#"{"type":"restart_k8s","parameters":{"deployment":"web"},"id":"hidden"}"#;
    let inner = execute_request(hidden.as_bytes(), "");
    for end in
        ["0\r\n\n", "0\r\nX: y\n\n", "0\r\nX: y\r\n\n", "0\r\nX: y\n\r\n", "0\r\nX: y\r\n\r\n"]
    {
        let mut bytes = b"POST /api/v1/action/execute HTTP/1.1\r\nHost: localhost\r\n\
            Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
        bytes.extend(format!("{:x}\r\n", REQUEST.len()).as_bytes());
        bytes.extend([REQUEST, b"\r\n", end.as_bytes()].concat());
        // The request that may be swallowed, and one whose body would then be the next request.
        bytes.extend(b"GET /api/v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        bytes.extend(execute_request(&inner, ""));
        bytes.extend(&inner);
        let mut stream = server.open();
        stream.write_all(&bytes).expect("is sent");
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        let answers = String::from_utf8_lossy(&answers);
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{end:?}: {answers}");
        assert!(answers.starts_with("HTTP/1.1 400 "), "{end:?}: {answers}");
    }
    assert!(!server.log().contains("hidden"), "{}", server.log());
    assert_unaffected(&mut server);
}

/// `nc -N` and `socat` close their sending side with the request, and wait for the response.
fn a_half_closed_client_is_answered(over: Over) {
    let mut server = server(over);
    let execute = execute_request(REQUEST, "");
    let get = b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let two = [&get[..], &execute].concat();
    for (bytes, responses) in [(&execute[..], 1), (get, 1), (&two, 2)] {
        for _ in 0..20 {
            let mut stream = server.open();
            stream.write_all(bytes).expect("is sent");
            stream.end();
            let mut answers = Vec::new();
            stream.read_to_end(&mut answers).expect("is closed in order");
            let answers = String::from_utf8_lossy(&answers);
            assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), responses, "{answers}");
        }
    }
    let incomplete = &execute[..execute.len() - 1];
    let mut stream = server.open();
    stream.write_all(incomplete).expect("is sent");
    stream.end();
    let mut answers = Vec::new();
    let _ = stream.read_to_end(&mut answers);
    assert!(!answers.starts_with(b"HTTP/1.1 200"));
    assert_unaffected(&mut server);
}

fn malformed_http_gets_a_problem_document(over: Over) {
    let mut server = server(over);
    let long = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'a'; 20_000]].concat();
    let many = [b"GET / HTTP/1.1\r\n".as_slice(), &b"X: y\r\n".repeat(65), b"\r\n"].concat();
    let after = [b"GET /api/v1/healthz HTTP/1.1\r\nHost: a\r\n\r\n".as_slice(), b"GET\r\n\r\n"];
    for (sent, status, code) in [
        (b"GET\r\n\r\n".to_vec(), 400, "invalid_request"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_vec(), 400, "invalid_request"),
        (with_length("Content-Length: -1\r\n"), 400, "invalid_request"),
        (long, 431, "header_too_large"),
        (many, 431, "header_too_large"),
    ] {
        let reply = server.raw(&sent);
        assert_eq!((reply.status, reply.json()["code"].as_str()), (status, Some(code)));
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        assert_eq!(reply.header("connection"), Some("close"));
        assert_eq!(reply.header("x-request-id").map(str::len), Some(36), "{reply:?}");
        assert!(reply.header("date").is_some(), "{reply:?}");
    }
    // Behind an answered request it is the same.
    let mut stream = BufReader::new(server.open());
    let first = Reply::exchange(&mut stream, after[0]);
    assert!(matches!(first.status, 200 | 421), "{first:?}");
    assert_eq!(Reply::exchange(&mut stream, after[1]).json()["code"], "invalid_request");
    let metrics = String::from_utf8(server.get("/metrics").body).expect("is text");
    assert!(metrics.contains(r#"problems_total{code="header_too_large"} 2"#), "{metrics}");
    assert_unaffected(&mut server);
}

fn a_target_that_is_not_percent_encoded_is_rejected(over: Over) {
    let mut server = server(over);
    for target in ["GET /caf\u{e9}", "POST /?\u{e9}", "GET /api/v1/actions/a?namespace=\u{e9}"] {
        let request = format!("{target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let reply = server.raw(request.as_bytes());
        assert_eq!((reply.status, &reply.json()["code"]), (400, &"invalid_request".into()));
    }
    assert_unaffected(&mut server);
}

fn a_client_that_reads_nothing_does_not_delay_a_shutdown(over: Over) {
    let server = server(over);
    let mut stream = server.open();
    // More than the buffers of both sides hold.
    let request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    stream.write_all(&request).expect("is sent");
    // The first response is on its way.
    let mut first = [0; 1];
    stream.read_exact(&mut first).expect("is answered");
    let began = Instant::now();
    server.signal("TERM");
    let (status, log) = server.wait();
    assert_eq!(status, 0, "{log}");
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}

fn with_keys(over: Over, start: impl Fn(Program) -> Server) -> Server {
    started(over, |program| start(program.env("ACTION_EXECUTOR_KEYS", crate::headers::key_file())))
}

fn a_wrong_key_is_refused_before_the_body_is_read(over: Over) {
    let mut server = with_keys(over, |program| Server::start_with(over.engine, program));
    for headers in ["", "Authorization: Bearer wrong\r\n"] {
        let began = Instant::now();
        let mut stream = BufReader::new(server.open());
        let head = with_length(&format!("Content-Length: 60000\r\n{headers}"));
        let reply = Reply::exchange(&mut stream, &head);
        assert_eq!((reply.status, reply.header("connection")), (401, Some("close")));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    assert!(server.is_alive());
}

/// More clients than there are connections send a byte of a body now and then, and connect again when they are
/// disconnected; `ENDURANCE_ROUNDS` is how often all of them send.
fn slow_bodies_lock_nobody_out(over: Over) {
    // Sixteen connections, and as many for health checks.
    let mut server = started(over, |program| Server::with_descriptors(over.engine, program, 120));
    let rounds = std::env::var("ENDURANCE_ROUNDS").ok().and_then(|it| it.parse().ok());
    let beginning = with_length("Content-Length: 60000\r\n");
    let mut slow: Vec<Box<dyn Stream>> = Vec::new();
    for _ in 0..rounds.unwrap_or(20) {
        slow.retain_mut(|stream| stream.write_all(b" ").and_then(|()| stream.flush()).is_ok());
        while slow.len() < 40 {
            let mut stream = server.open();
            let _ = stream.write_all(&beginning);
            slow.push(stream);
        }
        assert_eq!(server.execute(REQUEST).status, 200);
        assert_eq!(server.get("/api/v1/healthz").status, 200);
    }
    assert_unaffected(&mut server);
}

/// The 99th of 100 latencies of valid requests, each on a new connection.
fn p99(server: &Server) -> Duration {
    let mut times: Vec<_> = (0..100)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(server.execute(REQUEST).status, 200);
            began.elapsed()
        })
        .collect();
    times.sort();
    times[98]
}

fn a_thousand_slow_clients_do_not_delay_others(over: Over) {
    let mut server = server(over);
    let mut slow: Vec<Box<dyn Stream>> = (0..1000).map(|_| server.open()).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let beginning = b"GET /api/v1/healthz HTTP/1.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaa";
            for byte in beginning {
                slow.retain_mut(|stream| stream.write_all(&[*byte]).is_ok());
                for _ in 0..20 {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            }
        });
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            let slowest = p99(&server);
            assert!(slowest < Duration::from_millis(500), "{slowest:?}");
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_unaffected(&mut server);
}

fn slow_clients_are_disconnected(over: Over) {
    let server = server(over);
    let mut header = server.open();
    header.write_all(b"GET /api/v1/healthz HTTP/1.1\r\n").expect("is sent");
    let mut body = server.open();
    body.write_all(&with_length("Content-Length: 60000\r\n")).expect("is sent");
    // Over TLS this client has not sent its ClientHello yet.
    let mut silent = server.connect();
    let began = Instant::now();
    let body = Reply::read(&mut BufReader::new(body));
    assert_eq!((body.status, body.json()["code"].as_str()), (408, Some("request_timeout")));
    let mut rest = Vec::new();
    let _ = header.read_to_end(&mut rest);
    let _ = silent.read_to_end(&mut rest);
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
}

fn ten_thousand_idle_connections_do_not_block_others(over: Over) {
    let mut server = started(over, |program| Server::with_descriptors(over.engine, program, 1024));
    let mut idle = Vec::new();
    // Before its handshake a connection uses no TLS state, so fewer connections are enough.
    let many = if over.tls { 2_000 } else { 10_000 };
    for number in 0..many {
        match TcpStream::connect_timeout(&server.address(), Duration::from_secs(5)) {
            Ok(stream) => idle.push(stream),
            Err(error) => panic!("connection {number}: {error}"),
        }
        // The test's own file descriptors are limited too, so it drops the connections that the server closed.
        if idle.len() > 2000 {
            idle.drain(..1000);
        }
    }
    let slowest = p99(&server);
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_unaffected(&mut server);
}

fn a_thousand_half_open_handshakes_do_not_delay_others(over: Over) {
    let mut server = server(over);
    // The first bytes of a ClientHello that declares a length of 508 bytes.
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let half_open: Vec<TcpStream> = (0..1000)
        .map(|number| {
            let mut stream = server.connect();
            stream.write_all(&hello[..number % hello.len()]).expect("is sent");
            stream
        })
        .collect();
    let slowest = p99(&server);
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    drop(half_open);
    assert_unaffected(&mut server);
}

fn garbage_in_a_handshake_is_rejected(over: Over) {
    let mut server = server(over);
    for junk in [
        b"GET /api/v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice(),
        b"\x16\x03\x01\xff\xff\x01\xff\xff\xff",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x15\x03\x03\x00\x02\x02\x00",
        b"\x17\x03\x03\x00\x01a",
        b"\x80\x2e\x01\x00\x02",
        &[0xff; 4096],
    ] {
        let mut stream = server.connect();
        // The server may close the connection before all is sent.
        let _ = stream.write_all(junk);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{junk:?}: {answer:?}");
    }
    // The last one is counted after its client has seen its end.
    let began = Instant::now();
    loop {
        let metrics = String::from_utf8(server.get("/metrics").body).expect("is text");
        if metrics.contains("action_executor_failed_handshakes_total 7") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{metrics}");
    }
    assert_unaffected(&mut server);
}

fn a_tls_renegotiation_is_rejected(over: Over) {
    let mut server = server(over);
    let address = server.address().to_string();
    // openssl starts a renegotiation when it reads an R on a line of its own.
    let mut openssl = Command::new("openssl")
        .args(["s_client", "-tls1_2", "-connect", &address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl runs");
    let mut input = openssl.stdin.take().expect("is piped");
    let mut output = BufReader::new(openssl.stdout.take().expect("is piped"));
    let mut line = String::new();
    while !line.contains("Extended master secret") {
        line.clear();
        assert!(output.read_line(&mut line).expect("is text") > 0, "no session was agreed on");
    }
    input.write_all(b"R\n").expect("is sent");
    let done = openssl.wait_with_output().expect("openssl ends");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("RENEGOTIATING") && !done.status.success(), "{said}");
    drop(input);
    assert_unaffected(&mut server);
}
