//! A registry as the router sees it, with any content and any fault.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::rig::{Running, read_head, running};

/// A registry with a watch: each change of the list raises the revision and wakes who waits.
pub(crate) struct Registry {
    pub(crate) url: String,
    script: Arc<Mutex<Script>>,
    changed: Arc<Notify>,
    _running: Running,
}

struct Script {
    status: u16,
    revision: u64,
    services: Vec<Value>,
    targets: Vec<String>,
}

impl Registry {
    pub(crate) async fn start(services: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script = Script {
            status: 200,
            revision: 1,
            services: services.to_vec(),
            targets: vec![],
        };
        let (script, changed) = (Arc::new(Mutex::new(script)), Arc::new(Notify::new()));
        let (here, wake) = (Arc::clone(&script), Arc::clone(&changed));
        let task = running(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (script, changed) = (Arc::clone(&here), Arc::clone(&wake));
                tokio::spawn(async move {
                    let Some(head) = read_head(&mut stream).await else {
                        return;
                    };
                    let target = head.split(' ').nth(1).unwrap();
                    let answer = answer(target, &script, &changed).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        Self {
            url,
            script,
            changed,
            _running: task,
        }
    }

    pub(crate) fn publish(&self, services: &[Value]) {
        let mut script = self.script.lock().unwrap();
        script.services = services.to_vec();
        script.revision += 1;
        self.changed.notify_waiters();
    }

    pub(crate) fn misbehave(&self, status: u16) {
        self.script.lock().unwrap().status = status;
        self.changed.notify_waiters();
    }

    pub(crate) fn targets(&self) -> Vec<String> {
        self.script.lock().unwrap().targets.clone()
    }

    pub(crate) fn count(&self, target: &str) -> usize {
        self.targets().iter().filter(|seen| *seen == target).count()
    }
}

async fn answer(target: &str, script: &Mutex<Script>, changed: &Notify) -> String {
    let watches = {
        let mut script = script.lock().unwrap();
        script.targets.push(target.to_owned());
        script.status == 200 && target.contains(&format!("&since={}&", script.revision))
    };
    if watches {
        let wait: f64 = target.rsplit('=').next().unwrap().parse().unwrap();
        if tokio::time::timeout(Duration::from_secs_f64(wait), changed.notified())
            .await
            .is_err()
        {
            return "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned();
        }
    }
    let script = script.lock().unwrap();
    let healthy = |entry: &&Value| !target.contains("healthy=true") || entry["is_healthy"] == true;
    let services: Vec<&Value> = script.services.iter().filter(healthy).collect();
    let body = json!({ "services": services, "revision": script.revision }).to_string();
    let status = script.status;
    format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(crate) const HEALTHY: &str = "/services?healthy=true";
