//! Headless Chromium behind chromedriver, driven through the JSON requests of the W3C's WebDriver. Knows nothing
//! of the pages under test.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::program::{Reply, scratch};

/// How long an element may take to appear.
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// One browser with one page; it ends when dropped.
pub struct Browser {
    driver: Child,
    address: String,
    session: String,
    profile: PathBuf,
}

impl Browser {
    /// Starts a browser with an empty profile.
    pub fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let mut lines = BufReader::new(driver.stdout.take().expect("is piped")).lines();
        let port: u16 = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                line.split("successfully on port ").nth(1)?.trim_end_matches('.').parse().ok()
            })
            .expect("chromedriver listens");
        // Its further output is unused, but its pipe must be drained.
        std::thread::spawn(move || lines.for_each(drop));
        let profile = scratch("chromium");
        let mut browser = Browser {
            driver,
            address: format!("127.0.0.1:{port}"),
            session: String::new(),
            profile: profile.clone(),
        };
        // Chromium's own sandbox needs more permissions than a container usually has; only our own pages are opened.
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--window-size=1360,900",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let session = browser.post(
            "/session",
            &json!({ "capabilities": { "alwaysMatch": {
                "goog:chromeOptions": { "args": arguments },
                "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
            } } }),
        );
        browser.session = format!("/session/{}", session["sessionId"].as_str().expect("has an id"));
        browser
    }

    /// Posts to chromedriver; an error fails the test.
    fn post(&self, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let mut stream = TcpStream::connect(&self.address).expect("chromedriver accepts");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("is set");
        let head = format!(
            "POST {}{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.session,
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("is sent");
        stream.write_all(body.as_bytes()).expect("is sent");
        let reply = Reply::read(&mut BufReader::new(stream));
        assert_eq!(reply.status, 200, "{path} {body}: {}", String::from_utf8_lossy(&reply.body));
        reply.json()["value"].clone()
    }

    /// Opens a page.
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// Runs a script on the page; returns its result.
    pub fn script(&self, script: &str, arguments: &[&str]) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": arguments }))
    }

    /// Waits until the script returns a true value.
    pub fn until(&self, what: &str, script: &str, arguments: &[&str]) {
        let began = Instant::now();
        while self.script(script, arguments) != true {
            let page = || self.script("return document.body.innerText", &[]);
            assert!(began.elapsed() < PAGE_TIMEOUT, "{what} did not come: {}", page());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until an element of this selector shows this text.
    pub fn shows(&self, selector: &str, text: &str) {
        let script = "return [...document.querySelectorAll(arguments[0])]\
                      .some((it) => it.innerText.includes(arguments[1]))";
        self.until(&format!("{selector} with {text:?}"), script, &[selector, text]);
    }

    fn element(&self, selector: &str) -> String {
        self.until(selector, "return document.querySelector(arguments[0]) !== null", &[selector]);
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        let id = found.as_object().and_then(|it| it.values().next()).and_then(Value::as_str);
        format!("/element/{}", id.expect("has an id"))
    }

    /// Clicks on a visible element, as a person does.
    pub fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.post(&format!("{element}/click"), &json!({}));
    }

    /// Types text into an element.
    pub fn type_in(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.post(&format!("{element}/clear"), &json!({}));
        self.post(&format!("{element}/value"), &json!({ "text": text }));
    }

    /// Sends keys to the focused element.
    pub fn press(&self, key: &str) {
        let steps =
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })];
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": steps });
        self.post("/actions", &json!({ "actions": [keyboard] }));
    }

    /// Sends a command of the Chrome DevTools Protocol.
    pub fn command(&self, name: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": name, "params": parameters }))
    }

    /// Emulates a color scheme and a screen size.
    pub fn emulate(&self, scheme: &str, width: u32, height: u32) {
        let features = json!([
            { "name": "prefers-color-scheme", "value": scheme },
            // An element that is being animated cannot be clicked.
            { "name": "prefers-reduced-motion", "value": "reduce" },
        ]);
        self.command("Emulation.setEmulatedMedia", &json!({ "features": features }));
        let screen = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.command("Emulation.setDeviceMetricsOverride", &screen);
    }

    /// What axe-core finds wrong by WCAG 2.2, level AA; its script is in the file that `AXE_CORE` names.
    pub fn accessibility_violations(&self) -> Vec<String> {
        let path = std::env::var_os("AXE_CORE").expect("AXE_CORE names axe.min.js of axe-core");
        let axe = std::fs::read_to_string(path).expect("is read");
        let run = "const done = arguments[arguments.length - 1];
            const runOnly = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
            axe.run(document, { runOnly }).then(({ violations }) => done(violations.flatMap((it) =>
                it.nodes.map((node) => `${it.id}: ${node.target.join(' ')}: ${node.failureSummary}`))))";
        let script = format!("{axe}\n{run}");
        let found = self.post("/execute/async", &json!({ "script": script, "args": [] }));
        let found = found.as_array().expect("is a list").iter();
        found.map(|it| it.as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Writes a screenshot of the whole page.
    pub fn screenshot(&self, file: &Path) {
        let whole = json!({ "captureBeyondViewport": true, "format": "png" });
        let picture = self.command("Page.captureScreenshot", &whole);
        let data = picture["data"].as_str().expect("is there");
        std::fs::write(file, BASE64_STANDARD.decode(data).expect("is base64")).expect("is written");
    }

    /// The console's messages since the last call, without mere advice.
    pub fn console(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({ "type": "browser" }));
        let entries = entries.as_array().expect("is a list").iter();
        entries.filter(|entry| entry["level"] != "DEBUG").map(ToString::to_string).collect()
    }

    /// The URLs of all requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({ "type": "performance" }));
        let message = |entry: &Value| serde_json::from_str(entry["message"].as_str()?).ok();
        let messages = entries.as_array().expect("is a list").iter().filter_map(message);
        messages
            .filter(|it: &Value| it["message"]["method"] == "Network.requestWillBeSent")
            .filter_map(|it| it["message"]["params"]["request"]["url"].as_str().map(str::to_owned))
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(&self.address) {
            let end = format!(
                "DELETE {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                self.session
            );
            let _ = stream.write_all(end.as_bytes());
            let _ = Reply::read(&mut BufReader::new(stream));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
