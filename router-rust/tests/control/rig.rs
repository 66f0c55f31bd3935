//! Small HTTP servers and builders that the tests share.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use infini_router::config::RouterConfig;
use infini_router::router::table::{Service, Services};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Ends its task when it goes out of scope.
pub(crate) struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Run a loop until the value is dropped.
pub(crate) fn running(work: impl Future<Output = ()> + Send + 'static) -> Running {
    Running(tokio::spawn(work))
}

#[derive(Default)]
struct Script {
    /// Path -> answers: each but the last is given once.
    answers: HashMap<String, Vec<(u16, String)>>,
    heads: Vec<String>,
}

/// Answers GETs as tests say while it runs; other paths are 404.
pub(crate) struct FakeServer {
    pub(crate) port: u16,
    script: Arc<Mutex<Script>>,
    _running: Running,
}

impl FakeServer {
    /// A server on any free port.
    pub(crate) async fn start() -> Self {
        Self::start_at(0).await
    }

    /// A server on this port.
    pub(crate) async fn start_at(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = Arc::<Mutex<Script>>::default();
        let serving = serve(listener, Arc::clone(&script));
        Self {
            port,
            script,
            _running: running(serving),
        }
    }

    /// Answer `path` like this from now on.
    pub(crate) fn answer(&self, path: &str, status: u16, body: impl ToString) -> &Self {
        self.answers(path, vec![(status, body.to_string())])
    }

    /// Answer `path` like these, one after the other, and with the last one for ever.
    pub(crate) fn answers(&self, path: &str, answers: Vec<(u16, String)>) -> &Self {
        self.script
            .lock()
            .unwrap()
            .answers
            .insert(path.to_owned(), answers);
        self
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The whole heads of the requests until now.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.script.lock().unwrap().heads.clone()
    }

    /// The targets of the requests until now.
    pub(crate) fn targets(&self) -> Vec<String> {
        let target = |head: &String| head.split(' ').nth(1).unwrap().to_owned();
        self.heads().iter().map(target).collect()
    }
}

async fn serve(listener: TcpListener, script: Arc<Mutex<Script>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(serve_one(stream, Arc::clone(&script)));
    }
}

async fn serve_one(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    let Some(head) = read_head(&mut stream).await else {
        return;
    };
    let target = head.split(' ').nth(1).unwrap();
    let path = target.split('?').next().unwrap().to_owned();
    let (status, body) = {
        let mut script = script.lock().unwrap();
        script.heads.push(head);
        match script.answers.get_mut(&path) {
            None => (404, "{}".to_owned()),
            Some(answers) if answers.len() > 1 => answers.remove(0),
            Some(answers) => answers[0].clone(),
        }
    };
    let length = body.len();
    let body = if status == 304 { "" } else { &body };
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nLocation: /x\r\n\r\n");
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
}

pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// A server that sends each client `answer` after its request, and closes; "" = never answers.
pub(crate) async fn raw_server(answer: &'static [u8]) -> (String, Running) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                read_head(&mut stream).await;
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
                let _ = stream.write_all(answer).await;
            });
        }
    };
    (url, running(serving))
}

/// A port that nobody listens on, nor on the one after it.
pub(crate) async fn free_port() -> u16 {
    loop {
        // Below the range from which the system takes the ports of outgoing connections.
        let port = fastrand::u16(10_000..30_000);
        let pair = (TcpListener::bind(("127.0.0.1", port)).await, port + 1);
        if pair.0.is_ok() && TcpListener::bind(("127.0.0.1", pair.1)).await.is_ok() {
            return port;
        }
    }
}

/// Wait until `condition` holds; what it was about is named when it does not come true.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("did not come true: {what}");
}

/// A configuration with short times.
pub(crate) fn quick() -> RouterConfig {
    RouterConfig {
        health_interval: 0.02,
        health_timeout: 1.0,
        registry_sync_interval: 0.1,
        service_removal_grace_period: 0.2,
        state_dir: None,
        ..RouterConfig::default()
    }
}

/// A service of type openai-api that names these models.
pub(crate) fn engine(name: &str, port: u16, models: &[&str]) -> Service {
    Service {
        name: name.to_owned(),
        host: "127.0.0.1".to_owned(),
        port,
        url: format!("http://127.0.0.1:{port}"),
        models: models.iter().map(|&model| model.to_owned()).collect(),
        metadata: metadata(json!({ "type": "openai-api" })),
        ..Service::default()
    }
}

pub(crate) fn metadata(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

/// `engine` with one more entry in its metadata.
pub(crate) fn with(mut service: Service, key: &str, value: impl Into<Value>) -> Service {
    service.metadata.insert(key.to_owned(), value.into());
    service
}

pub(crate) fn listed(services: impl IntoIterator<Item = Service>) -> Services {
    services.into_iter().map(Arc::new).collect()
}

pub(crate) fn names(services: &[Arc<Service>]) -> Vec<&str> {
    services
        .iter()
        .map(|service| service.name.as_str())
        .collect()
}

/// An entry as a registry lists it.
pub(crate) fn registration(name: &str, port: u16, models: Option<&[&str]>) -> Value {
    let mut entry = json!({
        "name": name, "host": "127.0.0.1", "port": port, "hostname": "127.0.0.1",
        "url": format!("http://127.0.0.1:{port}"), "status": "running", "weight": 1,
        "metadata": { "type": "openai-api" }, "is_healthy": true,
    });
    if let Some(models) = models {
        entry["metadata"]["models"] = json!(models);
    }
    entry
}

/// A folder that is removed in the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("infini-router-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A file of this content; its path.
    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
