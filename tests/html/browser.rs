//! A browser without a window, told what to do over its debugging pipe.
//!
//! Chromium reads commands from the file descriptor 3 and answers on 4, JSON with a zero byte
//! behind each message. A shell ties both to the ends of ordinary pipes, so that nothing here is
//! unsafe and no port is opened.

use std::collections::VecDeque;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Where it may be, unless the variable `CHROMIUM` says it.
const NAMES: &[&str] = &["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// As long as a page may take to be ready, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

const TIE: &str = "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null";

/// One browser with one page.
#[derive(Debug)]
pub(crate) struct Browser {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: Option<String>,
    number: u64,
    /// What went wrong in the page: exceptions, errors on its console, refused loads.
    pub(crate) complaints: Vec<String>,
    events: VecDeque<Value>,
    profile: PathBuf,
}

/// The browser of this machine, if it has one.
fn program() -> Option<PathBuf> {
    if let Some(path) = env::var_os("CHROMIUM") {
        return Some(path.into());
    }
    let places: Vec<PathBuf> = env::split_paths(&env::var_os("PATH")?).collect();
    let all = NAMES.iter().flat_map(|name| places.iter().map(move |place| place.join(name)));
    all.into_iter().find(|path| path.is_file())
}

impl Browser {
    /// A browser with an empty page of 1280 × 800 pixels. `None`, with a line that says so, where
    /// there is none to be had; a failure instead where `CI` is set.
    pub(crate) fn start(name: &str) -> Option<Self> {
        let Some(program) = program() else {
            let missing = "there is no Chromium (Debian, Ubuntu: apt-get install chromium)";
            assert!(env::var_os("CI").is_none(), "{missing}, and CI is set");
            eprintln!("SKIPPED {name}: {missing}");
            return None;
        };
        let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("browser-{name}"));
        let profile_flag = format!("--user-data-dir={}", profile.display());
        let flags = [
            "--headless",
            // As root it has no sandbox, and pages of our own need none.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--force-color-profile=srgb",
            "--remote-debugging-pipe",
            &profile_flag,
        ];
        let mut command = Command::new("sh");
        command.arg("-c").arg(TIE).arg(&program).args(flags);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a shell starts");
        let commands = child.stdin.take().expect("its input is a pipe");
        let answers = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let mut browser = Self {
            child,
            commands,
            answers,
            session: None,
            number: 0,
            complaints: Vec::new(),
            events: VecDeque::new(),
            profile,
        };
        browser.open_page();
        Some(browser)
    }

    fn open_page(&mut self) {
        let made = self.call("Target.createTarget", json!({ "url": "about:blank" }));
        let target = &made["targetId"];
        let attached =
            self.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.call(&format!("{domain}.enable"), json!({}));
        }
        self.size(1280, 800, 1.0);
    }

    /// The window in pixels of the page, and how many of the screen's make one of them.
    pub(crate) fn size(&mut self, width: u32, height: u32, scale: f64) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": scale, "mobile": false,
        });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// Opens a file, and waits until its script has said that it is ready.
    pub(crate) fn open(&mut self, path: &Path) {
        // What is ready afterwards is the new page, also if it is the same as before.
        self.call("Page.navigate", json!({ "url": "about:blank" }));
        self.wait_for("location.href === 'about:blank'");
        self.call("Page.navigate", json!({ "url": format!("file://{}", path.display()) }));
        self.wait_for("document.documentElement?.dataset.readyMs !== undefined");
    }

    /// Waits until something is true in the page. It may be in the middle of a change, and have
    /// nothing to ask.
    fn wait_for(&mut self, condition: &str) {
        let began = Instant::now();
        let asked = json!({ "expression": condition, "returnByValue": true });
        loop {
            let answer = self.ask("Runtime.evaluate", asked.clone());
            if answer["result"]["result"]["value"] == Value::Bool(true) {
                return;
            }
            assert!(self.complaints.is_empty(), "{:#?}", self.complaints);
            assert!(began.elapsed() < PATIENCE, "{condition} is false; {:?}", self.complaints);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The value of an expression in the page.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", asked);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    pub(crate) fn text(&mut self, expression: &str) -> String {
        let value = self.value(expression);
        value.as_str().unwrap_or_else(|| panic!("{expression} is {value}")).to_owned()
    }

    /// A key is pressed and let go of.
    pub(crate) fn key(&mut self, key: &str) {
        let text = if key.chars().count() == 1 { key } else { "" };
        // Keys that move the page's own controls are known by their number only.
        let code = match key {
            "End" => 35,
            "Home" => 36,
            "ArrowLeft" => 37,
            "ArrowRight" => 39,
            "Tab" => 9,
            _ => 0,
        };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({
                "type": kind, "key": key, "text": text, "windowsVirtualKeyCode": code,
            });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// The pointer goes along points, with its button pressed if it is to drag.
    pub(crate) fn pointer(&mut self, points: &[(f64, f64)], drags: bool) {
        let event = |kind: &str, (x, y): (f64, f64), buttons: u32| {
            json!({
                "type": kind, "x": x, "y": y, "button": if buttons > 0 { "left" } else { "none" },
                "buttons": buttons, "clickCount": 1,
            })
        };
        let buttons = u32::from(drags);
        self.call("Input.dispatchMouseEvent", event("mouseMoved", points[0], 0));
        if drags {
            self.call("Input.dispatchMouseEvent", event("mousePressed", points[0], 1));
        }
        for &point in &points[1..] {
            self.call("Input.dispatchMouseEvent", event("mouseMoved", point, buttons));
        }
        if drags {
            let last = points[points.len() - 1];
            self.call("Input.dispatchMouseEvent", event("mouseReleased", last, 1));
        }
        self.settle();
    }

    /// Waits until the page has drawn what it was told.
    pub(crate) fn settle(&mut self) {
        let frames =
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))";
        let asked = json!({ "expression": frames, "awaitPromise": true });
        self.call("Runtime.evaluate", asked);
    }

    /// A picture of the window, as base64 of a PNG.
    pub(crate) fn picture(&mut self) -> String {
        self.settle();
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        answer["data"].as_str().expect("a picture is text").to_owned()
    }

    /// Where pages have asked for something: every address.
    pub(crate) fn requests(&self) -> Vec<String> {
        let requests =
            self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        let url = |event: &Value| event["params"]["request"]["url"].as_str().map(str::to_owned);
        requests.filter_map(url).collect()
    }

    /// The result of a command, which must not fail.
    fn call(&mut self, method: &str, params: Value) -> Value {
        let mut answer = self.ask(method, params);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    /// The answer to a command.
    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let number = self.number;
        let mut message = json!({ "id": number, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        let sent = self.commands.write_all(&bytes).and_then(|()| self.commands.flush());
        sent.unwrap_or_else(|error| panic!("{method}: the browser is gone: {error}"));
        loop {
            let answer = self.next();
            if answer["id"] == number {
                return answer;
            }
            self.note(answer);
        }
    }

    fn next(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.answers.read_until(0, &mut bytes).expect("the browser can be read from");
        assert_eq!(bytes.pop(), Some(0), "the browser ended");
        serde_json::from_slice(&bytes).expect("a message is JSON")
    }

    /// Keeps an event, and whatever complains.
    fn note(&mut self, event: Value) {
        let params = &event["params"];
        let complains = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => params["entry"]["level"] == "error",
            Some("Runtime.consoleAPICalled") => params["type"] == "error",
            _ => false,
        };
        if complains {
            self.complaints.push(params.to_string());
        }
        self.events.push_back(event);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It is ours alone: its children end with it, and its profile is of no further use.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
