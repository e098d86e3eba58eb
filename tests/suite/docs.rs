//! The OpenAPI document and the pages: what is public, which headers restrict the browser, and the page in a
//! real browser.

use std::{
    fs,
    path::{Path, PathBuf},
};

use action_executor::contract::digest::sha256;
use serde_json::Value;

use crate::{
    browser::Browser,
    cluster::shared,
    clusters::{self, FREE, Pair},
    program::{Program, Server, scratch},
};

const KEY: &str = "7d1c0ffee0ffee0ffee0ffee0ffee0ff";

fn keys() -> PathBuf {
    let path = scratch("keys.yaml");
    let keys = format!("version: 1\nkeys: [{{name: pager, sha256: {}}}]\n", sha256(KEY.as_bytes()));
    fs::write(&path, keys).expect("is written");
    path
}

#[test]
fn documents_are_public_and_carry_strict_browser_headers() {
    let server = Server::start(Program::offline().env("ACTION_EXECUTOR_KEYS", keys()));
    for (path, media_type) in [
        ("/docs", "text/html; charset=utf-8"),
        ("/history", "text/html; charset=utf-8"),
        ("/docs/page.js", "text/javascript; charset=utf-8"),
        ("/docs/page.css", "text/css; charset=utf-8"),
        ("/openapi.json", "application/json"),
        ("/api/v1/actions", "application/json"),
    ] {
        let reply = server.get(path);
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(media_type)), "{path}");
        let policy = reply.header("content-security-policy").expect("is there");
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"), "{path}");
        assert_eq!(reply.header("cache-control"), Some("no-cache"), "{path}");

        let tag = reply.header("etag").expect("is there");
        let again = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: {tag}\r\nConnection: close\r\n\r\n"
        );
        let again = server.raw(again.as_bytes());
        assert_eq!((again.status, again.header("etag")), (304, Some(tag)), "{path}");
        assert!(again.body.is_empty(), "{path}");
    }
    for path in ["/docs/", "/docs/page", "/docs/../docs/page.js", "/history/x"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
}

#[test]
fn the_printed_openapi_document_equals_the_served_one() {
    let served = Server::start(Program::offline()).get("/openapi.json").json();
    let printed = Program::offline().args(["schema", "openapi"]).run();
    assert_eq!(printed.status, 0, "{printed:?}");
    assert_eq!(serde_json::from_str::<Value>(&printed.stdout).expect("is JSON"), served);
    assert_eq!(served["openapi"], "3.1.1");
}

#[test]
fn a_listed_example_is_a_valid_request() {
    // With every integration.
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/unlimited.yaml");
    let server = Server::start(Program::offline().under(Path::new(policy)));
    let list = server.get("/api/v1/actions").json();
    for action in list["actions"].as_array().expect("is a list") {
        let reply = server.execute(action["example"].to_string().as_bytes());
        assert_eq!(reply.status, 200, "{}: {:?}", action["name"], reply.json());
    }
}

/// Checks that people with disabilities can use what is shown, and writes screenshots to the directory in
/// `DOCS_PICTURES`, if that is set.
fn examine(browser: &Browser, name: &str) {
    for (scheme, width, height) in [("dark", 1360, 900), ("light", 390, 844), ("light", 1360, 900)]
    {
        browser.emulate(scheme, width, height);
        let violations = browser.accessibility_violations();
        assert_eq!(violations, Vec::<String>::new(), "{name}, {scheme}, {width}");
    }
    let Some(directory) = std::env::var_os("DOCS_PICTURES").map(PathBuf::from) else { return };
    fs::create_dir_all(&directory).expect("is made");
    for (scheme, width, height) in [("light", 1360, 900), ("dark", 1360, 900), ("light", 390, 844)]
    {
        browser.emulate(scheme, width, height);
        browser.screenshot(&directory.join(format!("{name}-{scheme}-{width}.png")));
    }
    browser.emulate("light", 1360, 900);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium and chromedriver"]
async fn the_page_simulates_executes_and_shows_the_history() {
    let namespace = shared().namespace("docs").await;
    namespace.running_deployment("web", 1).await;
    let server = Server::start(
        Program::with_kubeconfig(namespace.kubeconfig())
            .env("ACTION_EXECUTOR_KEYS", keys())
            .env("ACTION_EXECUTOR_CLUSTER_NAME", "EU production"),
    );
    let origin = format!("http://{}", server.address());
    let name = namespace.name().to_owned();
    let generation = || async { namespace.get_deployment("web").await.metadata.generation };
    let before = generation().await;
    let browser = Browser::start();
    browser.emulate("light", 1360, 900);

    browser.open(&format!("{origin}/docs#restart_k8s"));
    browser.shows("h1", "restart_k8s");
    browser.shows("#cluster", "EU production");
    examine(&browser, "action");
    browser.type_in("#key", KEY);
    browser.type_in("#field-parameters-deployment", "web");
    browser.type_in("#field-parameters-namespace", &name);
    browser.press("\u{e007}");
    browser.shows(".answer .badge", "Simulated");
    assert_eq!(generation().await, before);

    // Input that an attacker controls is shown as text everywhere.
    let hostile = "<img src=x onerror=document.title='caught'><script>alert(1)</script>";
    browser.click("form details summary");
    browser.type_in("#field-requester", hostile);
    browser.type_in("#field-reason", "p99 is 4 s");
    let execute = "form .danger";
    browser.click(execute);
    browser.shows("#confirm", "web");
    browser.shows("#confirm", &name);
    browser.shows("#confirm", "EU production");
    examine(&browser, "confirm");
    // The dialog's default button cancels.
    browser.press("\u{e007}");
    browser.until("the question is gone", "return !document.getElementById('confirm').open", &[]);
    assert_eq!(generation().await, before);
    browser.click(execute);
    browser.click("#confirm-yes");
    browser.shows(".answer .badge", "Started");
    let after = generation().await;
    assert!(after > before, "{before:?} {after:?}");
    examine(&browser, "answer");
    // Pressed twice, it is one action: the id stays.
    browser.click(execute);
    browser.click("#confirm-yes");
    browser.shows(".answer .notice", "An earlier attempt with this id");
    assert_eq!(generation().await, after);
    browser.type_in("#field-parameters-deployment", "Not a name");
    browser.click("form .primary");
    browser.shows("#field-parameters-deployment-wrong", "must be a Kubernetes");
    browser.shows(".problem", "invalid_request");
    examine(&browser, "problem");
    let console = browser.console();
    assert!(console.iter().all(|line| line.contains("400 (Bad Request)")), "{console:?}");

    browser.open(&format!("{origin}/docs#scale"));
    browser.shows("h1", "scale");
    browser.click("fieldset input[type=radio][value=by]");
    browser.type_in("#field-parameters-by", "-1");
    browser.shows("pre", "\"by\": -1");
    examine(&browser, "scale");

    // An automatic rollback needs a wait, which the page shows and sets.
    browser.open(&format!("{origin}/docs#rollback"));
    browser.shows("h1", "rollback");
    let is_open = "return document.querySelector('form details').open";
    assert_eq!(browser.script(is_open, &[]), false);
    browser.click("#field-parameters-rollback_on_failure");
    assert_eq!(browser.script(is_open, &[]), true);
    browser.shows("pre", "\"wait\": true");
    // On a phone, the form comes before the reference, and after the description.
    browser.emulate("light", 390, 844);
    let order = "const top = (it) => document.querySelector(it).getBoundingClientRect().top;
        return top('.lead') < top('.console') && top('.console') < top('.reference')";
    assert_eq!(browser.script(order, &[]), true);
    browser.emulate("light", 1360, 900);

    browser.open(&format!("{origin}/history?namespace={name}"));
    browser.shows(".problem", "enter a key");
    browser.type_in("#key", KEY);
    browser.click("form .primary");
    browser.shows(".history", "restart_k8s");
    browser.shows("#cluster", "EU production");
    browser.shows(".history", hostile);
    browser.shows(".history .age", "ago");
    browser.click(".expand");
    browser.shows(".history .answer", "restarted at");
    examine(&browser, "history");
    assert_eq!(
        browser.script("return document.querySelectorAll('img, main script').length", &[]),
        0
    );
    assert_ne!(browser.script("return document.title", &[]), "caught");
    let kept = "return localStorage.length + sessionStorage.length + document.cookie.length";
    assert_eq!(browser.script(kept, &[]), 0);

    let console = browser.console();
    let only_asked = console.iter().all(|line| line.contains("401 (Unauthorized)"));
    assert!(only_asked, "{console:?}");
    let requests = browser.requests();
    assert!(requests.len() > 8, "{requests:?}");
    // The browser's own URLs (its empty start page, an icon in a data URL) cause no network request.
    let within = ["data:", "chrome:", &origin];
    let elsewhere = requests.iter().find(|it| !within.iter().any(|place| it.starts_with(place)));
    assert_eq!(elsewhere, None);

    // An unreachable server is reported in a sentence.
    let gone = Server::start(Program::offline());
    browser.open(&format!("http://{}/docs#cordon", gone.address()));
    browser.type_in("#field-parameters-node", "worker-1");
    drop(gone);
    browser.click("form .primary");
    browser.shows(".problem", "cannot be reached");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium and chromedriver"]
async fn the_pages_act_on_the_cluster_that_is_chosen_and_show_its_history() {
    let pair = Pair::new("clusters_pages").await;
    let name = pair.green.name().to_owned();
    let server = Server::start(clusters::program(&pair.list("", [FREE, FREE])));
    let origin = format!("http://{}", server.address());
    let browser = Browser::start();
    browser.emulate("light", 1360, 900);

    browser.open(&format!("{origin}/docs#restart_k8s"));
    browser.type_in("#field-parameters-deployment", "web");
    browser.type_in("#field-parameters-namespace", &name);
    // Without a default nothing is sent before a cluster is chosen.
    browser.shows("#field-cluster option", "(choose one)");
    browser.click("form .primary");
    let is_asked_for = "const field = document.getElementById('field-cluster');
        return field === document.activeElement && field.getAttribute('aria-invalid') === 'true'
            && document.getElementById('field-cluster-wrong').textContent !== ''";
    browser.until("the cluster is asked for", is_asked_for, &[]);
    assert_eq!(browser.script("return document.querySelector('.output').innerText", &[]), "");
    examine(&browser, "clusters-action");
    // By the keyboard, to the field that has the focus.
    browser.press("b");
    browser.shows("#cluster", "blue");
    browser.shows("pre", "\"cluster\": \"blue\"");
    browser.click("form .primary");
    browser.shows(".answer .badge", "Simulated");
    browser.shows(".answer dd", "blue");
    browser.click("form .danger");
    browser.shows("#confirm", "This changes the cluster blue.");
    browser.click("#confirm-yes");
    browser.shows(".answer .badge", "Started");
    assert_eq!(pair.effects().await, [0, 1]);
    // The choice stays for the next action.
    browser.click(".menu a[href='#scale']");
    browser.shows("h1", "scale");
    let chosen = "return document.getElementById(arguments[0]).value";
    assert_eq!(browser.script(chosen, &["field-cluster"]), "blue");

    browser.open(&format!("{origin}/history?namespace={name}"));
    browser.shows(".notice", "choose one");
    examine(&browser, "clusters-history");
    browser.script("document.getElementById('of-cluster').focus()", &[]);
    browser.press("b");
    browser.click("form .primary");
    browser.shows(".history", "restart_k8s");
    browser.shows("#cluster", "blue");
    browser.shows("h2", "Records of cluster blue");
    let query = "return new URLSearchParams(location.search).get('cluster')";
    assert_eq!(browser.script(query, &[]), "blue");
    examine(&browser, "clusters-history-blue");
    browser.open(&format!("{origin}/history?namespace={name}&cluster=green"));
    browser.shows(".notice", "There are no records.");
    browser.shows("#cluster", "green");
    assert_eq!(browser.script(chosen, &["of-cluster"]), "green");

    // The answer about one cluster comes after that about the next.
    browser.script(
        "const ask = fetch; \
         fetch = async (...it) => { \
           const answer = await ask(...it); \
           if (!String(it[0]).includes('cluster=blue')) return answer; \
           await new Promise((go) => { window.release = go; }); \
           const body = await answer.json(); \
           answer.json = async () => { \
             setTimeout(() => { window.isLate = true; }); \
             return body; \
           }; \
           return answer; \
         };",
        &[],
    );
    browser.click("#of-cluster option[value=blue]");
    browser.click("form .primary");
    browser.until("it is held back", "return typeof window.release === 'function'", &[]);
    browser.click("#of-cluster option[value=green]");
    browser.click("form .primary");
    browser.shows(".notice", "There are no records.");
    browser.script("window.release()", &[]);
    browser.until("it has come", "return window.isLate === true", &[]);
    browser.shows(".notice", "There are no records.");
    assert_eq!(browser.script("return document.querySelector('.history') === null", &[]), true);
    assert_eq!(browser.console(), Vec::<String>::new());

    // The default is chosen, and can be changed.
    let server = Server::start(clusters::program(&pair.list("default: blue", [FREE, FREE])));
    let origin = format!("http://{}", server.address());
    browser.open(&format!("{origin}/docs#restart_k8s"));
    browser.shows("#cluster", "blue");
    assert_eq!(browser.script(chosen, &["field-cluster"]), "blue");
    browser.open(&format!("{origin}/history?namespace={name}"));
    browser.shows(".history", "restart_k8s");
    browser.shows("#cluster", "blue");
    browser.click("#of-cluster option[value=green]");
    browser.click("form .primary");
    browser.shows(".notice", "There are no records.");
    browser.shows("#cluster", "green");
}
